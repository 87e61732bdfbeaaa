"""The command line of a command, read; what is wrong with it is told in one line."""

from __future__ import annotations

import re
from argparse import Action
from argparse import ArgumentParser as AnyParser
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from branchprune.errors import PruneError
from branchprune.experiments.parser_words import in_words

LEFT = re.compile(r"unrecognized arguments: (.*)")
KEY = re.compile(r'^Parser key "(.+?)": ')


def parser_of(command: str, about: str) -> ArgumentParser:
    """Return a parser without options, which raises where something is wrong.

    Args:
        command: What it is called.
        about: What it does, in a sentence or two.
    """
    about = " ".join(about.split())
    return ArgumentParser(prog=command, description=about, exit_on_error=False, allow_abbrev=False)


def parsed(parser: ArgumentParser, args: Sequence[str]) -> Namespace:
    """Return the options that a command line gives.

    Args:
        parser: The parser of the command, which does not exit on errors.
        args: The arguments of the command.

    Raises:
        PruneError: An argument is wrong, missing, or none of the command's.
    """
    try:
        return parser.parse_args([*args])
    except ArgumentError as error:
        raise PruneError(told(str(error), parser, args)) from error


def told(message: str, parser: AnyParser, args: Sequence[str]) -> str:
    """Return what a parser says of a command line, in one line and in words.

    Args:
        message: What it says.
        parser: The parser.
        args: The command line.
    """
    line = KEY.sub(r"\1: ", " ".join(message.split()))
    left = LEFT.fullmatch(line)
    return (left and _left_over(left[1].split(), parser, args)) or in_words(line, args)


def _left_over(words: list[str], parser: AnyParser, args: Sequence[str]) -> str | None:
    """Say what to write in place of words that the parser does not know what to do with."""
    options: dict[str, Action] = parser._option_string_actions
    name = words[0].partition("=")[0]
    if name.startswith("--"):
        known = [each for each in options if not each.endswith(("help", "print_config", "+"))]
        near = get_close_matches(name, [each for each in known if each[:2] == "--"], 1, 0.0)
        return f"{name} is no option; the nearest is {near[0]}" if near else None
    for at, word in enumerate(args):
        before = [*args[max(0, at - 2) : at]]
        if word == words[0] and before:
            found = _one_too_many(options, before, words)
            if found is not None:
                return found
    return None


def _one_too_many(options: Mapping[str, Action], before: list[str], words: list[str]) -> str | None:
    """Say what an option takes, if words that are left over stand behind its value."""
    if before[-1] in options and options[before[-1]].nargs == 0:
        return f"{before[-1]} takes no value, and {words[0]!r} is one too many"
    name, *given = [*before, *words]
    if len(before) < 2 or name not in options:
        return None
    if type(options[name]).__name__ == "_AppendAction":
        again = " ".join(f"{name} {each}" for each in given)
        return f"{name} takes one value: repeat it, {again}"
    listed, kind = ", ".join(given), str(getattr(options[name], "_typehint", ""))
    if "list[" in kind or "tuple[" in kind:
        return f"{name} takes one value, not {' '.join(given)!r}: a list is written '[{listed}]'"
    return f"{name} takes one value, and {words[0]!r} is one too many"
