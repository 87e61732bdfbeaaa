"""The options of commands that look at a trained model with a folder of images."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn

from branchprune.cli.named_model import CHECKPOINT, INIT_ARGS, MODEL, named
from branchprune.cli.trained import trained
from branchprune.errors import PruneError
from branchprune.few_images.compress import CHECKED
from branchprune.few_images.fitness import warn_if_strange
from branchprune.few_images.start import looked_at

WEIGHTS = f"{CHECKPOINT}; of a model of torchvision or timm, without this, those that it has there"
SIZE = """height and width of the images, '[96, 128]', or one number for both: they are resized
until both sides fill it, and what is over at two ends is cut off. Of a model of torchvision or timm
with the weights that it has there, images are prepared as its own evaluation does, if neither this
nor mean or std is given"""
MEAN = """mean of each channel (R, G, B), in images of [0, 1], that the model was trained with:
'[0.5, 0.4, 0.3]'"""

PREPARATION = ("image_size", "grey", "mean", "std")
"""The options that say what images a model wants."""


def add_model_and_images(parser: ArgumentParser) -> None:
    """Add the arguments that name a model and its weights, and say what images it wants."""
    add = parser.add_argument
    add("model", type=str, help=MODEL)
    add("images", type=Path, help="folder of images without labels, nested in any way")
    add("--checkpoint", type=Path | None, default=None, metavar="FILE", help=WEIGHTS)
    add("--init_args", type=dict[str, Any], default={}, help=INIT_ARGS)
    add_preparation(parser)
    add("--exclude", action="append", default=[], metavar="PATH", help="layer that stays")


def add_preparation(parser: ArgumentParser) -> None:
    """Add the options that say what images a model wants."""
    add = parser.add_argument
    add("--image_size", type=int | tuple[int, int] | None, default=None, help=SIZE)
    add("--grey", type=bool, default=False, help="give the model images of one channel")
    add("--mean", type=list[float] | None, default=None, help=MEAN)
    add("--std", type=list[float] | None, default=None, help="standard deviation, likewise")


def trained_with_images(options: Namespace) -> tuple[nn.Module, Tensor]:
    """Return the model with its weights, and as many of the images as choices are made on.

    Args:
        options: Those of a command.

    Raises:
        PruneError: The model cannot be built, or an image cannot be read.
    """
    model, known = trained(*named(options.model, options.init_args, options.checkpoint))
    wanted = known.but(options.image_size, options.mean, options.std)
    images = looked_at(wanted.read(options.images, options.grey))
    with warnings_in_a_line(), suppress(Exception):  # what the model does not take is told later
        warn_if_strange(model, images[:CHECKED])
    return model, images


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
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


def new_file(path: Path, ending: str, *others: str) -> Path:
    """Return where to write; it, and files of its name with other endings, must be new.

    Args:
        path: The file, as the user named it with `--output`.
        ending: Of its name.
        others: Endings of files that are written beside it.

    Raises:
        PruneError: A file is there already, or no folder for it, or it has another ending.
    """
    if path.suffix != ending:
        raise PruneError(f"output (={str(path)!r}) must end in {ending}")
    for file in (path, *map(path.with_suffix, others)):
        if file.exists():
            raise PruneError(f"output (={str(path)!r}): {file} exists; move it, or name another")
    if not path.parent.is_dir():
        raise PruneError(f"output (={str(path)!r}): there is no folder {path.parent}")
    return path
