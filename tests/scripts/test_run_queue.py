"""The queue of long runs: what it names exists, and the first that is missing is run."""

import importlib
import json
from types import SimpleNamespace

import pytest
import yaml
from shipped import ROOT

from branchprune.errors import PruneError

ANY = {"date": "", "dataset": "x", "metric": "accuracy"}


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("run_queue")


@pytest.fixture
def world(queue, tmp_path, monkeypatch):
    """Results in a folder of their own, where a run that is made leaves its line at once."""
    (tmp_path / "scripts/results/compare").mkdir(parents=True)
    monkeypatch.setattr(queue, "RECORDED", tmp_path / "scripts/results/compare")
    made = []

    def compare(args, console):
        name = args[args.index("--only") + 1]
        made.append(args)
        item = next(item for item in queue.read() if item.run.name == name)
        line = {"method": item.method, "preset": item.budget, "seed": item.seed, **ANY}
        if not failing:
            with (queue.RECORDED / f"{item.experiment}.jsonl").open("a") as file:
                file.write(json.dumps(line | {"experiment": f"compare/{item.experiment}"}) + "\n")
        return SimpleNamespace(failed=False)

    failing = []
    monkeypatch.setattr(queue.compare, "compare", compare)
    return SimpleNamespace(made=made, failing=failing)


def test_every_item_is_a_run_of_its_comparison_once(queue):
    items = queue.read()
    assert len({(item.experiment, item.run) for item in items}) == len(items) > 10
    for item in items:
        assert item.hours > 0 and item.run in queue.comparison(item.file).runs()


def test_items_are_run_in_order_until_nothing_is_left(queue, world, capsys):
    items = queue.read()
    assert queue.go(minutes=1.0, threads=2, record=True, device="cuda") == 0
    assert [args[args.index("--only") + 1] for args in world.made] == [i.run.name for i in items]
    options = ["--threads", "2", "--overlay", "configs/gpu.yaml", "--record"]
    assert all(args[0] == "configs/compare/full_size.yaml" for args in world.made)
    assert all(args[-5:] == options and "--minutes" in args for args in world.made)
    assert capsys.readouterr().out.endswith(f"{len(items)} runs done, 0 left: 0 hours\n")
    assert queue.go(minutes=1.0, threads=2, record=True, device="auto") == 0
    assert len(world.made) == len(items)  # nothing is run twice


def test_without_time_it_is_said_what_is_left(queue, world, capsys):
    assert queue.go(minutes=0.0, threads=1, record=True, device="auto") == 0
    out = capsys.readouterr().out
    assert not world.made
    assert all(f"left: {item.experiment}, {item.run.name}" in out for item in queue.read())


def test_a_run_that_leaves_no_line_ends_the_queue(queue, world):
    world.failing.append(True)
    assert queue.go(minutes=1.0, threads=1, record=True, device="auto") == 1
    assert len(world.made) == 1


@pytest.mark.parametrize("option", ["--jobs=2", "--only=x", "--preset=paper", "--rec"])
def test_options_of_other_runs_are_refused(option, queue, world, capsys):
    reproduce = importlib.import_module("reproduce")
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--next", option])
    assert ended.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err
    assert not world.made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hours": None},
            r"item 1 \(.*\) must have the keys budget, experiment, hours",
        ),
        ({"seed": 9}, r"item 1: Run\(.*seed=9\) is not in full_size.yaml"),
    ],
)
def test_what_is_wrong_in_the_queue_is_named(queue, changes, message, tmp_path):
    item = yaml.safe_load(queue.QUEUE.read_text())[0] | changes
    file = tmp_path / "queue.yaml"
    file.write_text(yaml.safe_dump([{k: v for k, v in item.items() if v is not None}]))
    with pytest.raises(PruneError, match=message):
        queue.read(file)
