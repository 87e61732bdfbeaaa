"""The one error class of the library."""


class PruneError(ValueError):
    """A model, argument, file or training run that branchprune cannot work with.

    The message names the layer or argument and its value.
    """
