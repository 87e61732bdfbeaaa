"""The command that shows how much the output of a model needs the channels of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from torch import Tensor, nn

from branchprune.cli.model_and_images import add_model_and_images, new_file, trained_with_images
from branchprune.errors import PruneError
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.reports.sensitivity_plot import draw
from branchprune.targets.error_curves import MeasuredErrors
from branchprune.targets.plan import plans
from branchprune.targets.sensitivity import sensitivity
from branchprune.targets.target_plan import TargetPlan

ABOUT = """Show how much the output of a trained model changes as the channels of each layer go, by
a folder of images without labels, as a table and a plot; it runs on the CPU."""
TARGETS = (0.8, 0.6, 0.4, 0.2)
"""Of the multiply-adds, for which plans are shown."""


def main(args: Sequence[str], console: Console) -> None:
    """Print how the output changes with each group, and what plans would cost; draw both.

    Raises:
        PruneError: An argument is wrong, or the model cannot be built or planned.
    """
    options = parsed(_parser(), args)
    output = new_file(options.output, ".png")
    model, images = trained_with_images(options)
    errors = MeasuredErrors([images])
    with console.status("making one group after another narrow"):
        found = sensitivity(model, images[:1], errors, exclude=options.exclude)
        chosen, missed = _trade_off(model, images[:1], options.exclude, errors)
    draw(found, chosen, output)
    text = "\n".join([str(found), *map(_line, chosen), *missed, str(output)])
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _trade_off(
    model: nn.Module, example: Tensor, exclude: Sequence[str], errors: MeasuredErrors
) -> tuple[list[TargetPlan], list[str]]:
    """Return the plans for targets of multiply-adds, and why there are none for some."""
    chosen: list[TargetPlan] = []
    missed = []
    for share in TARGETS:
        try:
            chosen += plans(model, example, [{"macs": share}], batches=errors, exclude=exclude)
        except PruneError as error:  # it cannot be reached; all else has shown before
            missed.append(str(error))
    return chosen, missed


def _line(plan: TargetPlan) -> str:
    return (
        f"{plan.after.macs / plan.before.macs:.0%} of the MACs: change of the output "
        f"{plan.change:.3g} where widths are chosen, {plan.uniform:.3g} at one share of all"
    )


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune sensitivity", ABOUT)
    add_model_and_images(parser)
    output = Path("sensitivity.png")
    parser.add_argument(
        "--output", type=Path, default=output, help="file of the plot; one that exists is refused"
    )
    return parser
