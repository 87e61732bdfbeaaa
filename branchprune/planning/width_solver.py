"""The widths with the least error whose costs are within limits.

The error is a sum over groups, each of its own width; a cost is not, since a layer costs the
product of the widths on both sides. With a price on each cost, group after group takes the width
that is best beside the present ones of the others, until none changes (coordinate descent); prices
are found by bisection, and what is left of the limits is filled greedily. Where there are few
widths, two groups at a time are changed at last and the rest filled again, as long as that lowers
the error; where there are many, that was seen to gain a hundred-thousandth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from branchprune.planning.cost_model import CostModel

ENOUGH = 0.97
"""Of a limit, that leaves little to fill."""
SWEEPS = 20
"""Of coordinate descent at one price, at most."""
HALVINGS = 18
"""Of the price, between bounds 12 powers of ten apart."""
ROUNDS = 6
"""In which the prices of several costs are weighed against each other."""
FEW = 4000
"""Groups times the most widths of one, up to which groups are changed two at a time, and filling
begins at the least widths, too: where there are more, both take seconds and gain nothing."""
TRIALS = 500
"""Of two groups changed and the rest filled again, at most."""


@dataclass(frozen=True, eq=False)
class Limit:
    """A cost and the most that it may be."""

    cost: CostModel
    most: float

    def holds(self, kept: Tensor) -> bool:
        """Return whether widths, float64, shape (G,), are within it."""
        return self.cost.total(kept) <= self.most


def hold(limits: Sequence[Limit], kept: Tensor) -> bool:
    """Return whether widths, float64, shape (G,), are within all limits."""
    return all(limit.holds(kept) for limit in limits)


class Solver:
    """Chooses widths; the same curves serve several limits.

    Args:
        widths: Those that each group may take, rising; one that has a single one stays.
        errors: For each group, the error of the model at each of them, falling.
    """

    def __init__(self, widths: Sequence[Sequence[int]], errors: Sequence[Sequence[float]]) -> None:
        most = max(map(len, widths))
        # Shorter rows are filled up with their last entry; argmin finds it at its own place.
        self.widths = torch.tensor(
            [[*row, *[row[-1]] * (most - len(row))] for row in widths], dtype=torch.double
        )
        self.errors = torch.tensor(
            [[*row, *[row[-1]] * (most - len(row))] for row in errors], dtype=torch.double
        )
        self.open = [g for g, row in enumerate(widths) if len(row) > 1]

    def error(self, kept: Tensor) -> float:
        """Return the sum of the errors at some widths, float64, shape (G,)."""
        return float(self.errors_at(kept).sum())

    def errors_at(self, kept: Tensor) -> Tensor:
        """Return the error of each group at some widths, float64, shape (G,)."""
        return self._errors_now(kept)[:, 0]

    def scaled(self, factors: Tensor) -> Solver:
        """Return one of errors that are multiplied by a factor of each group, shape (G,)."""
        other = copy(self)
        other.errors = self.errors * factors[:, None]
        return other

    def solve(self, limits: Sequence[Limit], thorough: bool = True) -> Tensor | None:
        """Return widths within all limits, with as little error as is found; None: there are none.

        Args:
            limits: The limits.
            thorough: Whether both starts are tried, prices found to the end, and groups changed two
                at a time at last.

        Returns:
            The widths, float64, shape (G,).
        """
        narrowest, widest = self.widths[:, 0].clone(), self.widths[:, -1].clone()
        if hold(limits, widest):
            return widest
        if not hold(limits, narrowest):
            return None
        weights = [1.0] * len(limits)
        if not thorough:
            return self.filled(self._bisected(widest, limits, weights, ENOUGH), limits)
        few = self.widths.numel() <= FEW
        found = narrowest if few else self._bisected(narrowest, limits, weights, ENOUGH)
        best = self.filled(found, limits)
        for _ in range(ROUNDS if len(limits) > 1 else 1):
            for start in (widest, narrowest):
                found = self.filled(self._bisected(start, limits, weights), limits)
                best = min(best, found, key=self.error)
            used = [limit.cost.total(best) / limit.most for limit in limits]
            weights = [w * share**8 for w, share in zip(weights, used, strict=True)]
        return self._exchanged(best, limits) if few else best

    def _errors_now(self, kept: Tensor) -> Tensor:
        places = torch.searchsorted(self.widths, kept[:, None])
        return self.errors.gather(1, places)

    def _bisected(
        self,
        start: Tensor,
        limits: Sequence[Limit],
        weights: Sequence[float],
        enough: float = 1.0,
    ) -> Tensor:
        """Return what descent from a start finds at the least price that keeps all limits.

        It ends where so much of a limit is used.
        """
        scale = float((self.errors[:, 0] - self.errors[:, -1]).sum()) or 1.0
        low, high = 1e-6 * scale, 1e6 * scale
        found = self.widths[:, 0].clone()
        for _ in range(HALVINGS):
            price = (low * high) ** 0.5
            each = [price * w / limit.most for w, limit in zip(weights, limits, strict=True)]
            kept = self._descended(start, limits, each)
            used = max(limit.cost.total(kept) / limit.most for limit in limits)
            if used <= 1:
                high, found = price, kept
                if used >= enough:
                    break
            else:
                low = price
        return found

    def _descended(self, start: Tensor, limits: Sequence[Limit], prices: Sequence[float]) -> Tensor:
        """Return the widths at which no group alone lowers error plus price."""
        kept = start.clone()
        for sweep in range(SWEEPS):
            before = kept.clone()
            place = 0
            while place < len(kept):
                # In the first sweep nearly all groups move; in others few do, so look for the next.
                rows = slice(place, place + 1 if sweep == 0 else None)
                best = self._best_alone(kept, rows, limits, prices)
                moving = (best != kept[rows]).nonzero()
                if len(moving):
                    first = int(moving[0])
                    kept[place + first] = best[first]
                    place += first + 1
                else:
                    place += len(best)
            if torch.equal(kept, before):
                break
        return kept

    def _best_alone(
        self, kept: Tensor, rows: slice, limits: Sequence[Limit], prices: Sequence[float]
    ) -> Tensor:
        """Return the best width of each of some groups beside the present ones of all others."""
        total, widths = self.errors[rows], self.widths[rows]
        for limit, price in zip(limits, prices, strict=True):
            total = total + price * limit.cost.changes(kept, widths, rows)
        return widths.gather(1, total.argmin(1, keepdim=True))[:, 0]

    def filled(self, start: Tensor, limits: Sequence[Limit]) -> Tensor:
        """Return wider groups, as long as limits hold: first where most error goes for the cost.

        Args:
            start: The widths, float64, shape (G,).
            limits: The limits.
        """
        kept = start.clone()
        while True:
            gains = self._errors_now(kept) - self.errors
            shares = self._shares(kept, limits)
            worth = torch.where((shares <= 1) & (gains > 0), gains / shares.clamp_min(1e-12), 0.0)
            wider = self._with_best(kept, worth)
            if wider is None or not hold(limits, wider):
                return kept
            kept = wider

    def _exchanged(self, start: Tensor, limits: Sequence[Limit]) -> Tensor:
        """Return what is no worse than any two groups changed and the rest filled again."""
        best, least, trials = start, self.error(start), 0
        improved = True
        while improved:
            improved = False
            for g in self.open:
                for width in self._near(g, best):
                    if trials >= TRIALS:
                        return best
                    trials += 1
                    kept = best.clone()
                    kept[g] = width
                    # Whatever one other group can be, the limits holding, with the least error.
                    change = self.errors - self._errors_now(kept)
                    worth = 1 + float(change.max()) - change
                    worth = torch.where(self._shares(kept, limits) <= 1, worth, 0.0)
                    worth[g] = 0.0
                    found = self._with_best(kept, worth)
                    if found is None or not hold(limits, found):
                        continue
                    found = self.filled(found, limits)
                    if (error := self.error(found)) < least - 1e-12 * abs(least):
                        best, least, improved = found, error, True
                        break
        return best

    def _shares(self, kept: Tensor, limits: Sequence[Limit]) -> Tensor:
        """Return which share of what is left of the limits each group's width would take."""
        shares = torch.full_like(self.widths, -math.inf)
        for limit in limits:
            left = limit.most - limit.cost.total(kept)
            changes = limit.cost.changes(kept, self.widths, slice(None))
            used = changes / left if left > 0 else torch.where(changes <= left, 0.0, math.inf)
            shares = torch.maximum(shares, used)
        return shares

    def _with_best(self, kept: Tensor, worth: Tensor) -> Tensor | None:
        """Return widths with the single change of most worth; None: none is worth anything."""
        g, place = divmod(int(worth.argmax()), worth.shape[1])
        if float(worth[g, place]) <= 0:
            return None
        found = kept.clone()
        found[g] = self.widths[g, place]
        return found

    def _near(self, g: int, kept: Tensor) -> list[Tensor]:
        """Return other widths of a group, ever farther from its own."""
        row = self.widths[g].unique()
        now = int(torch.searchsorted(row, kept[g]))
        steps = [2**i for i in range(len(row).bit_length())]
        places = [now + sign * step for step in steps for sign in (-1, 1)]
        return [row[place] for place in places if 0 <= place < len(row)]
