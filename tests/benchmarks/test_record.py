"""Measurements write to the committed results where they are asked to by name, and nowhere else."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from branchprune.benchmarks import bench, cost, cost_models, zoo
from branchprune.cli import bench as bench_command
from branchprune.errors import PruneError

COMMITTED = "scripts/results"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Stand in the root of a checkout in which all measurements take no time."""
    (tmp_path / COMMITTED).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "measure", lambda options, console: [])
    monkeypatch.setattr(zoo, "run_apart", lambda row, timeout: replace(row, error="no time"))
    monkeypatch.setattr(cost, "run_apart", lambda row, path, timeout: replace(row, median_s=1.0))
    monkeypatch.setattr(cost, "prepare", lambda *_: {name: {} for name in cost_models.VARIANTS})
    return tmp_path


def written(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "options", "default", "recorded"),
    [
        (bench_command.main, [], set(), {"bench.json"}),
        (
            zoo.main,
            ["--models=alexnet"],
            {"runs/zoo/zoo.csv", "runs/zoo/zoo.jsonl", "runs/zoo/zoo.md"},
            {"zoo.csv", "zoo.jsonl", "zoo.md"},
        ),
        (
            cost.main,
            ["--models=[vgg16]", "--devices=[cpu]", "--runtime=pytorch", "--cpu_batches=[1]"],
            {"runs/cost.json", "runs/cost.jsonl"},
            {"cost.json", "cost.jsonl"},
        ),
    ],
    ids=["bench", "zoo", "cost"],
)
def test_results_are_recorded_if_that_is_asked_for(command, options, default, recorded, checkout):
    command(options, Console(quiet=True))
    assert written(checkout) == default
    command([*options, "--record"], Console(quiet=True))
    assert written(checkout) - default == {f"{COMMITTED}/{name}" for name in recorded}


@pytest.mark.parametrize("command", [bench_command.main, zoo.main, cost.main])
def test_outside_a_checkout_nothing_is_recorded(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PruneError, match="run the command in the root of a checkout"):
        command(["--record"], Console(quiet=True))
    assert not written(tmp_path)


def test_the_recorded_file_says_what_was_asked(checkout):
    bench_command.main(["--repeats=3", "--record"], Console(quiet=True))
    content = json.loads((checkout / COMMITTED / "bench.json").read_text())
    assert content["options"] == {
        "batch_size": 64,
        "image_size": 32,
        "keep": 22 / 64,
        "repeats": 3,
        "threads": 0,
    }
