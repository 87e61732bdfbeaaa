"""The command that makes a trained model small with a folder of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console
from torch import Tensor

from branchprune.artifacts.origin import origin_fields
from branchprune.artifacts.serialization import save
from branchprune.cli.model_and_images import add_model_and_images, new_file, warnings_in_a_line
from branchprune.cli.named_model import named
from branchprune.cli.plan import KEEP
from branchprune.cli.progress import progress
from branchprune.cli.trained import trained
from branchprune.data.files import read_frames
from branchprune.errors import PruneError
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.few_images.card import card
from branchprune.few_images.compress import STEPS, compress, counted
from branchprune.graph.inputs import tensors
from branchprune.runtimes.named import RUNTIMES, runtime_of
from branchprune.targets.goal import check_asked, check_runtime, needing_runtime

ABOUT = """Make a trained model small with a folder of images, without labels: choose channels, fit,
and let the small model learn what the layers of the large one read; write it, and a card beside it.
It runs on the CPU, or where a model that is imported is."""
TARGET = """what to reach in place of --keep, as the share that is kept, below 1, or as a number:
--target.macs 0.5, --target.params 2e6, --target.memory 4e6 (bytes, for two images at once),
--target.latency 0.5 or --target.latency_ms 5 (of one image, in --runtime); the widths are chosen on
the images"""
OUTPUT = """file to write, with a card beside it, small.md; files that exist are refused"""
RUNTIME = """where the latency is measured, for --target.latency, --target.latency_ms or
--multiple_of auto"""
BATCH = "images a step; else 64, or as few as 16 where few steps fit into the minutes"


def main(args: Sequence[str], console: Console) -> None:
    """Compress a model, save it with its card, and print what it costs and how well it agrees.

    Raises:
        PruneError: An argument is wrong, the model cannot be built or compressed, or an image
            cannot be read.
    """
    options = parsed(_parser(), args)
    check_asked(options.keep, options.target, options.multiple_of)
    if options.threads is not None and options.runtime is None:
        raise PruneError(f"threads (={options.threads}) are those of a runtime: give --runtime")
    runtime = runtime_of(options.runtime, options.threads)
    check_runtime(needing_runtime(options.target or {}, options.multiple_of), runtime is not None)
    if runtime is not None and not needing_runtime(options.target or {}, options.multiple_of):
        raise PruneError(
            f"runtime (={options.runtime!r}) is where a latency is measured: give "
            "--target.latency_ms 5, --target.latency 0.5 or --multiple_of auto, or leave it out"
        )
    output = new_file(options.output, ".safetensors", ".md")
    origin, checkpoint = named(options.model, options.init_args, options.checkpoint)
    origin_fields(origin.made_by, origin.init_args)  # what cannot be written is told now
    model, known = trained(origin, checkpoint)
    wanted = known.but(options.image_size, options.mean, options.std)
    names = ("keep", "target", "exclude", "multiple_of", "minutes", "steps", "batch_size", "seed")
    chosen = {name: options[name] for name in names}
    chosen["runtime"] = runtime
    with progress(console) as shown, warnings_in_a_line():

        def images() -> Iterator[Tensor]:
            files = read_frames([options.images])
            shown.begin(f"reading {counted(len(files))}")
            yield wanted.read(options.images, options.grey)

        found = compress(  # which looks at images once all else is checked
            model, images(), **chosen, progress=shown.step, phase=shown.begin
        )
    save(found.model, output, origin.made_by, origin.init_args)
    text = card(
        found, options.model, tensors(found.plan.whole)[0].shape[-2:], wanted.mean, wanted.std
    )
    beside = output.with_suffix(".md")
    beside.write_text(text, encoding="utf-8")
    console.print(f"{found}\n{output}\n{beside}", markup=False, highlight=False, soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune compress", ABOUT)
    add_model_and_images(parser)
    add = parser.add_argument
    add("--output", type=Path, default=Path("small.safetensors"), help=OUTPUT)
    add(
        "--keep",
        type=float | dict[str, float] | None,
        default=None,
        help=f"{KEEP}; without this and --target it is 0.5",
    )
    add("--target", type=dict[str, float] | None, default=None, help=TARGET)
    add(
        "--multiple_of",
        type=PositiveInt | Literal["auto"],
        default=1,
        help="round the kept widths to it; auto: to what pays in --runtime",
    )
    add("--runtime", type=Literal[(*RUNTIMES,)] | None, default=None, help=RUNTIME)
    add(
        "--threads",
        type=PositiveInt | None,
        default=None,
        help="those of --runtime; else one a core",
    )
    add(
        "--minutes",
        type=float | None,
        default=None,
        help="how long it may take: as many steps as fit in",
    )
    add(
        "--steps",
        type=int | None,
        default=None,
        help=f"steps of learning; {STEPS} without --minutes",
    )
    add("--batch_size", type=int | None, default=None, help=BATCH)
    add("--seed", type=int, default=0, help="seed of all that is drawn")
    return parser
