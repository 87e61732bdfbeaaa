"""The tables of the field's methods, and what is measured beside them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import trainer
from torch import nn

from branchprune.cli import main
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare.results import Results
from branchprune.lightning import ClassificationTask
from branchprune.models import ResNet
from branchprune.planning.profiling import count_macs
from branchprune.runtimes.onnx_model import onnx_model

SCRIPTS = Path(__file__).parents[2] / "scripts"
X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def network() -> ResNet:
    torch.manual_seed(0)
    model = ResNet(14, (6, 8, 10)).train()
    model(torch.randn(64, 3, 8, 8))
    return model.eval()


def test_every_method_has_its_source(script: Any) -> None:
    table = script("method_tables").sources_table()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    found = {row[1]: row for row in rows}
    assert all(len(row) == 6 and all(row) for row in rows) and len(found) == len(rows)
    assert found["empirical Fisher"][:3] == ["Criterion", "empirical Fisher", "`fisher`"]
    assert found["empirical Fisher"][4].startswith("Theis et al., ")
    assert found["branches"][0] == "Schedule" and "Gschossmann" in found["branches"][4]
    choices = {row[0] for row in rows}
    assert choices == {*"Criterion Ranking Penalty Schedule Tuning Decision Level".split()}


def test_gates_of_one_image_compute_what_those_of_many_do(script: Any) -> None:
    gated = script("gated_network")
    model = gated.gated(network(), 0.5).eval()
    with torch.no_grad():
        whole = model(X)
        parts = [each for each in model.modules() if isinstance(each, gated.GatedConv)]
        assert len(parts) == 12
        for part in parts:
            part.skips = True
        alone = torch.cat([model(x[None]) for x in X])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)
    seen = []
    parts[0].register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        model(X)
    assert [int(each.flatten(1).any(1).sum()) for each in seen[0]] == [3] * len(X)
    assert parts[0].kept == 3


def test_multiply_adds_with_gates(script: Any) -> None:
    module, gated = script("masks_and_gates"), script("gated_network")
    model = network()
    macs = module.macs_by_layer(model, X[:1])
    assert sum(macs.values()) == count_macs(model, X[:1])
    block = {name: each for name, each in macs.items() if name.startswith("stages.1.1.")}
    made = gated.gated(model, 0.5)
    expected = sum(macs.values()) - sum(
        each for name, each in macs.items() if name.startswith("stages.") and "shortcut" not in name
    )
    for name, each in macs.items():
        if name.endswith("conv1") or name.endswith("conv2"):
            layer = model.get_submodule(name)
            inputs, outputs = layer.in_channels, layer.out_channels
            read = (outputs // 2) / inputs if name.endswith("conv2") else 1
            expected += each * read * (outputs // 2) / outputs + inputs * outputs
    assert len(block) == 2
    assert gated.macs_with_gates(macs, made) == pytest.approx(expected)
    within = module.gates_of(model, macs, 0.6)
    assert 0.5 < gated.macs_with_gates(macs, within) / sum(macs.values()) <= 0.6


def test_masks_stay_while_the_rest_learns(script: Any) -> None:
    module = script("masks_and_gates")
    model = network()
    found = module.masked(model, 0.25)
    weights = torch.cat([w.flatten() for w in layers(model)])
    bound = weights.abs().sort(descending=True).values[round(0.25 * len(weights))]
    for before, after in zip(layers(model), layers(found), strict=True):
        torch.testing.assert_close(after, torch.where(before.abs() > bound, before, 0))
    keeps = module.StayZero(found)
    zero = [each == 0 for each in layers(found)]
    with torch.no_grad():
        for each in layers(found):
            each += 1.0
    keeps.on_train_batch_end(trainer(1), ClassificationTask(found))
    assert all(torch.equal(each == 0, z) for each, z in zip(layers(found), zero, strict=True))


def layers(model: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_masks_and_gates_are_trained_judged_and_timed(script: Any, tmp_path: Path) -> None:
    file = str(SCRIPTS.parent / "configs" / "methods.yaml")
    dense = ["dense", file, "--variant", "digits", "--fast", "true"]
    assert main([*dense, "--output", str(tmp_path / "dense")]) == 0
    module, output = script("masks_and_gates"), tmp_path / "found.json"
    given = ["--methods", file, "--variant", "digits", "--seeds", "[0]", "--epochs", "1"]
    given += ["--dense", str(tmp_path / "dense" / "dense.safetensors"), "--seconds", "0.01"]
    assert module.main([*given, "--output", str(output)]) == 0
    masks, gates = json.loads(output.read_text())["rows"]
    assert masks["method"] == "masks" and gates["method"] == "gates"
    assert 0 < masks["nonzero"] < 0.3 and gates["nonzero"] == 1
    assert masks["macs"] == pytest.approx(0.1432, abs=0.001)
    assert gates["macs"] <= 0.1432 and {*gates["ms"]} == {
        f"{kind}, pytorch" for kind in ("dense", "narrow", "gates")
    }
    assert len(masks["ms"]) == 6 and all(each > 0 for each in masks["ms"].values())
    table = script("method_tables").beside_table(json.loads(output.read_text()))
    assert "| masks | " in table and "onnxruntime: dense" in table


def test_the_cost_of_criteria_is_measured(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, output = script("criteria_cost"), tmp_path / "found.json"
    tried = ["l1", "apoz", "taylor", "fisher", "obd", "discrimination"]
    monkeypatch.setattr(module, "CRITERIA", tried[:3])
    monkeypatch.setattr(module, "MADE", tried[3:])
    monkeypatch.setattr(module, "network", small_network)
    small = ["--turns", "1", "--output", str(output)]
    assert module.main(small) == 0
    found = json.loads(output.read_text())
    assert [row["criterion"] for row in found["rows"]] == tried
    table = script("method_tables").cost_table(found)
    assert "| `obd` | " in table


def test_models_of_fewer_blocks_are_timed_beside_the_dense_one(script: Any, tmp_path: Path) -> None:
    module, output = script("depth_latency"), tmp_path / "found.json"
    arguments = ["--runs", str(tmp_path), "--seconds", "0.05", "--image_size", "8"]
    with pytest.raises(SystemExit, match="has no exported model of depth_16px"):
        module.main(arguments)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)).eval()
    name = "depth_16px+mobilenet/half/a_third_of_the_blocks_and_widths-1"
    for run in (name, f"{name[:-1]}0"):  # the second is not done
        folder = tmp_path / run / "export"
        folder.mkdir(parents=True)
        for kind, model in (("dense", network()), ("small", small)):
            (folder / f"{kind}.onnx").write_bytes(onnx_model(model, X[:1]))
    (tmp_path / name / "result.json").write_text('{"left_out": ["a", "b"]}')
    assert module.main([*arguments, "--output", str(output)]) == 0
    [row] = json.loads(output.read_text())["rows"]
    known = ["MobileNetV2", "half", "a third of the blocks, and widths", 1]
    assert [row[key] for key in ("network", "budget", "method", "seed")] == known
    assert row["left_out"] == ["a", "b"]
    low, median, high = row["faster"]
    assert 1 < low <= median <= high  # of 12 convolutions and one
    assert row["dense_ms"] > row["small_ms"] > 0


def test_the_table_of_depth_is_of_means_over_seeds(script: Any) -> None:
    names = [("half", "widths", 0), ("half", "widths", 1), ("half", "blocks and widths", 0)]
    keys = ("network", "budget", "method", "seed")
    times = [(0.5, [1.9, 2.0, 2.1]), (0.7, [2.1, 2.2, 2.3]), (0.3, [3.0, 3.1, 3.2])]
    made = {"onnxruntime": "1", "hardware": "a processor", "torch": "2", "commit": "abc"}
    rows = [
        dict(zip(keys, ("ResNet-56", *name), strict=True))
        | made
        | {"small_ms": ms, "faster": of, "left_out": ["a"] * name[2]}
        for name, (ms, of) in zip(names, times, strict=True)
    ]
    lines = [
        {"preset": budget, "method": method, "seed": seed, "final": 0.7 + 0.1 * seed}
        for budget, method, seed in names
    ]
    comparison = compare_config.read(SCRIPTS.parent / "configs/compare/depth_16px.yaml")
    results = Results(comparison, [*lines, {**lines[0], "preset": "a quarter"}], {}, 0)
    found = {"rows": rows, "options": {"threads": 1, "image_size": 16}}
    table = script("method_tables").depth_table(found, {"ResNet-56": results})
    assert [line.strip("| ") for line in table.splitlines()[2:4]] == [
        "ResNet-56 | half | widths | 0 or 1 | 0.600 | 2.10 (2.00–2.20) | 75.00 (2)",
        "ResNet-56 | half | blocks and widths | 0 | 0.300 | 3.10 (3.00–3.20) | 70.00 (1)",
    ]
    assert "a quarter" not in table


def small_network(_: object) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    return network(), X[:4], torch.arange(4)
