"""The one error class of the library, and a check that many arguments need."""


class PruneError(ValueError):
    """A model, argument, file or training run that branchprune cannot work with.

    The message names the layer or argument and its value.
    """


def at_least_one(name: str, value: object) -> None:
    """Raise PruneError for an argument that is not a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PruneError(f"{name} (={value!r}) must be a whole number of at least 1")
