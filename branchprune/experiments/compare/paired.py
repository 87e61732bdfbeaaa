"""What a method changes against another one, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t

from branchprune.experiments.compare.results import Outcome, Results, deviation

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean difference of validation scores over the seeds that both methods have.

    Attributes:
        mean: The mean.
        margin: Half of its interval of 95 %, by Student's t; None of one seed.
        seeds: Number of seeds.
    """

    mean: float
    margin: float | None
    seeds: int


def differences(results: Results) -> dict[tuple[str, str], Difference]:
    """Return what each method and budget changes against the reference at the same budget.

    Args:
        results: The results of a comparison; without a reference nothing is returned.
    """
    outcomes = {(each.method, each.budget): each for each in results.outcomes()}
    found = {}
    for (method, budget), outcome in outcomes.items():
        reference = outcomes.get((results.comparison.reference or "", budget))
        if reference is not None and reference is not outcome:
            values = _paired(outcome, reference)
            if values:
                found[method, budget] = _difference(values)
    return found


def _paired(outcome: Outcome, reference: Outcome) -> list[float]:
    other = {line["seed"]: line["val"]["small"] for line in reference.lines}
    mine = {line["seed"]: line["val"]["small"] for line in outcome.lines}
    return [mine[seed] - other[seed] for seed in mine if seed in other]


def _difference(values: Sequence[float]) -> Difference:
    return Difference(statistics.fmean(values), margin(values), len(values))


def margin(values: Sequence[float]) -> float | None:
    """Return half of the interval of 95 % of a mean, by Student's t; None of one value."""
    n, spread = len(values), deviation(values)
    if spread is None:
        return None
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / math.sqrt(n)
