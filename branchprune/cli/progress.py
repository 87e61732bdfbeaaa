"""How far learning is: a line that moves on a terminal, and in a log one for each tenth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from branchprune.few_images.learning import Progress as Told

PARTS = 10


@contextmanager
def progress(console: Console, before: str) -> Iterator[Told]:
    """Show steps, loss and time left, for a `with` block, whose value is to be told each step.

    Args:
        console: Where to show it.
        before: What is done until the first step.
    """
    if not console.is_terminal:
        console.print(before, markup=False, highlight=False)
        yield _in_lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(before, total=None)

        def show(step: int, steps: int, loss: float) -> None:
            said = _said(step, steps, loss)
            shown.update(task, completed=step, total=steps, description=said)

        yield show


def _in_lines(console: Console) -> Told:
    first: list[tuple[int, float]] = []

    def show(step: int, steps: int, loss: float) -> None:
        now = time.perf_counter()
        first[:] = first or [(step, now)]
        if step * PARTS // steps > (step - 1) * PARTS // steps:
            begun, at = first[0]
            pace = (now - at) / max(1, step - begun)
            left = f", about {pace * (steps - step):.0f} s left" * (begun < step < steps)
            console.print(_said(step, steps, loss) + left, markup=False, highlight=False)

    return show


def _said(step: int, steps: int, loss: float) -> str:
    return f"step {step} of {steps}, loss {loss:.4f}"
