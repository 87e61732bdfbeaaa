"""What `branchprune.plan` costs, in seconds and in memory, beside Torch-Pruning's graph.

```
python scripts/plan_speed.py --output runs/plan_speed.json
```

Torch-Pruning is optional (`pip install 'branchprune[compare]'`); without it only our own rows
appear.

*Seconds.* Both sides get the same model object, in evaluation mode, and the same example. A pair is
one call of `plan` and one of Torch-Pruning, which changes places with it from pair to pair.
Torch-Pruning has two rows of one call: `build_dependency` alone, and with all groups enumerated,
since `plan` lists groups too. Quotients are taken within a pair. Torch-Pruning gets the example as
a tuple: given a tensor it first unpacks the batch, fails with one image, and runs the model again.
Torch-Pruning runs the model, `plan` only computes its shapes: with several threads on a machine
that is shared the model may be slowed down more, so use `--threads 1` there, and see `load`.

*With a target* a plan takes longer: what each group loses is measured on images, and widths are
chosen. That is timed once, after the others.

*Memory.* In a fresh process a tiny other network is planned first, then the model is built, what
the allocator holds free is returned, the peak of resident memory is reset, and `plan` runs once.
Growth is that peak minus the resident memory just before: copies, activations, the plan itself and
whatever code is loaded. The figure is (bytes of parameters and buffers + growth) / those bytes.
Where the kernel cannot reset a peak, growth is that of the process's peak (`ru_maxrss`), a lower
bound; the result's `method` says which it is.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

import branchprune as bp
from branchprune.benchmarks.bench import Row
from branchprune.benchmarks.child import forget_peak, resident, run_child
from branchprune.benchmarks.options import options_parser
from branchprune.experiments import environment

LEFT_OUT = ("output", "record", "probe")
"""Options that do not change what is measured."""
AT_ONCE = 64
"""Images in a batch on which what groups lose is measured."""
NAMES = {
    "plan": "plan",
    "torch_pruning_graph": "Torch-Pruning's graph",
    "torch_pruning_groups": "Torch-Pruning's graph and groups",
}


@dataclass
class Options:
    """Options of the script.

    Args:
        model: Name of the torchvision classifier whose planning is timed.
        image_size: Height and width of its example, a batch of one.
        pairs: Pairs of timed calls.
        target_images: Images for the plan with a target; 0: there is none.
        target_image_size: Their height and width.
        memory_model: Name of the torchvision classifier for memory: many parameters.
        memory_image_size: Height and width of its example: small, so that activations are.
        memory_runs: Fresh processes a side for memory; 0: none.
        threads: Threads; 0: as many as torch chooses.
        output: File for the result as JSON.
        record: Write it to the committed results instead.
        probe: Measure one side's memory in this process; the script calls itself with it.
    """

    model: str = "resnet50"
    image_size: int = 224
    pairs: int = 9
    target_images: int = 128
    target_image_size: int = 64
    memory_model: str = "vgg16"
    memory_image_size: int = 32
    memory_runs: int = 3
    threads: int = 0
    output: Path | None = None
    record: bool = False
    probe: Literal["plan", "torch_pruning_groups"] | None = None


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print a table and write the result."""
    options = _parse(args)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.probe is not None:
        print(json.dumps(probe(options)))
        return 0
    console, pruning = Console(), torch_pruning()
    if pruning is None:
        hint = "`pip install 'branchprune[compare]'` adds its rows."
        console.print(f"Torch-Pruning is missing: {hint}", markup=False)
    # Memory comes first: a child's ru_maxrss starts from what its parent held.
    memory = measure_memory(options, pruning) if options.memory_runs else None
    seconds = measure_seconds(options, pruning)
    target = [target_row(options)] if options.target_images else []
    rows = [*second_rows(seconds), *target, *(memory_rows(memory) if memory else [])]
    console.print(_table(options, rows))
    output = environment.recorded("plan_speed.json") if options.record else options.output
    if output is not None:
        found = {} if pruning is None else {"torch_pruning": version("torch-pruning")}
        content = _environment(options) | {
            "versions": environment.versions() | found,
            "rows": [asdict(row) for row in rows],
            "samples": {"seconds": seconds, "memory": memory},
        }
        output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _environment(options: Options) -> dict[str, Any]:
    return {
        "hardware": environment.hardware(),
        "commit": environment.commit(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "options": {k: v for k, v in asdict(options).items() if k not in LEFT_OUT},
    }


def _parse(args: Sequence[str] | None) -> Options:
    parser = options_parser("plan_speed.py", Options, description=__doc__.split("\n", 1)[0])
    options = Options(**vars(parser.parse_args(args)))
    known = models.list_models(module=models)
    for key in ("model", "memory_model"):
        if (name := getattr(options, key)) not in known:
            parser.error(f"{key} (={name}) must be one of torchvision's: {', '.join(known)}")
    for key, least in (("pairs", 1), ("target_images", 0), ("memory_runs", 0), ("threads", 0)):
        if (value := getattr(options, key)) < least:
            parser.error(f"{key} (={value}) must be at least {least}")
    return options


def torch_pruning() -> ModuleType | None:
    """Return Torch-Pruning if it is installed."""
    try:
        version("torch-pruning")
        return importlib.import_module("torch_pruning")
    except ImportError:
        return None


def measure_seconds(options: Options, pruning: ModuleType | None) -> dict[str, list[float]]:
    """Return the seconds of every call, by what was called, in the order of the pairs."""
    model, example = _build(options.model, options.image_size)
    sides = ["plan"] if pruning is None else ["plan", "torch_pruning"]
    for side in sides:
        _run(side, *_tiny(), pruning)
    samples: dict[str, list[float]] = {name: [] for name in NAMES if pruning or name == "plan"}
    for i in range(options.pairs):
        for side in reversed(sides) if i % 2 else sides:
            gc.collect()
            for name, seconds in _run(side, model, example, pruning).items():
                samples[name].append(seconds)
    return samples


def _run(
    side: str, model: nn.Module, example: Tensor, pruning: ModuleType | None
) -> dict[str, float]:
    """Plan a model, or have Torch-Pruning analyse it; return the seconds up to each result."""
    start = time.perf_counter()
    if side == "plan":
        plan = bp.plan(model, example)
        seconds = {"plan": time.perf_counter() - start}
        del plan
        return seconds
    assert pruning is not None
    graph = pruning.DependencyGraph().build_dependency(model, example_inputs=(example,))
    seconds = {"torch_pruning_graph": time.perf_counter() - start}
    for _ in graph.get_all_groups():
        pass
    return seconds | {"torch_pruning_groups": time.perf_counter() - start}


def measure_memory(options: Options, pruning: ModuleType | None) -> dict[str, Any]:
    """Return the bytes of the model and, by side, the peak growth in each fresh process."""
    sides = ["plan"] if pruning is None else ["plan", "torch_pruning_groups"]
    growth: dict[str, list[int]] = {side: [] for side in sides}
    for _ in range(options.memory_runs):
        for side in sides:
            result = _child(options, side)
            growth[side].append(result.pop("growth_bytes"))
    name = f"{options.memory_model} at {options.memory_image_size}"
    return {"model": name, **result, "growth_bytes": growth}


def _child(options: Options, side: str) -> dict[str, Any]:
    arguments = [str(Path(__file__).resolve()), f"--probe={side}"]
    for key in ("memory_model", "memory_image_size", "threads"):
        arguments.append(f"--{key}={getattr(options, key)}")
    lines, error = run_child(arguments)
    if error is not None:
        raise bp.PruneError(f"memory of {side} could not be measured: {error}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def probe(options: Options) -> dict[str, Any]:
    """Return by how many bytes one call raises the peak of this process's resident memory."""
    pruning = torch_pruning()
    side = str(options.probe)
    _run(side, *_tiny(), pruning)
    model, example = _build(options.memory_model, options.memory_image_size)
    held = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    method = forget_peak()
    before = resident(method)
    _run(side, model, example, pruning)
    growth = resident(method) - before
    return {"method": method, "model_bytes": sum(held.values()), "growth_bytes": growth}


def _build(name: str, size: int) -> tuple[nn.Module, Tensor]:
    model: nn.Module = models.get_model(name, weights=None)
    return model.eval(), torch.randn(1, 3, size, size)


def _tiny() -> tuple[nn.Module, Tensor]:
    """Return a network for the warm-up, so that lazy imports do not count."""
    first = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*first, *last).eval(), torch.randn(1, 3, 8, 8)


def second_rows(samples: dict[str, list[float]]) -> list[Row]:
    """Return the seconds of each side and how `plan` compares with it, pair by pair."""
    rows = [_row(f"{NAMES[name]}, seconds", values) for name, values in samples.items()]
    for name in [name for name in samples if name != "plan"]:
        pairs = zip(samples["plan"], samples[name], strict=True)
        rows.append(_row(f"plan / {NAMES[name]}", [ours / theirs for ours, theirs in pairs]))
    return rows


def target_row(options: Options) -> Row:
    """Return the seconds of a plan for half of the multiply-adds."""
    model, _ = _build(options.model, options.image_size)
    n, size = options.target_images, options.target_image_size
    images = torch.randn(n, 3, size, size)
    start = time.perf_counter()
    bp.plan(model, images[:1], target={"macs": 0.5}, batches=images.split(AT_ONCE))
    seconds = time.perf_counter() - start
    what = f"plan for half of the multiply-adds ({n} images of {size}×{size}), seconds"
    return _row(what, [seconds], "≤ 120")


def memory_rows(memory: dict[str, Any]) -> list[Row]:
    """Return the peak of each side, in bytes of the model."""
    size = memory["model_bytes"]
    return [
        _row(
            f"peak memory in {NAMES[side]} / model ({memory['model']})",
            [(size + growth) / size for growth in values],
            "≤ 1.5" if side == "plan" else "",
        )
        for side, values in memory["growth_bytes"].items()
    ]


def _row(what: str, values: Sequence[float], target: str = "") -> Row:
    values = values if len(values) > 1 else [*values, *values]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Row(what, middle, low, high, target)


def _table(options: Options, rows: Sequence[Row]) -> Table:
    size = f"{options.image_size}×{options.image_size}"
    table = Table(title=f"{options.model}, {size}, batch 1, {environment.hardware()}")
    for column in ("what", "median", "quartiles", "target"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(row.what, f"{row.value:.3f}", f"{row.low:.3f}–{row.high:.3f}", row.target)
    return table


if __name__ == "__main__":
    sys.exit(main())
