"""Random networks, pruned and collapsed in each precision: exact, refused, or quietly wrong."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torture_trial import Trial

import branchprune as bp

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from models import relative, scramble, spelled_out
from random_networks import Case, cases, planned, seeded

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXACT = 1e-10
ROUNDED = 4
"""How many times as far from float64 as the branch itself a collapsed model may be in its dtype."""


def attack(dtype: torch.dtype, count: int, number: int) -> Iterator[Trial]:
    """Prune random networks, and compare each with what its branches compute in float64.

    Args:
        dtype: Type of the parameters and inputs.
        count: How many networks.
        number: Seed of the networks.
    """
    trials: list[Trial] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @seed(number)
    @given(cases())
    def survey(case: Case) -> None:
        case.model.to(dtype).eval()
        case.x = case.x.to(dtype)
        try:
            seeded(case.model, case.x)
        except RuntimeError:  # torch has no such operation in this dtype
            reject()
        trials.append(trial(case))

    survey()
    yield from trials


def trial(case: Case) -> Trial:
    """Prune and collapse one network.

    Args:
        case: The network, its input and the share of channels to keep.
    """
    try:
        plan = planned(case)
        blended = bp.attach(case.model, plan, "l1")
        scramble(blended, seed=3)
        blended.alpha = 0
        small = bp.collapse(blended)
    except bp.PruneError as error:
        return Trial("wrong" if "\n" in str(error) else "refused", str(error))
    except Exception as error:
        return Trial("wrong", f"{case}: {type(error).__name__}: {error}")
    fault = difference(blended, small, case.x)
    return Trial("wrong", f"{case}: {fault}") if fault else Trial("survived")


def difference(blended: bp.Blended, small: nn.Module, x: Tensor) -> str:
    """Say in what a small model differs from its branches, "" if in nothing."""
    if {p.dtype for p in small.parameters()} != {x.dtype}:
        return "another dtype"
    truth = spelled_out(copy.deepcopy(blended).double())
    for training in (False, True):
        expected = run(truth, x.double(), training)
        own, found = (run(model, x, training).double() for model in (blended, small))
        limit = EXACT
        if x.dtype != torch.float64:
            limit = ROUNDED * relative(expected, own) + 64 * torch.finfo(x.dtype).eps
        if not found.isfinite().all() and own.isfinite().all():
            return f"not finite, training={training}"
        if (error := relative(expected, found)) > limit:
            return f"{error:.2g} from float64, training={training}; the limit is {limit:.2g}"
    return ""


def run(model: Callable[..., Any], x: Tensor, training: bool) -> Tensor:
    """Return what a copy of a model computes.

    Dropout is off: which entries it draws follows the order in memory, in which models may differ.
    """
    copied: nn.Module = copy.deepcopy(model).train(training)  # type: ignore[attr-defined]
    for module in copied.modules():
        if isinstance(module, _DropoutNd | nn.RReLU):
            module.eval()
    with torch.no_grad():
        found = seeded(copied, x)
    assert isinstance(found, Tensor)
    return found
