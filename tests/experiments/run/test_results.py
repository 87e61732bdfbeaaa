"""Lines of results: what is taken from a run, and that each run has one."""

import json
from typing import Any

import pytest
from tiny_run import TINY

from branchprune.cli import main
from branchprune.errors import PruneError
from branchprune.experiments.files import read_lines
from branchprune.experiments.run.results_file import COPIED, add_line, make_line
from branchprune.lightning import ClassificationTask
from branchprune.runtimes.latency import compare_latency

COST = {"channels": 8, "params": 100, "macs": 1000, "latency": {}, "peak_memory_bytes": 4}
TEST = {
    "dense": {"loss/test": 0.5, "metric/test_psnr": 27.0, "metric/test_ssim": 0.9},
    "small": {"loss/test": 0.75, "metric/test_psnr": 25.0, "metric/test_ssim": 0.8},
}


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        **dict.fromkeys((*COPIED, "command", "date"), "x"),
        "metric": {"label": "PSNR in dB"},
        "scores": {
            name: {"val": 20.0, "test": logged["metric/test_psnr"]} for name, logged in TEST.items()
        },
        "test": TEST,
        "cost": {"dense": COST, "small": COST | {"params": 25}},
        "collapse": {"relative_error": 1e-15},
        "stages": {},
        "curve": [],
        "rounds": [],
    }


def test_everything_that_the_task_logged_is_in_the_line(result):
    line = make_line(result)
    assert line["test"] == TEST
    assert (line["dense"], line["final"], line["params_removed"]) == (27.0, 25.0, 0.75)


def test_a_result_of_an_earlier_version_keeps_its_line(result):
    del result["test"]
    assert "test" not in make_line(result)


@pytest.mark.parametrize("loss", [0.5, float("nan")])
def test_a_run_has_one_line_whatever_it_logged(loss, result, tmp_path):
    path = tmp_path / "results" / "lines.jsonl"
    text = json.dumps(result | {"test": {"small": {"loss/test": loss}}})
    for _ in range(2):
        add_line(path, json.loads(text))
    assert len(read_lines(path)) == 1
    add_line(path, result)
    assert len(read_lines(path)) == 2


def test_results_that_cannot_be_written_are_named(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneError, match=r"file/lines\.jsonl cannot be written: .*--resume"):
        add_line(tmp_path / "file" / "lines.jsonl", result)


@pytest.mark.parametrize(
    ("fast", "seconds", "batches"), [("true", 0.0, [0, 1]), ("false", 2.0, [0, 1, 2])]
)
@pytest.mark.usefixtures("without_rehearsal")
def test_times_of_a_dry_run_are_those_of_a_single_pass_and_scores_those_of_two_batches(
    fast, seconds, batches, tmp_path, monkeypatch
):
    def test_step(self, batch, batch_idx):
        tested.append(batch_idx)
        self.step(batch, "test")

    def watch(dense, small, x, seconds):
        asked.append(seconds)
        return compare_latency(dense, small, x, seconds=0)

    asked, tested = [], []
    monkeypatch.setattr(ClassificationTask, "test_step", test_step)
    monkeypatch.setattr("branchprune.experiments.run.result.compare_latency", watch)
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["run", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--fast", fast]) == 0
    assert asked == [seconds] and tested[-2 * len(batches) :] == 2 * batches  # dense and small
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["method"], result["fast"]) == ("blend", fast == "true")
