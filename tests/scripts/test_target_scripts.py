"""What is written of targets is of models that are built, and its tables of what is written."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from clocked_runtime import Clocked, stopped_clock
from models import scramble, vgg
from torchvision import models

import branchprune as bp

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def table(script, name, path):
    return getattr(script("target_tables"), f"{name}_table")(json.loads(path.read_text()))


def test_budgets_are_used_and_counted_by_the_built_model(script, tmp_path):
    reach, path = script("target_reach"), tmp_path / "reach.json"
    assert reach.main(["--models", "[squeezenet1_1]", "--output", str(path)]) == 0
    rows = {row["what"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows.keys() == {"params", "macs"}
    for row in rows.values():
        assert 0.98 <= row["used"] <= 1 and row["one_share"] <= 1 and row["asked"] == 0.5
    text = table(script, "reach", path)
    assert "| params | 1 | 0 | " in text and "Less than 98 %" not in text
    model = models.squeezenet1_1(weights=None).eval()
    _, example, structure = reach._planned("squeezenet1_1")
    kept = torch.tensor([group.width for group in structure.groups], dtype=torch.double)
    traced = reach.Traced(model, structure, example)
    assert reach.counted(traced, "params", kept) == sum(p.numel() for p in model.parameters())


def test_latencies_are_timed_anew(script, tmp_path, monkeypatch):
    latency, path = script("target_latency"), tmp_path / "latency.json"
    clock = Clocked(stopped_clock(monkeypatch))
    monkeypatch.setattr(latency, "runtime_of", lambda name, threads: clock)
    torch.manual_seed(0)
    network = vgg((32, 48, 64)).eval()
    monkeypatch.setattr(latency.models, "get_model", lambda name, weights: network)
    options = ["--models", "[vgg]", "--images", "8", "--image_size", "8", "--seconds", "0"]
    assert latency.main([*options, "--output", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["dense_ms"] == pytest.approx(1000 * clock.seconds(network)) and row["spread"] < 1e-6
    assert row["used"] == pytest.approx(row["planned"]) and 0.9 < row["used"] <= 1
    assert "1 of 1 models are within 1.03" in table(script, "latency", path)


def test_changes_that_add_up_rank_widths_alike(script, tmp_path, monkeypatch):
    additivity, path = script("additivity"), tmp_path / "additivity.json"
    torch.manual_seed(0)
    found = scramble(vgg((16, 24, 32))).eval(), torch.randn(16, 3, 8, 8)
    monkeypatch.setattr(additivity, "_network", lambda comparison, options: found)
    for name in ("ResNet-56", "autoencoder"):
        options = ["--networks", f"[{name}]", "--drawn", "8", "--output", str(path)]
        assert additivity.main(options) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["network"] for row in rows] == ["ResNet-56", "autoencoder"]
    ranks = [[sorted(rows[0][k]).index(x) for x in rows[0][k]] for k in ("predicted", "measured")]
    square = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    assert rows[0]["spearman"] == pytest.approx(1 - 6 * square / (8 * 63))
    assert rows[0]["compared"]["selected"] <= rows[0]["compared"]["one_share"]
    assert f"| autoencoder | {rows[1]['spearman']:.2f} |" in table(script, "additivity", path)
    assert all(row["commit"] and row["hardware"] for row in rows)
    with pytest.raises(bp.PruneError, match="holds rows of other options"):
        additivity.main([*options, "--seed", "3"])
    with pytest.raises(SystemExit):
        additivity.main(["--networks", "[LeNet]"])


@pytest.mark.parametrize(
    ("second", "found"), [([1, 2, 3, 4], 1.0), ([8, 6, 4, 2], -1.0), ([2, 1, 4, 3], 0.6)]
)
def test_rank_correlation(script, second, found):
    assert script("additivity").spearman([1, 5, 6, 9], second) == pytest.approx(found)
