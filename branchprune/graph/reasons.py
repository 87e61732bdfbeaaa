"""Why a width stays, and what to do about it."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from torch import fx, nn

from branchprune.graph.nodes import CONSTANT, LINE

OUTPUT = "it is an output of the model"
NOT_KNOWN = "its effect on channels is not known"


class Reason(str):
    """Why a width stays, as a sentence.

    Attributes:
        place: File and line of the user's forward, such as "net.py:12"; "" where there is none.
        remedy: What to write or do so that the width may shrink; "" where nothing is known.
        cause: What it comes down to, where other widths stay because of the same.
    """

    place: str
    remedy: str
    cause: str

    def __new__(cls, text: str, place: str = "", remedy: str = "", cause: str = "") -> Reason:
        """Return the reason; a text that is one already keeps what it knows."""
        reason = super().__new__(cls, text)
        reason.place = getattr(text, "place", "") or place
        reason.remedy = getattr(text, "remedy", "") or remedy
        reason.cause = getattr(text, "cause", "") or cause or text
        return reason

    def put(self, text: str) -> Reason:
        """Return the reason in other words."""
        return Reason(text, self.place, self.remedy, self.cause)


def place_of(node: fx.Node) -> str:
    """Return the file and line of the user's forward that a node is from; "" if not known.

    The file is named as it is imported, below the folder in which Python has found it. A cell of a
    notebook is no file, and its line is all that is named.
    """
    line = node.meta.get(LINE)
    if line is None:
        return ""
    name, number = line
    file = _below(name, tuple(sys.path))
    return f"{file}:{number}" if file else f"line {number}"


@lru_cache(maxsize=1024)
def _below(name: str, search: tuple[str, ...]) -> str:
    """Return the path of a file below the closest of some folders; "" if it is no file."""
    file = Path(name)
    if not file.is_file():
        return ""
    folders = [Path(folder or ".").absolute() for folder in search]
    above = [folder for folder in folders if file.is_relative_to(folder)]
    root = max(above, key=lambda folder: len(folder.parts), default=file.parent)
    return file.relative_to(root).as_posix()


def how_to_teach(node: fx.Node, module: nn.Module | None) -> str:
    """Return what to write where no rule knows what a node does.

    Args:
        node: The node.
        module: What it calls, if that is a module.
    """
    called = node.target if module is None else type(module)
    name = repr(called) if isinstance(called, str) else getattr(called, "__name__", called)
    return f"teach it, if it treats channels alike: `bp.teach({name}, bp.rules.same)`"


def first_lost(
    node: fx.Node, lost: Mapping[fx.Node, Reason], is_unknown: Callable[[fx.Node], bool]
) -> Reason | None:
    """Return why the channels of a tensor were lost sight of; None: what it is made of has none.

    Args:
        node: What makes the tensor.
        lost: Nodes whose output channels are not known, with the reason.
        is_unknown: Whether a node makes a tensor of which no channels are known.
    """
    seen, rest = {node}, [node]
    while rest:
        each = rest.pop(0)
        if each in lost:
            return lost[each]
        new = [n for n in each.all_input_nodes if n not in seen and (n in lost or is_unknown(n))]
        seen.update(new)
        rest += new
    return None


def name_of_output(node: fx.Node, describe: Callable[[fx.Node], str]) -> str:
    """Return how to name a tensor to a person.

    Args:
        node: What makes it.
        describe: Names a node.
    """
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.op == "placeholder":
        return f"the argument {node.target}"
    if node.op == "get_attr":
        constant = str(node.target).startswith(CONSTANT)
        return "a constant of forward" if constant else str(node.target)
    return f"the output of {describe(node)}"
