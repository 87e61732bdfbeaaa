"""The command line: what it says of itself, and which command it calls."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from platform import python_version

import torch

from branchprune import __version__
from branchprune.errors import how_to_install
from branchprune.experiments.interruption import PIPE, Interrupted

USAGE = """usage: branchprune run CONFIG.yaml [--variant NAME ...] [--option value ...]
       branchprune dense CONFIG.yaml [--variant NAME ...] [--option value ...]
       branchprune compare CONFIG.yaml [--variant NAME ...] [--option value ...]
       branchprune search CONFIG.yaml [--variant NAME ...] [--option value ...]
       branchprune report FOLDER
       branchprune plan MODEL [--example 1x3x224x224] [--option value ...]
       branchprune compress MODEL IMAGES/ [--keep 0.34] [--minutes 5] [--option value ...]
       branchprune export MODEL --format onnx [--output small.onnx] [--option value ...]
       branchprune collapse CHECKPOINT MODEL [--output small.safetensors] [--option value ...]
       branchprune show FILE
       branchprune sensitivity MODEL IMAGES/ [--option value ...]
       branchprune bench [MODEL] [--runtime onnxruntime] [--threads 1] [--option value ...]
       branchprune cost [CONFIG.yaml ...] [--option value ...]
       branchprune zoo [--option value ...]
       branchprune --version

run          train a dense model, prune it, collapse, verify, measure, report
dense        only train the dense model, with the options of run
compare      compare methods at equal budgets, from one dense model
search       search settings of a run by Optuna, from one dense model
report       write the report of a finished run again
plan         what would shrink in a model, what would stay, and why
compress     make a trained model small with a folder of unlabelled images
export       write a model as ONNX, for OpenVINO, torch.export or ExecuTorch, and check it
collapse     make the small model of a checkpoint that a training with BranchPruning has left
show         what a file says of its model: class, sizes, scores, layers
sensitivity  how much the output needs the channels of each layer, by images
bench        time a small model beside its dense one in a runtime; without, what blending costs
cost         measure time and memory of the paper's models, dense and small
zoo          plan, blend and collapse every model of torchvision, timm and others

`branchprune run --help` lists the options, which are the keys of a configuration."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0; 1 for a failure; 2 for a user's error.

    A full disk is a failure, so is a loss that is NaN, in `zoo` a model and in `compare` a run that
    failed, and in `search` that no trial has ended. Ctrl-C gives 130, SIGTERM 143, an output that
    nobody reads, as behind `| head`, 141.
    """
    try:
        try:
            return _main(list(sys.argv[1:] if args is None else args))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        return Interrupted(PIPE).status


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(version())
        return 0
    try:
        from branchprune.cli.commands import COMMANDS, call  # with rich, which may be missing

        if args[0] in COMMANDS:
            return call(args[0], args[1:])
        print(f"branchprune: error: unknown command {args[0]!r}\n{USAGE}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (message := how_to_install(error)) is None:
            raise
        print(f"branchprune: error: {message}", file=sys.stderr)
        return 2


def version() -> str:
    """Return the version of branchprune and of what results depend on."""
    return f"branchprune {__version__} (torch {torch.__version__}, Python {python_version()})"
