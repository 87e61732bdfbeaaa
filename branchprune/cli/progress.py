"""How far a command is: a line that moves on a terminal; in a log one a phase, and one a tenth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from branchprune.few_images.learning import Progress as Told

PARTS = 10


@dataclass(frozen=True)
class Shown:
    """What is to be told how far a command is.

    Attributes:
        begin: Told what begins, as "reading images".
        step: Told each step of learning.
    """

    begin: Callable[[str], None]
    step: Told


@contextmanager
def progress(console: Console) -> Iterator[Shown]:
    """Show phases; steps, loss and time left, for a `with` block, whose value is to be told them.

    Args:
        console: Where to show it.
    """
    if not console.is_terminal:
        yield Shown(lambda what: _print(console, what), _in_lines(console))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=None)

        def show(step: int, steps: int, loss: float) -> None:
            said = _said(step, steps, loss)
            shown.update(task, completed=step, total=steps, description=said)

        yield Shown(lambda what: shown.update(task, description=what), show)


def _in_lines(console: Console) -> Told:
    first: list[tuple[int, float]] = []

    def show(step: int, steps: int, loss: float) -> None:
        now = time.perf_counter()
        first[:] = first or [(step, now)]
        if step * PARTS // steps > (step - 1) * PARTS // steps:
            begun, at = first[0]
            pace = (now - at) / max(1, step - begun)
            left = f", about {pace * (steps - step):.0f} s left" * (begun < step < steps)
            _print(console, _said(step, steps, loss) + left)

    return show


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False)


def _said(step: int, steps: int, loss: float) -> str:
    return f"step {step} of {steps}, loss {loss:.4f}"
