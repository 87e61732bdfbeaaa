"""What learns: the original layers from the start, once α is small enough, or never."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from branchprune.blending.blended import Blended
from branchprune.errors import PruneError


def originals_learn(thaw_at: float | None, alphas: Iterable[float]) -> bool:
    """Return whether the original layers learn while groups have these α.

    Args:
        thaw_at: See `BranchPruning`.
        alphas: α of each group.
    """
    return thaw_at is not None and max(alphas) <= thaw_at


class Freezing:
    """Freezes the original layers, and lets those learn again that did before.

    Args:
        thaw_at: See `BranchPruning`.
        frozen: See `BranchPruning`.

    Raises:
        PruneError: `thaw_at` is no α.
    """

    def __init__(self, thaw_at: float | None, frozen: Sequence[str] = ()) -> None:
        if thaw_at is not None and not 0 <= thaw_at <= 1:
            raise PruneError(f"thaw_at (={thaw_at}) must be in [0, 1], or None")
        if isinstance(frozen, str):
            raise PruneError(f"frozen (={frozen!r}) must be a list of patterns")
        self.thaw_at, self.frozen = thaw_at, tuple(frozen)
        self.parameters: list[nn.Parameter] = []
        self.held: list[nn.Parameter] = []
        self.blended: Blended | None = None

    def begin(self, blended: Blended, ranks: int) -> None:
        """Note which parameters learn, and freeze those that never do.

        Args:
            blended: The blended model.
            ranks: Number of processes that train it.

        Raises:
            PruneError: A pattern of `frozen` names no parameter.
        """
        self.held = [p for p in self._named(blended) if p.requires_grad]
        for parameter in self.held:
            parameter.requires_grad_(False)
        self.parameters = [p for p in blended.model.parameters() if p.requires_grad]
        self.blended = blended if ranks > 1 else None

    def _named(self, blended: Blended) -> list[nn.Parameter]:
        """Return the parameters that `frozen` names."""
        named = dict(blended.named_parameters())
        for pattern in self.frozen:
            if not any(fnmatchcase(name, pattern) for name in named):
                some = ", ".join([*named][:3])
                raise PruneError(f"frozen: {pattern!r} names no parameter; they are {some}, …")
        return [p for n, p in named.items() if any(fnmatchcase(n, each) for each in self.frozen)]

    def move(self, alphas: Iterable[float]) -> None:
        """Freeze the original layers or let them learn, as α says."""
        if self.thaw_at != 1:
            self._set(originals_learn(self.thaw_at, alphas))

    def end(self) -> None:
        """Let everything learn that did when this began."""
        self._set(True)
        for parameter in self.held:
            parameter.requires_grad_(True)

    def _set(self, learn: bool) -> None:
        if self.blended is not None:
            self.blended.originals_held = not learn
            return
        for parameter in self.parameters:
            parameter.requires_grad_(learn)
