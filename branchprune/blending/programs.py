"""The programs of a blended model: functions of it and its inputs, written once for a structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx

from branchprune.blending.codegen import ProgramWriter
from branchprune.blending.path_sampling import PathMixing
from branchprune.graph.module_numbers import Values
from branchprune.graph.python_code import compiled
from branchprune.graph.structure import Structure

Program = Callable[..., Any]

_COMPILED: WeakKeyDictionary[Structure, dict[tuple[object, ...], FunctionType]] = (
    WeakKeyDictionary()
)
"""The programs of each structure: blended models of one plan, and copies of them, share these."""


def compile_program(
    structure: Structure,
    training: bool,
    alphas: Mapping[int, float],
    fold: bool,
    numbers: Values,
    mixing: PathMixing,
    features: bool = False,
) -> Program:
    """Return a function of the blended model and its inputs.

    Its attribute `reads` holds the paths of all modules and tensors that it names. It is written
    once for a structure, and each call returns a function of its own: torch.compile keeps what it
    compiles with the code that it is given.

    Args:
        structure: The model's structure.
        training: Which of the two traced graphs to follow.
        alphas: α of each group that has a branch, by group index.
        fold: At α = 0, fold the linear ends into the weights where that is cheaper.
        numbers: What attributes of the user's modules hold for the branch.
        mixing: What becomes of both paths where both are computed.
        features: Return a pair: the output, and by the name of each `expand` what it reads.
    """
    key = (training, *alphas.items(), fold, frozenset(numbers.items()), mixing, features)
    known = _COMPILED.setdefault(structure, {})
    if key not in known:
        writer = ProgramWriter(structure, training, alphas, fold, numbers, mixing, features)
        known[key] = _compiled(writer.write(), training)
    return _alike(known[key])


def _compiled(graph: fx.Graph, training: bool) -> FunctionType:
    paths = [str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")]
    program = compiled(graph, f"branchprune training={training}")
    assert isinstance(program, FunctionType)
    vars(program)["reads"] = tuple(dict.fromkeys(paths))
    return program


def _alike(function: FunctionType) -> FunctionType:
    """Return a function with code of its own that does the same."""
    code, scope = function.__code__.replace(), function.__globals__
    made = FunctionType(code, scope, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    vars(made).update(vars(function))
    return made
