"""Coverage: every model of a library is planned, blended and collapsed, with nothing set by hand.

Each model has a fresh process of its own (`python -m branchprune.benchmarks.zoo`), which gives its
memory back and whose end, whatever the cause, ends nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from fnmatch import filter as matching
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentError
from jsonargparse.typing import OpenUnitInterval, PositiveFloat, PositiveInt
from rich.console import Console
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from branchprune.benchmarks import zoo_table
from branchprune.benchmarks.child import give_memory_back, one_line, parse, resident, run_child
from branchprune.benchmarks.options import options_parser
from branchprune.benchmarks.zoo_models import LIBRARIES, smallest
from branchprune.benchmarks.zoo_table import Row
from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.errors import PruneError
from branchprune.experiments import environment
from branchprune.graph.draws import DrawsAlike
from branchprune.graph.folding import spanned
from branchprune.graph.inputs import call, tensors, training_mode
from branchprune.planning.plan import Plan, plan
from branchprune.planning.profiling import count_macs, count_params

LARGEST_ENDS = 150_000_000
"""Entries of the linear ends that a model is given at once; above it is pruned in rounds."""


@dataclass
class Options:
    """Options of `branchprune zoo`.

    Args:
        library: torchvision, timm, segmentation_models_pytorch or ultralytics.
        output: Folder for zoo.jsonl, zoo.csv and zoo.md; what succeeded there is not run again.
        record: Write to the committed results instead.
        models: Names, or patterns such as resnet*.
        smallest: Only the smallest model of each family.
        keep: Fraction of the channels to keep.
        jobs: Models side by side.
        seed: Seed of weights, inputs and noise.
        timeout: Seconds that a model may take.
        image_size: Height and width; null: the size at which the model's weights are evaluated.
    """

    library: Literal["torchvision", "timm", "segmentation_models_pytorch", "ultralytics"] = (
        "torchvision"
    )
    output: Path = Path("runs/zoo")
    record: bool = False
    models: list[str] | str = "*"
    smallest: bool = False
    keep: OpenUnitInterval = 0.5
    jobs: PositiveInt = 1
    seed: int = 0
    timeout: PositiveFloat = 1800
    image_size: PositiveInt | None = None


def main(args: Sequence[str], console: Console) -> int:
    """Measure the models and write the tables; return 1 if a model fails, else 0.

    Raises:
        PruneError: An option is wrong, the library is missing, or the output cannot be written.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    parser = options_parser("branchprune zoo", Options, exit_on_error=False)
    try:
        options = Options(**vars(parser.parse_args(list(args))))
        if options.record:
            options = replace(options, output=environment.recorded(""))
        blank = _blank_rows(options)
        options.output.mkdir(parents=True, exist_ok=True)
        rows = zoo_table.read_rows(options.output / "zoo.jsonl")
        todo = [row for key, row in blank.items() if key not in rows or not rows[key].exact]
        say(f"{len(blank) - len(todo)} models are done, {len(todo)} to do")
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = [pool.submit(run_apart, row, options.timeout) for row in todo]
            try:
                for i, future in enumerate(as_completed(futures), 1):
                    row = future.result()
                    rows[row.key] = row
                    zoo_table.append_row(options.output, row)
                    zoo_table.write_tables(options.output, rows, row.key[:-1])
                    say(f"{i}/{len(todo)} {row.progress()}")
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        mine = [rows[key] for key in blank]
        zoo_table.write_tables(options.output, rows, mine[0].key[:-1])
    except ArgumentError as error:
        raise PruneError(str(error)) from error
    except OSError as error:
        raise PruneError(f"output folder {options.output} cannot be written: {error}") from error
    say(zoo_table.markdown_summary(mine))
    return int(not all(row.exact for row in mine))


def _blank_rows(options: Options) -> dict[zoo_table.Key, Row]:
    """Return a row for each model that the options name, with nothing measured yet."""
    list_models, build = LIBRARIES[options.library]
    families = list_models()
    patterns = [options.models] if isinstance(options.models, str) else options.models
    found = {pattern: matching(families, pattern) for pattern in patterns}
    for pattern in [pattern for pattern, names in found.items() if not names]:
        raise PruneError(f"models names {pattern!r}, which {options.library} lacks")
    wanted = {name for names in found.values() for name in names}
    families = {name: family for name, family in families.items() if name in wanted}
    families = smallest(families, build) if options.smallest else families
    threads = max(1, torch.get_num_threads() // options.jobs)
    settings = (options.keep, options.seed, options.image_size, threads, options.smallest)
    rows = [Row(options.library, n, f, *settings) for n, f in families.items()]
    return {row.key: row for row in rows}


def run_apart(row: Row, timeout: float) -> Row:
    """Measure a model in a process of its own, for some seconds; return how far it came."""
    module = ["-W", "ignore", "-m", "branchprune.benchmarks.zoo"]
    lines, error = run_child([*module, json.dumps(asdict(row))], timeout)
    for line in lines:
        row = parse(line, Row) or row
    if error is not None:
        row.error, row.exact = error, False
    return row


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
    row.params_before, row.macs_before = count_params(model), _all_macs(model, example)
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
    row.params_after, row.macs_after = count_params(model), _all_macs(model, example)
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
                length = sum(piece.size for piece in pieces) // layer.groups
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


def _all_macs(model: nn.Module, example: Tensor) -> int:
    """Count with attention as matrix products: PyTorch does not look into fused kernels."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return count_macs(model, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


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
