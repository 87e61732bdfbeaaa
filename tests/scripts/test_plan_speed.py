"""The comparison with Torch-Pruning: what it writes follows from its samples."""

import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "plan_speed.py"
SMALL = {"model": "squeezenet1_1", "image_size": 32, "memory_model": "squeezenet1_1"}
SMALL |= {"target_images": 0}

STANDIN = """
class DependencyGraph:
    def build_dependency(self, model, example_inputs):
        assert model(*example_inputs).requires_grad
        return self

    def get_all_groups(self):
        yield from [["a group"]]
"""


@pytest.fixture
def plan_speed(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("plan_speed")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a module under the name of Torch-Pruning first, for this process and its children."""

    def install(content):
        (tmp_path / "torch_pruning.py").write_text(content)
        info = tmp_path / "torch_pruning-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-pruning\nVersion: 0\n")
        paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "torch_pruning", raising=False)

    yield install
    sys.modules.pop("torch_pruning", None)


def measured(plan_speed, tmp_path, **options):
    file = tmp_path / "result.json"
    options = SMALL | options | {"output": file}
    assert plan_speed.main([f"--{key}={value}" for key, value in options.items()]) == 0
    return json.loads(file.read_text())


def values(result):
    return {row["what"]: row["value"] for row in result["rows"]}


def test_without_torch_pruning_only_our_rows_appear(plan_speed, tmp_path, package, capsys):
    package("raise ImportError")
    result = measured(plan_speed, tmp_path, pairs=1, memory_runs=1)
    assert "pip install 'branchprune[compare]'" in " ".join(capsys.readouterr().out.split())
    assert "torch_pruning" not in result["versions"]
    seconds, memory = result["samples"]["seconds"], result["samples"]["memory"]
    assert {name: len(taken) for name, taken in seconds.items()} == {"plan": 1}
    size, growth = memory["model_bytes"], memory["growth_bytes"]["plan"]
    assert size == 4 * 1_235_496  # float32, no buffers
    assert len(growth) == 1 and growth[0] >= 0 and memory["method"] in ("VmHWM", "ru_maxrss")
    assert values(result) == {
        "plan, seconds": seconds["plan"][0],
        "peak memory in plan / model (squeezenet1_1 at 32)": (size + growth[0]) / size,
    }


def test_quotients_are_medians_over_pairs(plan_speed, tmp_path, package):
    package(STANDIN)
    result = measured(plan_speed, tmp_path, pairs=2, memory_runs=0)
    assert result["versions"]["torch_pruning"] == "0"
    assert {"hardware", "commit", "threads", "load", "options"} <= result.keys()
    assert result["samples"]["memory"] is None
    seconds, found = result["samples"]["seconds"], values(result)
    names = {"graph": "graph", "graph and groups": "groups"}
    for words, name in names.items():
        theirs = seconds[f"torch_pruning_{name}"]
        quotients = [a / b for a, b in zip(seconds["plan"], theirs, strict=True)]
        assert len(quotients) == 2
        assert found.pop(f"plan / Torch-Pruning's {words}") == statistics.median(quotients)
        median = found.pop(f"Torch-Pruning's {words}, seconds")
        assert median == statistics.median(theirs)
    assert found == {"plan, seconds": statistics.median(seconds["plan"])}


def test_a_plan_with_a_target_is_timed_on_as_many_images(plan_speed, monkeypatch):
    given, real = [], plan_speed.bp.plan

    def plan(*args, **options):
        given.append(options)
        return real(*args, **options)

    monkeypatch.setattr(plan_speed.bp, "plan", plan)
    options = plan_speed.Options("squeezenet1_1", 32, target_images=5, target_image_size=32)
    start = time.perf_counter()
    row = plan_speed.target_row(options)
    assert 0 < row.value == row.low == row.high < time.perf_counter() - start
    assert row.what == "plan for half of the multiply-adds (5 images of 32×32), seconds"
    assert row.target == "≤ 120"
    [options] = given
    assert options["target"] == {"macs": 0.5} and sum(map(len, options["batches"])) == 5


def test_the_peak_is_that_of_one_call(monkeypatch, plan_speed, package):
    """Memory that was freed before does not count, nor hide what the call frees again."""
    package("raise ImportError")
    before, during = torch.ones(50_000_000), 10_000_000
    del before
    monkeypatch.setattr(plan_speed.bp, "plan", lambda *_: torch.ones(during).sum())
    options = plan_speed.Options(memory_model="squeezenet1_1", memory_image_size=32, probe="plan")
    result = plan_speed.probe(options)
    known = result["method"] != "ru_maxrss"  # where a peak cannot be reset it is a lower bound
    assert 4 * during * 0.99 * known <= result["growth_bytes"] < 4 * during * 1.2
    monkeypatch.setattr("branchprune.benchmarks.child.PROC", Path("no such folder"))
    result = plan_speed.probe(options)
    assert result["method"] == "ru_maxrss" and result["growth_bytes"] >= 0


def test_a_wrong_argument_is_named(plan_speed, capsys):
    for argument in ("model=resnet51", "memory_model=VGG", "pairs=0"):
        with pytest.raises(SystemExit):
            plan_speed.main([f"--{argument}"])
        assert f"{argument.replace('=', ' (=')})" in capsys.readouterr().err


def test_the_result_is_recorded_if_that_is_asked_for(plan_speed, tmp_path, package, monkeypatch):
    package("raise ImportError")
    (tmp_path / "scripts" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_speed, "measure_seconds", lambda *_: {"plan": [1.0]})
    recorded = tmp_path / "scripts" / "results" / "plan_speed.json"
    few = ["--memory_runs=0", "--target_images=0"]
    assert plan_speed.main(few) == 0 and not recorded.exists()
    assert plan_speed.main([*few, "--record"]) == 0
    assert values(json.loads(recorded.read_text())) == {"plan, seconds": 1.0}
