"""Is the collapsed model right in the dtype in which it is returned, too?"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.blending.blended import Blended
from branchprune.collapsing.collapse_check import difference
from branchprune.errors import PruneError
from branchprune.graph.inputs import (
    Example,
    call,
    tensors,
    training_mode,
    untouched,
    without_constants,
)

Run = Callable[[Example], list[Tensor]]
WORSE = 10.0
"""How many times the blended model's own rounding error the collapsed one may have."""


def check_own_dtype(blended: Blended, small: nn.Module, exact: list[Tensor]) -> None:
    """Run the collapsed model on the example as a user would, beside the exact outputs.

    Rounding is measured by the blended model, which has the same dtype. One that cannot run on
    the plan's example in its dtype, since it was converted after `attach`, is given the example
    in that dtype; one that cannot run in its dtype here at all is not compared.

    Args:
        blended: The blended model, every α at 0 or 1.
        small: The collapsed model, in the dtype and on the device of the blended one.
        exact: The blended model's outputs in float64.

    Raises:
        PruneError: An output is not finite, or is far from the exact one.
    """
    runs = _runs(blended, small)
    example = without_constants(blended.plan.example)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        rounded = _try(runs[0], example)
        if rounded is None:
            example = _converted(example, blended)
            rounded = _try(runs[0], example)
        if rounded is None:
            return
        found = runs[1](example)
    for wanted, own, new in zip(exact, rounded, found, strict=True):
        if new.is_floating_point():
            _compare(wanted, own, new)


def own_dtype_error(blended: Blended, small: nn.Module) -> float:
    """Return the relative error of the collapsed model in its own dtype, on the example."""
    with torch.no_grad():
        expected, found = (run(blended.plan.example) for run in _runs(blended, small))
    return max(difference(a, b, 0.0) for a, b in zip(expected, found, strict=True))


def _runs(blended: Blended, small: nn.Module) -> tuple[Run, Run]:
    """Return what computes the outputs of both from an example, in evaluation mode."""
    part = small.get_submodule(blended.plan.structure.inside)
    return partial(_outputs, blended, blended.part), partial(_outputs, small, part)


def _outputs(model: nn.Module, forward: Callable[..., Any], example: Example) -> list[Tensor]:
    with untouched(model), training_mode(model, False):
        return tensors(call(model, example, forward))


def _try(run: Run, example: Example) -> list[Tensor] | None:
    try:
        return run(example)
    except Exception:
        return None


def _converted(example: Example, model: nn.Module) -> Example:
    """Return the example in the dtype of the model's parameters."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    result: Example = tree_map_only(
        Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, example
    )
    return result


def _compare(exact: Tensor, rounded: Tensor, found: Tensor) -> None:
    """Raise if an output is infinite where it should not be, or further off than rounding."""
    dtype = str(found.dtype).removeprefix("torch.")
    roundings = math.sqrt(torch.finfo(found.dtype).eps)  # as a deep network may add them up
    way_out = "collapse blended.float() instead, and convert what is returned layer by layer"
    exact, rounded, found = (x.detach().to("cpu", torch.float64) for x in (exact, rounded, found))
    if bool((~found.isfinite() & exact.isfinite()).any()):
        raise PruneError(
            f"an output of the collapsed model is not finite in {dtype}, its own dtype, although "
            f"it is exact in float64: {way_out}"
        )
    error = _distance(found, exact)
    allowed = max(roundings, WORSE * _distance(rounded, exact))
    if error > allowed:
        raise PruneError(
            f"the collapsed model is off by {error:.1e} in {dtype}, its own dtype, although it is "
            f"exact in float64 and the blended model is off by {_distance(rounded, exact):.1e}: "
            f"{way_out}"
        )


def _distance(found: Tensor, exact: Tensor) -> float:
    """Return the difference as a share of what is exact, both taken as long vectors."""
    found, exact = found.nan_to_num(0.0, 0.0, 0.0), exact.nan_to_num(0.0, 0.0, 0.0)
    tiny = torch.finfo(torch.float64).tiny
    return float((found - exact).norm() / exact.norm().clamp_min(tiny))
