"""How far learning is: lines for a log, and a line that moves for a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from branchprune.cli import progress as room
from branchprune.cli.progress import progress


def written(steps: int, terminal: bool, monkeypatch: Any) -> str:
    """Return what is shown of steps that take a second each."""
    seconds = iter(range(steps + 1))
    monkeypatch.setattr(room.time, "perf_counter", lambda: next(seconds))
    file = io.StringIO()
    with progress(Console(file=file, force_terminal=terminal, width=80)) as shown:
        shown.begin("reading [2] images")
        shown.begin("learning")
        for step in range(1, steps + 1):
            shown.step(step, steps, 1 / step)
    return file.getvalue()


def test_a_log_gets_a_line_for_each_tenth(monkeypatch: Any) -> None:
    *phases, first = written(200, False, monkeypatch).splitlines()[:3]
    assert phases == ["reading [2] images", "learning"] and first.startswith("step 20 of 200")
    lines = written(200, False, monkeypatch).splitlines()[2:]
    assert [int(line.split()[1]) for line in lines] == [*range(20, 201, 20)]
    assert lines[2] == "step 60 of 200, loss 0.0167, about 140 s left"
    assert lines[-1] == "step 200 of 200, loss 0.0050"


@pytest.mark.parametrize("steps", [1, 3, 7, 13])
def test_few_steps_have_no_more_lines_than_that(steps: int, monkeypatch: Any) -> None:
    lines = written(steps, False, monkeypatch).splitlines()[2:]
    assert len(lines) == min(steps, 10) and lines[-1].startswith(f"step {steps} of {steps}, loss")


def test_a_terminal_gets_one_that_moves(monkeypatch: Any) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = io.StringIO()
    with progress(Console(file=file, force_terminal=True, width=80)) as shown:
        shown.begin("reading images")
        shown.step(20, 200, 0.5)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "step 20 of 200, loss 0.5000" in text
