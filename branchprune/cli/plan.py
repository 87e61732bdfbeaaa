"""The command that plans a model by name: what would shrink, what would stay, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt
from rich.console import Console
from torch import Tensor, nn

from branchprune.cli.model_and_images import (
    PREPARATION,
    add_preparation,
    trained_with_images,
    warnings_in_a_line,
)
from branchprune.cli.named_model import CHECKPOINT, INIT_ARGS, MODEL, Shape, build, named
from branchprune.cli.target_options import add_target, asked
from branchprune.errors import PruneError
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.graph.inputs import Example
from branchprune.planning.module_tree import ModuleRow, module_tree, tree_lines
from branchprune.planning.plan import Plan
from branchprune.targets.plan import FLOOR, plan

EXAMPLE = """shape and, if it is not float32, dtype of an input: 1x3x224x224, 1x128:int64; once for
each argument of forward; a model by name has one of its own"""
IMAGES = """folder of images without labels, on which the widths are chosen for --target; of a model
of torchvision or timm its own weights are taken then, if there is no --checkpoint"""
LEAST = f"""least share of the channels of a group that --target leaves, in (0, 1]; without this
{FLOOR:g}"""
ABOUT = """Show which channels of a model would shrink, which would stay and why, and what that
saves; nothing is trained or written, and it runs on the CPU."""


def main(args: Sequence[str], console: Console) -> None:
    """Plan a model, and print the tree of its modules and the plan, or both as JSON.

    Raises:
        PruneError: An argument is wrong, or the model cannot be built or planned.
    """
    options = parsed(_parser(), args)
    widths = asked(options)
    _check_images(options)
    model, example, batches = _model_and_inputs(options)
    names = ("exclude", "inside", "opaque", "check")
    given = widths | {name: options[name] for name in names}
    given |= {} if options.floor is None else {"floor": options.floor}
    with console.status("choosing widths") if batches else nullcontext(), warnings_in_a_line():
        planned = plan(model, example, batches=batches, **given)
    tree = module_tree(model, planned)
    text = _as_json(planned, tree) if options.json else _as_text(planned, tree, options.depth)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _check_images(options: Namespace) -> None:
    """Raise PruneError for options that need images, and for images that need a target."""
    folder, target = options.images, options.target
    given = [x for x in PREPARATION if options[x] is not None and options[x] is not False]
    if folder is None and target is not None:
        raise PruneError(
            f"target (={target}): widths are chosen by how the output changes on some images: give "
            "a folder of them, --images FOLDER"
        )
    if folder is None and given:
        raise PruneError(
            f"{given[0]} (={options[given[0]]}) says how images are read: give --images"
        )
    if folder is not None and target is None:
        raise PruneError(
            f"images (={str(folder)!r}) are there to choose widths on: give a target, "
            "--target.macs 0.5, or leave them out"
        )
    if folder is not None and options.example:
        raise PruneError(
            f"example (={options.example[0]!r}): an image of --images is the example: leave it out"
        )


def _model_and_inputs(options: Namespace) -> tuple[nn.Module, Example, list[Tensor] | None]:
    """Return the model, an example, and the images on which its widths are chosen."""
    if options.images is not None:
        model, images = trained_with_images(options)
        return model, images[:1], [images]
    model, shape = build(*named(options.model, options.init_args, options.checkpoint))
    return model, given_example(options.example, shape), None


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune plan", ABOUT)
    add = parser.add_argument
    add("model", type=str, help=MODEL)
    add("--example", action="append", default=[], metavar="SHAPE", help=EXAMPLE)
    add("--init_args", type=dict[str, Any], default={}, help=INIT_ARGS)
    add("--checkpoint", type=Path | None, default=None, metavar="FILE", help=CHECKPOINT)
    add_target(parser, "the example", "the example", "chosen on --images")
    add("--floor", type=float | None, default=None, help=LEAST)
    add("--images", type=Path | None, default=None, metavar="FOLDER", help=IMAGES)
    add_preparation(parser)
    add("--exclude", action="append", default=[], metavar="PATH", help="layer that stays")
    add("--opaque", action="append", default=[], metavar="PATH", help="module not looked into")
    add("--inside", type=str, default="", metavar="PATH", help="plan this module alone")
    add("--check", action="store_true", help="try the widths, as attach does")
    add("--depth", type=NonNegativeInt, default=2, help="levels of the tree of modules")
    add("--json", action="store_true", help="print JSON")
    return parser


def given_example(texts: Sequence[str], shape: Shape | None) -> Example:
    """Return random inputs, as a user gives their shapes or a library has them.

    Args:
        texts: Shapes of the arguments of forward, as `example_of` takes them.
        shape: That of one example of a model of a library, without the batch.

    Raises:
        PruneError: A text says no shape, or there is none.
    """
    examples = tuple(map(example_of, texts))
    if not examples and shape is None:
        raise PruneError("example is missing: give the shape of an input, --example 1x3x224x224")
    if not examples and shape is not None:
        return torch.randn(1, *shape)
    return examples[0] if len(examples) == 1 else examples


def example_of(text: str) -> Tensor:
    """Return a tensor of random numbers; of integers and truth values, of 0 and 1.

    Args:
        text: Its shape and perhaps its dtype: "1x3x224x224", "1x128:int64".

    Raises:
        PruneError: The text says no shape or no dtype.
    """
    match = re.fullmatch(r"(\d+(?:x\d+)*)(?::(\w+))?", text)
    if match is None:
        raise PruneError(f"example (={text!r}) is no shape, such as 1x3x224x224 or 1x128:int64")
    shape, dtype = [*map(int, match[1].split("x"))], getattr(torch, match[2] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise PruneError(f"example (={text!r}) names no dtype of torch, such as int64 or float16")
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 2, shape).to(dtype)


def _as_text(planned: Plan, tree: Sequence[ModuleRow], depth: int) -> str:
    return "\n".join([*tree_lines(tree, depth), "", str(planned)])


def _as_json(planned: Plan, tree: Sequence[ModuleRow]) -> str:
    return json.dumps(planned.as_dict() | {"modules": [*map(asdict, tree)]}, indent=1)
