"""The command line of a measurement."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from branchprune.experiments.environment import RECORD_HELP


def options_parser(prog: str, options: type, **settings: Any) -> ArgumentParser:
    """Return a parser of the options of a measurement.

    Args:
        prog: What the command is called.
        options: Dataclass of the options. Its field `record`, whether the result is written to the
            committed ones, is a flag without a value.
        settings: More arguments of `ArgumentParser`.
    """
    parser = ArgumentParser(prog=prog, **settings)
    parser.add_class_arguments(options, skip={"record"})
    parser.add_argument("--record", action="store_true", help=RECORD_HELP)
    return parser
