"""Runs of each alternative come to the numbers that they came to before the configuration changed.

golden_runs.json holds, for each, its `prune` section as it was `then` and is `now`, and the numbers
that `branchprune run` made of the first at commit 1d5ce96, with the rest of the configuration as
here: on a CPU, one thread, torch 2.15.
"""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file

from branchprune.experiments.run.config import parse
from branchprune.experiments.run.experiment import run
from branchprune.runtimes.latency import Latency

GOLDEN = json.loads(Path(__file__).with_name("golden_runs.json").read_text())
CONFIG = """
name: tiny
model: {class_path: small_training.TinyVGG}
data: {class_path: small_training.Tiny}
task: {class_path: branchprune.lightning.ClassificationTask, init_args: {learning_rate: 0.02}}
metric: {val: loss/val, test: loss/test, mode: min, format: number}
dense: {epochs: 1}
accelerator: cpu
"""


@pytest.mark.parametrize("case", GOLDEN)
def test_numbers_of_a_run(case, tmp_path, monkeypatch):
    latency = Latency(1.0, None, 1, "cpu", 1)
    measuring = {"compare_latency": (latency, latency, None), "peak_memory": 1}
    for name, value in measuring.items():  # which would take longer than the rest
        monkeypatch.setattr(f"branchprune.experiments.run.result.{name}", Mock(return_value=value))
    (tmp_path / "config.yaml").write_text(CONFIG + yaml.safe_dump({"prune": GOLDEN[case]["now"]}))
    config = parse([str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")])
    result = run(config, "", Console(quiet=True))
    weights = [w.double() for w in load_file(tmp_path / "run" / "small.safetensors").values()]
    found = {
        "scores": {name: score["val"] for name, score in result["scores"].items()},
        "epochs": {name: record["epochs"] for name, record in result["stages"].items()},
        "widths": [group["kept"] for group in result["plan"]["groups"]],
        "rounds": [each["val"] for each in result["rounds"]],
        "branch": [point["branch"] for point in result["curve"]],
        "sum": sum(w.sum().item() for w in weights),
        "squares": sum(w.square().sum().item() for w in weights),
    }
    for name, expected in GOLDEN[case]["numbers"].items():
        assert found[name] == pytest.approx(expected, rel=1e-4), name
