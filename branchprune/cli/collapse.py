"""The command that makes a small model of a checkpoint in which the network is still blended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from torch import nn

from branchprune.artifacts.card import write_card
from branchprune.artifacts.facts import Facts
from branchprune.artifacts.origin import Origin
from branchprune.artifacts.serialization import write_model
from branchprune.cli.model_and_images import new_file, warnings_in_a_line
from branchprune.cli.named_model import INIT_ARGS, MODEL, build, named
from branchprune.cli.plan import EXAMPLE, example_of
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.lightning.collapsed_checkpoint import CollapsedCheckpoint, collapse_checkpoint

ABOUT = """Make the small model of a checkpoint that a training with BranchPruning has left, such as
its best one, while the network was still blended; write it, and a card beside it."""
CHECKPOINT = "checkpoint of Lightning (.ckpt), which is read without running code in it"
GIVEN = f"{MODEL}; as it was before the training, or the LightningModule with it"
OUTPUT = "file to write, with a card beside it, small.md; files that exist are refused"
SHAPE = f"{EXAMPLE}; else that of the training"


def main(args: Sequence[str], console: Console) -> None:
    """Collapse a checkpoint, save the model with its card, and print what it costs.

    Raises:
        PruneError: An argument is wrong, the model cannot be built, or the checkpoint is damaged
            or of another model.
    """
    options = parsed(_parser(), args)
    output = new_file(options.output, ".safetensors", ".md")
    origin, checkpoint = named(options.model, options.init_args, None)
    origin.as_fields()  # what cannot be written is told now
    given = [*map(example_of, options.example)]
    example = (given[0] if len(given) == 1 else tuple(given)) if given else None
    model, _ = build(origin, checkpoint)
    with console.status("collapsing"), warnings_in_a_line():
        found = collapse_checkpoint(options.checkpoint, model, example)
    write_model(found.model, output, _facts(found, origin, model))
    beside = write_card(output)
    before, after = found.plan.before, found.plan.after
    lines = [
        f"{what}: {old:,} → {new:,} ({new / old - 1:+.1%})"
        for what, old, new in (
            ("params", before.params, after.params),
            ("macs", before.macs, after.macs),
        )
    ]
    text = "\n".join([*lines, f"{output}", f"{beside}"])
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _facts(found: CollapsedCheckpoint, origin: Origin, model: nn.Module) -> Facts:
    """Return what is known of the small model; of a part of what was named, not what makes it."""
    levels = ", ".join(f"{level:.4g}" for level in found.alphas)
    at = "" if found.epoch is None else f" of epoch {found.epoch}"
    note = (
        f"Made by `branchprune collapse` from a checkpoint{at} at α = {levels}: the branch alone. "
        f"The collapse is exact to {found.error:.0e}."
    )
    costs = found.plan.before.macs, found.plan.after.macs
    made_by = origin if type(found.model) is type(model) else None
    return Facts(made_by, found.keep, macs=costs, notes=(note,))


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune collapse", ABOUT)
    add = parser.add_argument
    add("checkpoint", type=Path, help=CHECKPOINT)
    add("model", type=str, help=GIVEN)
    add("--init_args", type=dict[str, Any], default={}, help=INIT_ARGS)
    add("--example", action="append", default=[], metavar="SHAPE", help=SHAPE)
    add("--output", type=Path, default=Path("small.safetensors"), metavar="FILE", help=OUTPUT)
    return parser
