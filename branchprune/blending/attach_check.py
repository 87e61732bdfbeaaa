"""Does the blended model at α = 1 compute what the model does: outputs, and gradients too?"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from branchprune.blending.blended import Blended
from branchprune.blending.float64 import sharing_copy
from branchprune.errors import PruneError, first_line
from branchprune.graph.autocast import has_regions
from branchprune.graph.draws import DrawsAlike
from branchprune.graph.inputs import (
    Example,
    call,
    repeated,
    tensors,
    training_mode,
    untouched,
    without_constants,
)
from branchprune.graph.nodes import CHECKPOINTED, WHERE
from branchprune.graph.structure import Structure
from branchprune.planning.trial import same_numbers, try_widths

MOST_GRADIENTS = 50_000_000
"""Parameters up to which gradients are compared too; a larger model would need too much memory."""
ROUNDING = 1e-2
"""Difference that two gradients may have, as a share of the largest, in single precision."""


def check_outputs(model: nn.Module, blended: Blended) -> None:
    """Run the blended model at α = 1 and α = 0; compare the former with the model.

    A model that is compiled is run as it was written: compiled code rounds otherwise.
    Outputs are compared in both modes, and in training mode the gradients of the parameters, up
    to `MOST_GRADIENTS` of them. A model that cannot train on the example, as BatchNorm cannot on
    a single number a channel, is given it twice, and compared in evaluation mode only if it
    cannot train on that either. Constant tensors in the
    example are replaced by noise. Where forward enters or leaves autocast, all is compared under
    it, too, as trainers with mixed precision call the model.

    Raises:
        PruneError: They differ, or the branch does not run.
    """
    with torch.compiler.set_stance("force_eager"):
        _check_outputs(model, blended)
        _check_in_autocast(model, blended)


def check_collapse(blended: Blended) -> None:
    """Try now what `collapse` will do: copy the blended model, and run one of the planned widths.

    Raises:
        PruneError: One of both fails, which would else be found after the training.
    """
    plan = blended.plan
    try:
        sharing_copy(blended)
    except Exception as error:
        raise PruneError(f"the blended model cannot be copied by deepcopy: {error}") from error
    kept = [group.kept for group in plan.groups]
    try_widths(blended.model, plan.structure, kept, plan.example, plan.whole)


def _check_outputs(model: nn.Module, blended: Blended) -> None:
    example = without_constants(blended.plan.example)
    part = model.get_submodule(blended.plan.structure.inside)
    modes = training_mode(model, False), training_mode(blended, False)
    with torch.no_grad(), untouched(model), modes[0], modes[1]:
        expected, found = call(model, example, part), call(blended, example, blended.part)
        _run_branch(blended, example)
    _compare(expected, found, "")
    with ExitStack() as stack:
        for each in (model, blended):
            stack.enter_context(untouched(each))
            stack.enter_context(training_mode(each, True))
        _check_training(model, part, blended, example)


def tell_lost_checkpoints(structure: Structure) -> None:
    """Warn where forward checkpoints activations, which the blended model keeps instead."""
    nodes = [node for graph in structure.graphs.values() for node in graph.nodes]
    lost = [node for node in nodes if CHECKPOINTED in node.meta]
    if lost:
        layers = dict.fromkeys(str(node.target) for node in lost if node.op == "call_module")
        first = ", ".join([*layers][:3]) or lost[0].name
        warnings.warn(
            f"forward runs {first} under torch.utils.checkpoint: the small model will, too, but "
            "the blended one keeps these activations and so takes more memory to train",
            stacklevel=3,
        )


def _check_in_autocast(model: nn.Module, blended: Blended) -> None:
    """Compare both under autocast, too, if forward enters or leaves it, and can run there."""
    graphs, device = blended.plan.structure.graphs, next(model.parameters()).device.type
    if not any(map(has_regions, graphs.values())) or not is_autocast_available(device):
        return
    part = model.get_submodule(blended.plan.structure.inside)
    with torch.autocast(device, torch.bfloat16):
        try:
            with torch.no_grad(), untouched(model), training_mode(model, False):
                call(model, without_constants(blended.plan.example), part)
        except Exception:  # as of layers in a region without it that are given what is cast
            return
        try:
            _check_outputs(model, blended)
        except Exception as error:
            raise PruneError(
                f"under torch.autocast, which forward enters or leaves, {first_line(error)}: "
                "give `enabled` and `dtype` as constants, not as what holds around the model"
            ) from error


def _run_branch(blended: Blended, example: Example) -> None:
    try:
        with blended.branch_only():
            call(blended, example, blended.part)
    except Exception as error:
        raise PruneError(
            f"the branch does not run at its widths, so forward names a width that cannot "
            f"follow ({first_line(error)}){_failing_at(error, blended)}; exclude the "
            "layers around it"
        ) from error


def _failing_at(error: Exception, blended: Blended) -> str:
    """Name what the forward code of a blended model was computing when it failed."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    code = [frame for frame in frames if frame.f_code.co_filename.startswith("<branchprune")]
    if not code:
        return ""
    # Each line of that code sets one variable, which is named as its node.
    failed = [name for name in code[-1].f_code.co_varnames if name not in code[-1].f_locals]
    nodes = {node.name: node for node in blended.plan.structure.graphs[False].nodes}
    name = failed[0] if failed else "its output"
    node = nodes.get(name) or nodes.get(name.rpartition("_")[0])
    if node is None:
        return f" at {name}"
    if node.op == "call_module":
        return f" at {node.target}"
    what = getattr(node.target, "__name__", node.target)
    inputs = [str(n.target) for n in node.all_input_nodes if n.op == "call_module"]
    after = f" after {' and '.join(inputs)}" if inputs else ""
    return f" at `{what}`{after} in {node.meta.get(WHERE) or type(blended.model).__name__}"


def _compare(expected: Any, found: Any, how: str) -> None:
    if not _same(expected, found):
        raise PruneError(
            f"the blended model at alpha = 1 differs from the model{how}: forward does "
            "something that a trace loses, such as `+=` on a tensor that has a second name, a "
            "change to a view of a tensor, or a hook"
        )


def _same(expected: Any, found: Any) -> bool:
    return all(map(same_numbers, tensors(expected), tensors(found)))


def _check_training(model: nn.Module, part: nn.Module, blended: Blended, example: Example) -> None:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    small = sum(p.numel() for _, p in named) <= MOST_GRADIENTS
    with torch.set_grad_enabled(small):
        outputs = _trained_outputs(model, part, blended, example)
        if outputs is None:
            return
        if not _same(*outputs):  # it may draw, in another order, numbers that nothing reads
            with DrawsAlike():
                outputs = _trained_outputs(model, part, blended, example) or outputs
        expected, found = outputs
    _compare(expected, found, " in training mode")
    try:
        wanted = _gradients(expected, [p for _, p in named])
    except RuntimeError:  # the model overwrites what its own backward needs
        return
    if wanted:
        copies = dict(blended.model.named_parameters())
        twins = [copies[name] for name, _ in named]
        _compare_gradients([name for name, _ in named], wanted, _gradients(found, twins))


def _trained_outputs(
    model: nn.Module, part: nn.Module, blended: Blended, example: Example
) -> tuple[Any, Any] | None:
    """Return the outputs of both in training mode; None if the model cannot train on the example.

    A norm cannot train on a single number a channel, which a batch of 1 may leave it: then it is
    the example twice, unless what was traced holds for the batch of the example only.
    """
    try:
        expected = call(model, example, part)
    except Exception:
        example = repeated(example)
        try:
            return call(model, example, part), call(blended, example, blended.part)
        except Exception:
            return None
    return expected, call(blended, example, blended.part)


def _gradients(output: Any, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of a random mixture of all outputs; none where there are none."""
    noise = torch.Generator().manual_seed(0)
    mixed: list[Tensor] = []
    for tensor in tensors(output):
        if tensor.requires_grad and tensor.is_floating_point():
            weights = torch.randn(tensor.shape, generator=noise).to(tensor.device, tensor.dtype)
            mixed.append((tensor * weights).sum().float())
    if not mixed or not parameters:
        return []
    total = torch.stack([m.to(mixed[0].device) for m in mixed]).sum()
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros_like(p) if g is None else g.nan_to_num() for g, p in pairs]


def _compare_gradients(
    names: Iterable[str], expected: Sequence[Tensor], found: Sequence[Tensor]
) -> None:
    sizes = [float(gradient.abs().max()) if gradient.numel() else 0.0 for gradient in expected]
    # Gradients that cancel, as of a bias before a norm, are nothing but rounding errors.
    floor = 1e-3 * max(sizes)
    for name, a, i in zip(names, expected, count(), strict=False):
        rounding = max(ROUNDING, torch.finfo(a.dtype).eps ** 0.5)
        other = found[i] if found else torch.zeros_like(a)
        if a.numel() and not float((a - other).abs().max()) <= rounding * max(sizes[i], floor):
            raise PruneError(
                f"the blended model at alpha = 1 has another gradient in {name} than the model: "
                "forward does something that a trace loses, such as a hook on a tensor or a "
                "change to requires_grad"
            )
