"""Linear ends fitted by least squares: the branch reconstructs what the wide path computes.

Sources: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017); ThiNet
(Luo et al., 2017). There the next layer's outputs are reconstructed, here its inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.blending.bn_recalibration import Inputs, batch_norms, reestimate
from branchprune.blending.optimizer_watch import begin_training
from branchprune.blending.projections import EndPiece, Expand
from branchprune.errors import PruneError
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.inputs import (
    Example,
    example_inputs,
    first_call,
    on_device,
    tensors,
    training_mode,
)

WELL_CONDITIONED = 1e-8
"""Ridges from here on leave half of the digits to a solution of the normal equations."""
AT_ONCE = 2**18
"""Samples whose products are added up at a time, for the memory they take in float64."""


@one_at_a_time
def fit_expand(blended: Blended, batches: Iterable[Example], ridge: float = 1e-4) -> Blended:
    """Fit what leads from the branch back to the wide path: `u ≈ B ũ` at every `expand`.

    ```python
    blended = bp.fit_expand(bp.attach(model, plan), [batch])
    ```

    B is the ridge least-squares solution on the batches, where u is what the consumer reads in
    the wide model (α = 1) in evaluation mode, and ũ what it reads in the branch alone (α = 0),
    whose BatchNorm takes the statistics of each batch. The ends are fitted in forward order, so
    that the later ones see the earlier ones fitted: of one batch all of them in one pass through
    either path, which keeps what the wide one reads; of several each costs a pass of them all. An
    end that evaluation does not reach stays as it is.

    Args:
        blended: The blended model, before it is trained; it is not changed.
        batches: Training inputs: each a tensor, or a tuple or dictionary of arguments.
        ridge: Added to the squared size of every channel of ũ, as a share of their mean.

    Returns:
        A copy with other `expand` matrices, in whose branch BatchNorm has the mean statistics of
        the batches. Build the optimizer after this call, from the parameters of the result.

    Raises:
        PruneError: There are no batches, they do not fit the model, `ridge` is negative, or the
            channels before a layer, which is named, are empty or not finite.
    """
    if not isinstance(blended, Blended):
        raise PruneError(f"blended (a {type(blended).__name__}) must be made by bp.attach")
    if not isinstance(ridge, Real) or not 0 <= ridge < float("inf"):
        raise PruneError(f"ridge (={ridge!r}) must be a number of at least 0")
    if isinstance(batches, Tensor):
        raise PruneError("batches must be several inputs of forward, such as [batch]")
    inputs = [example_inputs(on_device(batch, blended)) for batch in batches]
    if not inputs:
        raise PruneError("batches is empty: the ends are fitted on at least one")
    fitted = copy.deepcopy(blended)
    norms = batch_norms(fitted.twin)
    with torch.no_grad(), _calibrating(fitted, norms):
        if len(inputs) == 1:
            _fit_in_one_pass(fitted, _ends(fitted), inputs[0], ridge)
        else:
            for end, consumer in _ends(fitted).items():
                _fit(fitted, end, consumer, inputs, ridge)
        reestimate(norms, inputs, partial(_run, fitted, 0.0))
    fitted.alpha = blended.alpha
    begin_training(fitted, blended)
    return fitted


@contextmanager
def _calibrating(blended: Blended, norms: Sequence[nn.Module]) -> Iterator[None]:
    """Put the branch's BatchNorm into training mode, and all else into evaluation mode."""
    with training_mode(blended, False):
        for norm in norms:
            norm.train()
        yield


def _ends(blended: Blended) -> dict[str, str]:
    """Return the linear ends in forward order, each with the layer that reads it first."""
    structure = blended.plan.structure
    ends: dict[str, str] = {}
    for node in structure.graphs[False].nodes:
        layer = structure.linears.get(str(node.target)) if node.op == "call_module" else None
        if layer is not None and any(p.group in blended.plan.pruned for p in layer.inputs or ()):
            ends.setdefault(layer.expand, layer.name)
    return ends


def _input_of(layer: nn.Module, run: Callable[[], Any], where: str) -> Tensor:
    """Return what a layer reads in a run, which ends there."""
    found = first_call(layer, run)
    if found is None:
        raise _not_reached(where)
    return tensors(found)[0]


def _not_reached(where: str) -> PruneError:
    return PruneError(f"{where} cannot be fitted: a batch does not reach it")


def _run(blended: Blended, alpha: float, inputs: Inputs) -> Any:
    """Run the wide model or the branch alone, as evaluation does, without folding."""
    blended.alpha = alpha
    part = partial(blended.program(training=False, fold=False), blended)
    args, kwargs = inputs
    try:
        return blended.run(part, *args, **kwargs)
    except PruneError:
        raise
    except (TypeError, RuntimeError, ValueError) as error:
        raise PruneError(
            "batches must be inputs of forward, a tuple meaning several arguments, and large "
            "enough for BatchNorm; of a loader of pairs take `(batch[0] for batch in loader)`: "
            f"{error}"
        ) from error


def _fit_in_one_pass(
    blended: Blended, ends: Mapping[str, str], batch: Inputs, ridge: float
) -> None:
    """Fit each linear end when the branch is about to call it first; what it reads is final."""
    wide: dict[str, Tensor] = {}
    left = dict(ends)

    def keep(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        wide.setdefault(name, tensors((args, kwargs))[0])  # nothing works in place in a program

    def fit(name: str, end: Expand, args: Any) -> None:
        if name in left:
            consumer = left.pop(name)
            sums = products(end, args[0], wide.pop(consumer), consumer)
            write_fit(end, sums, ridge, consumer)

    with ExitStack() as hooks:
        for name in ends.values():
            layer = blended.model.get_submodule(name)
            hook = layer.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
            hooks.callback(hook.remove)
        _run(blended, 1.0, batch)
    for name in {*ends.values()} - {*wide}:
        raise _not_reached(name)
    with ExitStack() as hooks:
        for name in ends:
            end = blended.expand.get_submodule(name)
            hooks.callback(end.register_forward_pre_hook(partial(fit, name)).remove)
        _run(blended, 0.0, batch)
    for name in left.values():
        raise _not_reached(name)


def _fit(
    blended: Blended, name: str, consumer: str, batches: Sequence[Inputs], ridge: float
) -> None:
    """Fit one linear end."""
    end = blended.expand.get_submodule(name)
    assert isinstance(end, Expand)
    layer = blended.model.get_submodule(consumer)
    sums: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        wide = _input_of(layer, partial(_run, blended, 1.0, batch), consumer)
        narrow = _input_of(end, partial(_run, blended, 0.0, batch), consumer)
        found = products(end, narrow, wide, consumer)
        pairs = zip(sums, found, strict=True) if sums else ()
        sums = [(a + c, b + d) for (a, b), (c, d) in pairs] or found
    write_fit(end, sums, ridge, consumer)


def write_fit(end: Expand, sums: Sequence[tuple[Tensor, Tensor]], ridge: float, where: str) -> None:
    """Give a linear end the matrices that fit best.

    Args:
        end: The end; it is changed.
        sums: What `products` returns, or the sum of it over batches.
        ridge: See `fit_expand`.
        where: The layer that reads through the end, for the error.

    Raises:
        PruneError: The sums are not finite.
    """
    for weight, (square, mixed) in zip(end.weights, sums, strict=True):
        if not (square.isfinite().all() and mixed.isfinite().all()):
            raise PruneError(f"{where} cannot be fitted: what it reads is not finite")
        weight.copy_(solve(square, mixed, ridge).flatten(0, 1))


def products(end: Expand, narrow: Tensor, wide: Tensor, where: str) -> list[tuple[Tensor, Tensor]]:
    """Return `ũ ũᵀ` and `ũ uᵀ` of each piece that has a matrix, over all of its samples.

    Args:
        end: The end.
        narrow: What it maps.
        wide: What that should come to.
        where: The layer that reads through it, for the error.

    Returns:
        Tensors of shape (m, k/m, k/m) and (m, k/m, C/m) in float64, m the piece's blocks.
    """
    products = []
    for (x, (piece, weight)), (u, _) in zip(
        end.cut(narrow, "kept"), end.cut(wide, "wide"), strict=True
    ):
        if weight is None:
            continue
        a = _samples(x, piece, end.dim, piece.kept)
        b = _samples(u, piece, end.dim, piece.wide)
        if len(a) != len(b) or not a.numel():
            raise PruneError(
                f"{where} cannot be fitted: it reads tensors of shape {tuple(wide.shape)} in the "
                f"wide path and {tuple(narrow.shape)} in the branch"
            )
        products.append((_product(a, a), _product(a, b)))
    return products


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return `Σ a bᵀ` over samples, of each block, in float64: a part of them at a time."""
    parts = zip(a.split(AT_ONCE), b.split(AT_ONCE), strict=True)
    found = [torch.einsum("mgi,mgj->gij", x.double(), y.double()) for x, y in parts]
    return torch.stack(found).sum(0)


def _samples(x: Tensor, piece: EndPiece, dim: int, channels: int) -> Tensor:
    """Return the samples of a piece's channels: shape (M, m, channels/m)."""
    entries: Tensor = x.movedim(dim, -1).unflatten(-1, (channels, piece.repeat))
    return entries.transpose(-1, -2).reshape(-1, piece.blocks, channels // piece.blocks)


def solve(square: Tensor, mixed: Tensor, ridge: float) -> Tensor:
    """Return B that minimises `‖u − B ũ‖² + λ ‖B‖²`, the smallest where there are several.

    Args:
        square: `ũ ũᵀ` of each block, shape (G, k, k).
        mixed: `ũ uᵀ` of each block, shape (G, k, C).
        ridge: λ as a share of the mean of the diagonal of `ũ ũᵀ`.

    Returns:
        B of each block, shape (G, C, k), float64 on the CPU.
    """
    square, mixed = square.cpu(), mixed.cpu()
    added = ridge * square.diagonal(dim1=1, dim2=2).mean(1)
    regular = square + torch.diag_embed(added[:, None].expand(square.shape[:2]))
    if ridge >= WELL_CONDITIONED:
        factor, failed = torch.linalg.cholesky_ex(regular)
        if not failed.any():
            return torch.cholesky_solve(mixed, factor).transpose(1, 2)
    solution: Tensor = torch.linalg.lstsq(regular, mixed, driver="gelsd").solution
    return solution.transpose(1, 2)
