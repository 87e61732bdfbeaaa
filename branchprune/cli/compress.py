"""The command that makes a trained model small with a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console

from branchprune.artifacts.origin import origin_fields
from branchprune.artifacts.serialization import save
from branchprune.cli.model_and_images import add_model_and_images, new_file, warnings_in_a_line
from branchprune.cli.named_model import named
from branchprune.cli.plan import KEEP
from branchprune.cli.progress import progress
from branchprune.cli.trained import trained
from branchprune.errors import PruneError
from branchprune.experiments.run.parser_errors import explained
from branchprune.few_images.card import card
from branchprune.few_images.compress import STEPS, compress
from branchprune.graph.inputs import tensors
from branchprune.runtimes.named import RUNTIMES, runtime_of
from branchprune.targets.goal import check_asked, check_runtime, needing_runtime

TARGET = """what to reach in place of --keep, as the share that is kept or as a number,
such as '{macs: 0.5}', '{params: 2e6}', '{memory: 4e6}', in bytes for two images at once, or
'{latency_ms: 5}', of one image in --runtime; the widths are chosen on the images"""
RUNTIME = "where the latency is measured, for --target.latency_ms or --multiple_of auto"
BATCH = "images a step; else 64, or as few as 16 where few steps fit into the minutes"


def main(args: Sequence[str], console: Console) -> None:
    """Compress a model, save it with its card, and print what it costs and how well it agrees.

    Raises:
        PruneError: An argument is wrong, the model cannot be built or compressed, or an image
            cannot be read.
    """
    try:
        options = _parser().parse_args([*args])
    except ArgumentError as error:
        raise PruneError(explained(error)) from error
    check_asked(options.keep, options.target, options.multiple_of)
    runtime = runtime_of(options.runtime, options.threads)
    check_runtime(needing_runtime(options.target or {}, options.multiple_of), runtime is not None)
    output = new_file(options.output, ".safetensors", options.output.with_suffix(".md"))
    origin, checkpoint = named(options.model, options.init_args, options.checkpoint)
    origin_fields(origin.made_by, origin.init_args)  # what cannot be written is told now
    model, known = trained(origin, checkpoint)
    wanted = known.but(options.image_size, options.mean, options.std)
    images = (wanted.read(options.images, options.grey) for _ in range(1))  # once all is checked
    names = ("keep", "target", "exclude", "multiple_of", "minutes", "steps", "batch_size", "seed")
    chosen = {name: options[name] for name in names}
    chosen["runtime"] = runtime
    told = progress(console, "choosing channels, trying learning rates")
    with told as show, warnings_in_a_line():
        found = compress(model, images, **chosen, progress=show)
    save(found.model, output, origin.made_by, origin.init_args)
    text = card(
        found, options.model, tensors(found.plan.whole)[0].shape[-2:], wanted.mean, wanted.std
    )
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    console.print(f"{found}\n{output}", markup=False, highlight=False, soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="branchprune compress", exit_on_error=False)
    add_model_and_images(parser)
    add = parser.add_argument
    add("--output", type=Path, default=Path("small.safetensors"), help="file to write")
    add("--keep", type=float | dict[str, float] | None, default=None, help=f"{KEEP}; 0.5")
    add("--target", type=dict[str, float] | None, default=None, help=TARGET)
    add(
        "--multiple_of",
        type=PositiveInt | Literal["auto"],
        default=1,
        help="round the kept widths to it; auto: to what pays in --runtime",
    )
    add("--runtime", type=Literal[(*RUNTIMES,)] | None, default=None, help=RUNTIME)
    add("--threads", type=PositiveInt | None, default=None, help="of it; else one a core")
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
