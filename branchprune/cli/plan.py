"""The command that plans a model by name: what would shrink, what would stay, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from torch import Tensor, nn

from branchprune.errors import PruneError, first_line
from branchprune.planning.module_tree import ModuleRow, module_tree, tree_lines
from branchprune.planning.plan import Plan, plan
from branchprune.training.import_path import value_at

MODEL = """torchvision's by name (resnet50), others' as timm/NAME, ultralytics/NAME or
segmentation_models_pytorch/NAME, or the import path of a class, a function or a model
(package.module:Net, package.module.net)"""
EXAMPLE = """shape and, if it is not float32, dtype of an input: 1x3x224x224, 1x128:int64; once for
each argument of forward; a model by name has one of its own"""
FILES = (".yaml", ".yml", ".pt", ".pth", ".ckpt", ".safetensors", ".onnx")
"""How names of files with models or weights end."""
KEEP = """fraction of the channels to keep, or one a layer: '{"": 0.5, "head": 1.0}'"""


def main(args: Sequence[str], console: Console) -> None:
    """Plan a model, and print the tree of its modules and the plan, or both as JSON.

    Raises:
        PruneError: An argument is wrong, or the model cannot be built or planned.
    """
    try:
        options = _parser().parse_args([*args])
    except ArgumentError as error:
        raise PruneError(str(error)) from error
    model, shape = build(options.model, options.init_args)
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
    parser = ArgumentParser(prog="branchprune plan", exit_on_error=False)
    add = parser.add_argument
    add("model", type=str, help=MODEL)
    add("--example", action="append", default=[], metavar="SHAPE", help=EXAMPLE)
    add("--init_args", type=dict[str, Any], default={}, help="arguments of what is imported")
    add("--keep", type=float | dict[str, float], default=0.5, help=KEEP)
    add("--exclude", action="append", default=[], metavar="PATH", help="layer that stays")
    add("--opaque", action="append", default=[], metavar="PATH", help="module not looked into")
    add("--inside", type=str, default="", metavar="PATH", help="plan this module alone")
    add("--multiple_of", type=PositiveInt, default=1, help="round the kept widths to it")
    add("--check", action="store_true", help="try the widths, as attach does")
    add("--depth", type=NonNegativeInt, default=2, help="levels of the tree of modules")
    add("--json", action="store_true", help="print JSON")
    return parser


def build(name: str, init_args: Mapping[str, Any]) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Return a model, and the shape of one of its examples if it comes from a library.

    Args:
        name: Name of a model of torchvision, `library/name`, or an import path.
        init_args: Arguments of the class or function at an import path.

    Raises:
        PruneError: There is no such model, or it cannot be built.
    """
    if name.endswith(FILES):
        raise PruneError(
            f"model (={name!r}) is a file, and a model is named: a YOLO as ultralytics/yolov8n, "
            "your own by the import path of its class or of a function that loads it, such as "
            "package.module:load"
        )
    if "/" not in name and re.search("[.:]", name):
        return _imported(name, init_args), None
    if init_args:
        raise PruneError(
            f"init_args (={dict(init_args)}) are those of an import path, and model (={name!r}) is "
            "a name: give the path of the class or function, such as torchvision.models.resnet50"
        )
    return _of_library(name)


def _of_library(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    from branchprune.benchmarks.zoo_models import LIBRARIES  # imports torchvision

    library, _, own = name.rpartition("/")
    library = library or "torchvision"
    libraries = ", ".join(LIBRARIES)
    if library not in LIBRARIES:
        raise PruneError(f"model (={name!r}) names the library {library!r}, not one of {libraries}")
    families, builder = LIBRARIES[library]
    known_names = families()
    if own not in known_names:
        near = get_close_matches(own, known_names, n=1, cutoff=0.0)
        nearest = name.removesuffix(own) + near[0] if near else ""
        hint = f"; the nearest is {nearest!r}" * bool(near)
        raise PruneError(
            f"model (={name!r}) is not one of {library}'s{hint}; give one of {libraries} as "
            "LIBRARY/NAME, and your own by its import path, such as package.module:Net"
        )
    return builder(own, None)


def _imported(path: str, init_args: Mapping[str, Any]) -> nn.Module:
    found = value_at(path.replace(":", ".", 1), "model")
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise PruneError(
                f"model (={path!r}) is a {type(found).__name__}, not a class, a function or a model"
            )
        try:
            found = found(**init_args)
        except Exception as error:
            raise PruneError(
                f"model (={path!r}) cannot be built: {type(error).__name__}: {first_line(error)}; "
                "its arguments are given by --init_args.NAME VALUE"
            ) from error
    if not isinstance(found, nn.Module):
        raise PruneError(f"model (={path!r}) makes a {type(found).__name__}, not an nn.Module")
    return found


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
