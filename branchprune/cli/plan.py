"""The command that plans a model by name: what would shrink, what would stay, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from torch import Tensor

from branchprune.cli.named_model import CHECKPOINT, MODEL, build, named
from branchprune.errors import PruneError
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.planning.module_tree import ModuleRow, module_tree, tree_lines
from branchprune.planning.plan import Plan, plan

EXAMPLE = """shape and, if it is not float32, dtype of an input: 1x3x224x224, 1x128:int64; once for
each argument of forward; a model by name has one of its own"""
KEEP = """fraction of the channels to keep, in (0, 1], or one a layer: '{"": 0.5, "head": 1.0}'"""
ABOUT = """Show which channels of a model would shrink, which would stay and why, and what that
saves; nothing is trained or written, and it runs on the CPU."""


def main(args: Sequence[str], console: Console) -> None:
    """Plan a model, and print the tree of its modules and the plan, or both as JSON.

    Raises:
        PruneError: An argument is wrong, or the model cannot be built or planned.
    """
    options = parsed(_parser(), args)
    model, shape = build(*named(options.model, options.init_args, options.checkpoint))
    examples = tuple(map(example_of, options.example)) or (shape and (torch.randn(1, *shape),))
    if not examples:
        raise PruneError("example is missing: give the shape of an input, --example 1x3x224x224")
    example = examples[0] if len(examples) == 1 else examples
    names = ("keep", "exclude", "multiple_of", "inside", "opaque", "check")
    planned = plan(model, example, **{name: options[name] for name in names})
    tree = module_tree(model, planned)
    text = _as_json(planned, tree) if options.json else _as_text(planned, tree, options.depth)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune plan", ABOUT)
    add = parser.add_argument
    add("model", type=str, help=MODEL)
    add("--example", action="append", default=[], metavar="SHAPE", help=EXAMPLE)
    add("--init_args", type=dict[str, Any], default={}, help="arguments of what is imported")
    add("--checkpoint", type=Path | None, default=None, metavar="FILE", help=CHECKPOINT)
    add("--keep", type=float | dict[str, float], default=0.5, help=KEEP)
    add("--exclude", action="append", default=[], metavar="PATH", help="layer that stays")
    add("--opaque", action="append", default=[], metavar="PATH", help="module not looked into")
    add("--inside", type=str, default="", metavar="PATH", help="plan this module alone")
    add("--multiple_of", type=PositiveInt, default=1, help="round the kept widths to it")
    add("--check", action="store_true", help="try the widths, as attach does")
    add("--depth", type=NonNegativeInt, default=2, help="levels of the tree of modules")
    add("--json", action="store_true", help="print JSON")
    return parser


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
