"""The command that makes a trained model small with a folder of images."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console

from branchprune.artifacts.origin import origin_fields
from branchprune.artifacts.serialization import save
from branchprune.cli.named_model import CHECKPOINT, MODEL, named
from branchprune.cli.plan import KEEP
from branchprune.cli.progress import progress
from branchprune.cli.trained import trained
from branchprune.errors import PruneError
from branchprune.experiments.run.parser_errors import explained
from branchprune.few_images.card import card
from branchprune.few_images.compress import STEPS, compress
from branchprune.graph.inputs import tensors

WEIGHTS = f"{CHECKPOINT}; of a model of torchvision or timm, without this, those that it has there"
SIZE = """height and width of the images, '[96, 128]', or one number for both: they are resized
until both sides fill it, and what is over at two ends is cut off. Of a model of torchvision or timm
with the weights that it has there, images are prepared as its own evaluation does, if neither this
nor mean or std is given"""
TARGET = """what to reach in place of --keep, as the share that is kept or as a number,
'{macs: 0.5}' or '{params: 2e6}'; the widths are chosen on the images"""
BATCH = "images a step; else 64, or as few as 16 where few steps fit into the minutes"
MEAN = """mean of each channel (R, G, B), in images of [0, 1], that the model was trained with:
'[0.5, 0.4, 0.3]'"""


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
    output = _output(options.output)
    origin, checkpoint = named(options.model, options.init_args, options.checkpoint)
    origin_fields(origin.made_by, origin.init_args)  # what cannot be written is told now
    model, known = trained(origin, checkpoint)
    wanted = known.but(options.image_size, options.mean, options.std)
    images = (wanted.read(options.images, options.grey) for _ in range(1))  # once all is checked
    names = ("keep", "target", "exclude", "multiple_of", "minutes", "steps", "batch_size", "seed")
    chosen = {name: options[name] for name in names}
    told = progress(console, "choosing channels, trying learning rates")
    with told as show, _warnings_in_a_line():
        found = compress(model, images, **chosen, progress=show)
    save(found.model, output, origin.made_by, origin.init_args)
    text = card(
        found, options.model, tensors(found.plan.whole)[0].shape[-2:], wanted.mean, wanted.std
    )
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    console.print(f"{found}\n{output}", markup=False, highlight=False, soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="branchprune compress", exit_on_error=False)
    add = parser.add_argument
    add("model", type=str, help=MODEL)
    add("images", type=Path, help="folder of images without labels, nested in any way")
    add("--output", type=Path, default=Path("small.safetensors"), help="file to write")
    add("--checkpoint", type=Path | None, default=None, metavar="FILE", help=WEIGHTS)
    add("--init_args", type=dict[str, Any], default={}, help="arguments of what is imported")
    add("--keep", type=float | dict[str, float] | None, default=None, help=f"{KEEP}; 0.5")
    add("--target", type=dict[str, float] | None, default=None, help=TARGET)
    add("--exclude", action="append", default=[], metavar="PATH", help="layer that stays")
    add("--multiple_of", type=PositiveInt, default=1, help="round the kept widths to it")
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
    add("--image_size", type=int | tuple[int, int] | None, default=None, help=SIZE)
    add("--grey", type=bool, default=False, help="give the model images of one channel")
    add("--mean", type=list[float] | None, default=None, help=MEAN)
    add("--std", type=list[float] | None, default=None, help="standard deviation, likewise")
    add("--seed", type=int, default=0, help="seed of all that is drawn")
    return parser


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Print warnings of ours without the place in the code that they come from."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category is UserWarning:
            print(f"branchprune: warning: {message}", file=sys.stderr)
        else:
            before(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _output(path: Path) -> Path:
    """Return where to write; it must be new."""
    if path.suffix != ".safetensors":
        raise PruneError(f"output (={str(path)!r}) must end in .safetensors")
    for file in (path, path.with_suffix(".md")):
        if file.exists():
            raise PruneError(f"output (={str(path)!r}): {file} exists; move it, or name another")
    if not path.parent.is_dir():
        raise PruneError(f"output (={str(path)!r}): there is no folder {path.parent}")
    return path
