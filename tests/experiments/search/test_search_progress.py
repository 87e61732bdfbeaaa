"""What is read of a run while it is made, against what the run says itself at its end."""

import csv
import json

import pytest
from tiny_run import TINY

from branchprune.cli import main
from branchprune.experiments.search.progress import logged, scores, train_macs

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(TINY)
    options = ["--prune.finetune.epochs", "2", "--prune.sparsify.epochs", "1"]
    command = ["run", str(folder / "tiny.yaml"), "--output", str(folder / "run"), *options]
    assert main([*command, "--prune.sparsify.penalty", "bn_scale"]) == 0
    return folder / "run"


def test_the_scores_are_those_of_what_will_be_small(run):
    result = json.loads((run / "result.json").read_text())
    branch = [point["branch"] for point in result["curve"]]
    with (run / "finetune" / "metrics.csv").open() as file:
        rows = [row["metric/val_acc"] for row in csv.DictReader(file)]
    tuned = [float(cell) for cell in rows if cell]
    assert len(branch) == 3 and len(tuned) == 2
    dense = result["epochs"]["dense"]  # which the trials of a search do without
    assert scores(run, "metric/val_acc")[dense:] == branch + tuned


def test_the_multiply_adds_are_those_of_the_result(run):
    stages = json.loads((run / "result.json").read_text())["stages"]
    assert {*stages} == {"dense", "sparsify", "prune", "finetune"}
    assert train_macs(run) == sum(stage["train_macs"] for stage in stages.values())


def test_a_row_that_is_being_written_does_not_count(run, tmp_path):
    stage = tmp_path / "prune"
    stage.mkdir()
    text = "epoch,acc,cost/train_macs\n0,0.5,10\n1,0.75,20\n"
    (stage / "metrics.csv").write_text(text)
    before = logged(tmp_path)
    assert (scores(tmp_path, "acc"), train_macs(tmp_path)) == ([0.5, 0.75], 20)
    (stage / "metrics.csv").write_text(text + "2,0.9,3")
    assert (scores(tmp_path, "acc"), train_macs(tmp_path)) == ([0.5, 0.75], 20)
    assert logged(tmp_path) != before
    assert (scores(tmp_path / "none", "acc"), train_macs(tmp_path / "none")) == ([], 0)
