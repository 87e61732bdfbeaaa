"""TensorBoard's events: read as TensorBoard reads them; a disk that refuses them costs one line."""

import errno
import json
from itertools import count
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TINY

from branchprune.cli import main
from branchprune.experiments.run import events_logger
from branchprune.experiments.run.events_logger import EventsLogger


def test_values_are_read_by_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(events_logger, "numbers", count(9))  # the next has more digits
    logger = EventsLogger(tmp_path, "prune", None, print)
    logger.log_metrics({"loss": 0.5}, 1)
    logger.save()
    logger.log_metrics({"loss": 0.25}, 2)
    logger.finalize("success")
    again = EventsLogger(tmp_path, "prune", 2, print)
    again.log_metrics({"loss": 0.125}, 2)
    again.finalize("success")
    found = EventAccumulator(str(tmp_path / "prune")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in found] == [(1, 0.5), (2, 0.125)]


@pytest.mark.parametrize("place", ["open", "write"])
def test_a_run_goes_on_without_events_and_says_so_once(place, tmp_path, monkeypatch, capsys):
    class Full:
        def __init__(self, path):
            self.path, self.raw = path, self

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

        flush = close = lambda self: None

    def opened(path, mode="r", *args, **options):
        if not path.name.startswith("events"):
            return before(path, mode, *args, **options)
        if place == "open":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return Full(path)

    before = Path.open
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "open", opened)
    Path("tiny.yaml").write_text(TINY)
    assert main(["run", "tiny.yaml", "--output", "out"]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if "TensorBoard" in line]
    assert len(lines) == 2 and all(line.endswith("the run goes on") for line in lines)  # a stage
    assert said.err == "" and json.loads(Path("out/result.json").read_text())["curve"]
    assert not [*Path("out").rglob("events*")]
