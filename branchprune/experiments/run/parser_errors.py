"""What the parser's messages say of a configuration, without what they say of the parser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from textwrap import dedent
from typing import Any

from jsonargparse import ArgumentError
from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn

from branchprune.errors import PruneError
from branchprune.experiments.parser_words import in_words
from branchprune.experiments.run.one_line import said
from branchprune.graph.import_path import value_at

UNMADE = "what the configuration names cannot be made"
CLASSES = {"model": nn.Module, "data": LightningDataModule, "task": LightningModule}


def explained(error: Exception, args: Sequence[str] = ()) -> str:
    """Return, in one line, what an error of the parser says that a user can do something about.

    Of a class that does not exist, it names the module's nearest.

    Args:
        error: The error.
        args: The command line.
    """
    message = str(error)
    known = _innermost(message) or _wrong_class(message) or _wrong_argument(message)
    found = known or _raised(error) or message
    line = " ".join(found.partition(". Got value: Namespace(")[0].split())
    return in_words(re.sub(r'^Parser key "(.+?)": ', r"\1: ", line), args)


def _raised(error: BaseException) -> str | None:
    """Return what a class has raised as it was made, of which the parser says no more."""
    if not str(error).startswith("Does not validate"):
        return None
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    known = isinstance(error, ArgumentError | ValueError | TypeError)
    return None if known else f"{UNMADE}: {said(error)}"


def _wrong_class(message: str) -> str | None:
    """Say what is wrong with the class of the model, the data or the task, if that is what is."""
    key = re.match(r'Parser key "(\w+)"', message)
    given = re.search(r"(?:Given|Got) value: (.*)", message)
    if key is None or given is None or key[1] not in CLASSES:
        return None
    named = re.search(r"class_path(?:': |=|', val=)'([^']*)'", given[1])
    path, base = named[1] if named else given[1], CLASSES[key[1]]
    if not re.fullmatch(r"[\w.]+", path):
        return None
    argument = f"{key[1]}.class_path"

    def fits(found: Any) -> bool:
        return isinstance(found, type) and issubclass(found, base)

    try:
        found = value_at(path, argument, fits)
    except PruneError as error:
        return str(error)
    if fits(found):
        return None
    others = [each.__module__ for each in getattr(found, "__mro__", ())]
    if any(module.startswith("lightning.") for module in others):
        return (
            f"{argument} (={path!r}) is of the package `lightning`, whose classes are others: "
            f"let it be of pytorch_lightning.{base.__name__}, import pytorch_lightning"
        )
    if callable(found) and not isinstance(found, type):
        unknown = re.search("correspond to a subclass|to be a function that returns", message)
        name, kind = path.rpartition(".")[2], base.__name__
        how = (
            f"{argument} (={path!r}) is a function that does not say what it returns: give a "
            f"subclass of {kind}, or write `def {name}(…) -> {kind}:`"
        )
        return how if unknown else None
    return f"{argument} (={path!r}) is no subclass of {base.__name__}"


def _innermost(message: str) -> str | None:
    """Return what the parser says of a key within sections, without what it says of these."""
    found = [*re.finditer(r'^( *).*?arser key "(.+)":\n', message, re.MULTILINE)]
    if len(found) < 2:
        return None
    deeper = " " * len(found[-1][1]) + " "
    lines = message[found[-1].end() :].splitlines(keepends=True)
    said = "".join(takewhile(lambda line: line.startswith(deeper), lines))
    key = ""
    for match in found:  # a key within a section, or the whole of it
        key = match[2] if match[2].startswith(f"{key}.") else f"{key}.{match[2]}".lstrip(".")
    return f"{key}: {dedent(said).strip()}"


def _wrong_argument(message: str) -> str | None:
    """Return what the parser says of an argument of a class, if it says that."""
    found = re.match(
        r'Parser key "(.+?)":\n.*(?:'
        r"Problem with given class_path |expects a function or a callable class: )"
        r"(.+?)(?:\n *- |\. Got value)",
        message,
        re.DOTALL,
    )
    return f"{found[1]}: {' '.join(found[2].split())}" if found else None
