"""Where a task finds input and target in a batch, and what it learns from in a model's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor

from branchprune.errors import PruneError

Key = int | str | None


@dataclass(frozen=True)
class Keys:
    """Which entries of batches and outputs a task uses.

    ```python
    ClassificationTask(model, keys=Keys(input="image", target="label", output="out"))
    ```

    A key is that of a dictionary, the name of an entry of a named tuple, or the number of an entry
    of any tuple or list, from 0. Where a batch is a tuple, null means: input, target and number are
    its first, second and third entry. A LightningModule of your own says by an attribute `keys`
    what its batches are like, for the examples that pruning needs.

    Args:
        input: Entry of a batch that the model is called with.
        target: Entry of a batch with what it is to put out.
        number: Entry of a batch that says which examples these are, int64 (N,).
        output: Entry of the model's output that the loss takes, where that is no tensor; a model
            may return a tensor in one mode and a tuple in the other. Auxiliary outputs are not
            trained.
    """

    input: Key = None
    target: Key = None
    number: Key = None
    output: Key = None

    def input_of(self, batch: Any) -> Tensor:
        """Return the input (N, …) in a batch, which may be nothing else.

        Raises:
            PruneError: It is not there, or is no tensor; the keys that are there are named.
        """
        if isinstance(batch, Tensor) and self.input is None:
            return batch
        return _entry(batch, self.input, 0, "input", "batch")

    def target_of(self, batch: Any) -> Tensor:
        """Return the target (N, …) in a batch.

        Raises:
            PruneError: It is not there, or is no tensor; the keys that are there are named.
        """
        return _entry(batch, self.target, 1, "target", "batch")

    def number_of(self, batch: Any) -> Any:
        """Return what a batch says of which examples these are; None where it says nothing."""
        if self.number is not None:
            return _entry(batch, self.number, 2, "number", "batch")
        return batch[2] if isinstance(batch, list | tuple) and len(batch) > 2 else None

    def output_of(self, output: Any) -> Tensor:
        """Return the tensor in a model's output: the output itself, or an entry of it.

        Raises:
            PruneError: There are several, and no key says which; those that are there are named.
        """
        if isinstance(output, Tensor):
            return output
        if self.output is None and isinstance(output, Mapping) and len(output) == 1:
            return _entry(output, next(iter(output)), 0, "output", "model's output")
        return _entry(output, self.output, None, "output", "model's output")


def keys_of(module: LightningModule) -> Keys:
    """Return the attribute `keys` of a module, if it has one, else those of batches as tuples."""
    keys = getattr(module, "keys", None)
    return keys if isinstance(keys, Keys) else Keys()


def _entry(value: Any, key: Key, default: int | None, argument: str, what: str) -> Tensor:
    """Return a tensor out of a dictionary, tuple or list."""
    entries = _entries(value)
    chosen = default if key is None and isinstance(value, list | tuple) else key
    if chosen not in entries:
        known = ", ".join(repr(name) for name in entries) or "no entries"
        raise PruneError(
            f"keys.{argument} (={key!r}) must name an entry of the {what} "
            f"({type(value).__name__}: {known}); set the task's keys, as keys=Keys({argument}=…)"
        )
    entry = entries[chosen]
    if not isinstance(entry, Tensor):
        raise PruneError(
            f"keys.{argument} (={key!r}) must name a tensor: entry {chosen!r} of the {what} is a "
            f"{type(entry).__name__}"
        )
    return entry


def _entries(value: Any) -> dict[Any, Any]:
    """Return the entries by key, or by number and, in a named tuple, by name."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, list | tuple):
        return {}
    names = getattr(value, "_fields", ())
    return dict(zip(names, value, strict=False)) | dict(enumerate(value))
