"""The command that makes a trained model small with a folder of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from torch import Tensor

from branchprune.artifacts.card import write_card
from branchprune.artifacts.serialization import write_model
from branchprune.cli.model_and_images import add_model_and_images, new_file, warnings_in_a_line
from branchprune.cli.named_model import named
from branchprune.cli.progress import progress
from branchprune.cli.target_options import add_target, asked
from branchprune.cli.trained import trained
from branchprune.data.files import read_frames
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.few_images.card import facts_of
from branchprune.few_images.compress import STEPS, compress, counted
from branchprune.graph.inputs import tensors

ABOUT = """Make a trained model small with a folder of images, without labels: choose channels, fit,
and let the small model learn what the layers of the large one read; write it, and a card beside it.
It runs on the CPU, or where a model that is imported is."""
OUTPUT = """file to write, with a card beside it, small.md; files that exist are refused"""
BATCH = "images a step; else 64, or as few as 16 where few steps fit into the minutes"


def main(args: Sequence[str], console: Console) -> None:
    """Compress a model, save it with its card, and print what it costs and how well it agrees.

    Raises:
        PruneError: An argument is wrong, the model cannot be built or compressed, or an image
            cannot be read.
    """
    options = parsed(_parser(), args)
    widths = asked(options)
    output = new_file(options.output, ".safetensors", ".md")
    origin, checkpoint = named(options.model, options.init_args, options.checkpoint)
    origin.as_fields()  # what cannot be written is told now
    model, known = trained(origin, checkpoint)
    wanted = known.but(options.image_size, options.mean, options.std)
    names = ("exclude", "minutes", "steps", "batch_size", "seed")
    chosen = widths | {name: options[name] for name in names}
    with progress(console) as shown, warnings_in_a_line():

        def images() -> Iterator[Tensor]:
            files = read_frames([options.images])
            shown.begin(f"reading {counted(len(files))}")
            yield wanted.read(options.images, options.grey)

        found = compress(  # which looks at images once all else is checked
            model, images(), **chosen, progress=shown.step, phase=shown.begin
        )
    size, keep = tensors(found.plan.whole)[0].shape[-2:], widths["keep"]
    write_model(found.model, output, facts_of(found, size, wanted.mean, wanted.std, origin, keep))
    beside = write_card(output, options.model)
    console.print(f"{found}\n{output}\n{beside}", markup=False, highlight=False, soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune compress", ABOUT)
    add_model_and_images(parser)
    add = parser.add_argument
    add("--output", type=Path, default=Path("small.safetensors"), help=OUTPUT)
    add_target(parser, "two images at once", "one image", "chosen on the images")
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
