"""One measurement of `branchprune zoo`: a model is planned, blended and collapsed.

`python -m branchprune.benchmarks.zoo_child '<a Row as JSON>'` prints the row, filled in, as a line
of JSON, whenever a stage begins and at the end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version

import torch
from torch import Tensor, nn

from branchprune.benchmarks.child import give_memory_back, one_line, resident
from branchprune.benchmarks.zoo_models import LIBRARIES
from branchprune.benchmarks.zoo_table import Row
from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.errors import PruneError
from branchprune.experiments import environment
from branchprune.graph.draws import DrawsAlike
from branchprune.graph.folding import spanned
from branchprune.graph.inputs import call, tensors, training_mode
from branchprune.graph.structure import size_of
from branchprune.planning.plan import Plan, plan
from branchprune.planning.profiling import count_macs, count_params

LARGEST_ENDS = 150_000_000
"""Entries of the linear ends that a model is given at once; above it is pruned in rounds."""


class Stages:
    """Tells how far a row has come, and how long each stage took."""

    def __init__(self, row: Row, report: Callable[[Row], None]) -> None:
        self.row, self.report, self.begun = row, report, time.perf_counter()

    def enter(self, name: str) -> None:
        """End the stage before, give its memory back, and begin one."""
        give_memory_back()
        now = time.perf_counter()
        spent = self.row.seconds.get(self.row.stage, 0.0) + now - self.begun
        self.row.seconds[self.row.stage], self.begun = spent, now
        self.row.stage = name
        self.report(self.row)


def measure(row: Row, report: Callable[[Row], None]) -> None:
    """Take a model through plan, attach and collapse, and fill in what is found.

    Args:
        row: The model and the settings; it is changed.
        report: Called with the row whenever a stage begins.

    Raises:
        PruneError: A step refuses the model, or a check fails.
    """
    stages = Stages(row, report)
    torch.manual_seed(row.seed)
    model, shape = LIBRARIES[row.library][1](row.model, row.image_size)
    disturb(model, row.seed, only_constant=True)
    row.input_shape, example, batch = [*shape], torch.randn(1, *shape), torch.randn(2, *shape)
    row.params_before, row.macs_before = count_params(model), count_macs(model, example)
    stages.enter("plan")
    planned = whole = plan(model, example, row.keep)
    row.describe(whole)
    rounds = _rounds(whole)
    row.rounds, row.difference_eval, row.difference_train = len(rounds), 0.0, 0.0
    row.collapse_error = None
    for number, keep in enumerate(rounds):
        if len(rounds) > 1:
            stages.enter("plan")
            planned = plan(model, example, {layer: row.keep for layer in keep})
        stages.enter("attach")
        blended = attach(model, planned)
        stages.enter("alpha = 1")
        _compare(row, model, blended, batch)
        del model  # the largest fit into memory a few times only
        for i, part in enumerate((blended.reduce, blended.expand, blended.twin), 1):
            disturb(part, row.seed + 3 * number + i, only_constant=False)
        blended.alpha = 0.0
        stages.enter("collapse")
        model, error = collapse_with_error(blended)
        row.collapse_error = max(error, row.collapse_error or 0.0)
        del blended
    stages.enter("result")
    row.params_after, row.macs_after = count_params(model), count_macs(model, example)
    if row.params_after != whole.after.params:
        raise PruneError(f"{row.params_after} parameters, planned were {whole.after.params}")
    stages.enter("done")
    row.exact = True


def _rounds(planned: Plan) -> list[list[str]]:
    """Divide the layers to prune into rounds, in each of which the linear ends fit into memory."""
    rounds: list[list[str]] = [[]]
    filled = 0
    for i in planned.pruned:
        group, size = planned.groups[i], 0
        for layer in planned.structure.linears.values():
            read = layer.inputs if layer.inputs and layer.expand == layer.name else ()
            for pieces in (layer.outputs, read):
                length = size_of(pieces) // layer.groups
                spans = [spanned(piece.size, length) for piece in pieces if piece.group == i]
                size += sum(group.width * group.kept // span for span in spans)
        if rounds[-1] and filled + size > LARGEST_ENDS:
            rounds.append([])
            filled = 0
        rounds[-1] += group.layers
        filled += size
    return rounds


def _compare(row: Row, model: nn.Module, blended: Blended, batch: Tensor) -> None:
    """Compare the blended model at alpha = 1 with the model."""
    row.difference_eval = max(
        row.difference_eval or 0.0, _difference(model, blended, batch, False, row.seed)
    )
    row.difference_train = max(
        row.difference_train or 0.0, _difference(model, blended, batch, True, row.seed)
    )
    if row.difference_eval or row.difference_train:
        raise PruneError("the outputs of the blended model are not those of the model")


def _difference(model: nn.Module, blended: Blended, x: Tensor, training: bool, seed: int) -> float:
    """Return the largest absolute difference of the outputs, both with the same random draws."""
    outputs = []
    for module in (model, blended):
        torch.manual_seed(seed)
        with torch.no_grad(), training_mode(module, training), DrawsAlike():
            outputs.append(tensors(call(module, x)))
    if not all(tensor.isfinite().all() for found in outputs for tensor in found):
        raise PruneError(f"outputs are not finite, {training=}")
    return max(float((a - b).abs().max()) for a, b in zip(*outputs, strict=True))


def disturb(module: nn.Module, seed: int, only_constant: bool) -> None:
    """Add noise to parameters (or only to constant ones) and to the running statistics of norms.

    A fresh model has biases of 0, residual scales of 0 or 1e-6, and branches that only select:
    an error in what they multiply or add would not be seen in the outputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor)

    with torch.no_grad():
        for weight in module.parameters():
            constant = bool((weight == weight.flatten()[:1]).all())
            if constant or not only_constant:
                size = float(weight.square().mean().sqrt())
                weight.add_(noise(weight) * (max(size, 1.0) if constant else size))
        for norm in module.modules():
            mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(variance, Tensor):
                mean.add_(noise(mean) * variance.sqrt())
                variance.mul_((2 * noise(variance)).exp())


def _child(row: Row) -> None:
    torch.set_num_threads(row.threads)
    row.hardware, row.commit = environment.hardware(), environment.commit()
    row.versions = environment.versions() | {row.library: version(row.library)}

    def report(row: Row) -> None:
        print(json.dumps(asdict(row)), flush=True)

    try:
        measure(row, report)
    except Exception as error:
        name = "" if isinstance(error, PruneError) else f"{type(error).__name__}: "
        row.error = one_line(f"{name}{error}")
    row.peak_memory = resident("ru_maxrss")
    report(row)


if __name__ == "__main__":
    _child(Row(**json.loads(sys.argv[1])))
