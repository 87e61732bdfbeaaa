"""Criteria that are made of training batches, in runs, against those that are made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from observed_runs import CONFIG
from small_training import TinyVGG, loader
from torch import Tensor
from torch.nn.functional import cross_entropy

import branchprune as bp
from branchprune.cli import main

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

EXAMPLE = torch.randn(1, 1, 8, 8)


def batches() -> list[tuple[Tensor, Tensor]]:
    return [batch for batch, _ in zip(loader(), range(2), strict=False)]


def of_examples(model: Any) -> Any:
    for x, y in batches():
        yield from (cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x)))


def by_hand(name: str, model: Any, plan: bp.Plan) -> Any:
    if name == "fisher":
        return bp.fisher(model, of_examples(model))
    if name == "discrimination":
        return bp.discrimination(model, plan, batches())
    return name


def go(folder: Path, criterion: str, how: str = "cut: {}, finetune: {epochs: 1}") -> int:
    named = f"{{name: {criterion}, calibration: 2}}"
    (folder / "config.yaml").write_text(f"{CONFIG}prune: {{criterion: {named}, {how}}}\n")
    return main(["run", str(folder / "config.yaml"), "--output", str(folder / "run")])


@pytest.mark.parametrize("name", ["fisher", "discrimination", "apoz"])
def test_a_run_keeps_the_channels_that_it_would_by_hand(tmp_path: Path, name: str) -> None:
    assert go(tmp_path, name, "cut: {}") == 0
    dense = bp.load(TinyVGG(), tmp_path / "run" / "dense.safetensors").eval()
    plan = bp.plan(dense, EXAMPLE, 0.5)
    init = by_hand(name, dense, plan)
    blended = bp.attach(dense, plan, init, batches=[x for x, _ in batches()])
    blended.alpha = 0.0
    expected = bp.collapse(blended).state_dict()
    found = bp.load(TinyVGG(), tmp_path / "run" / "small.safetensors").state_dict()
    assert all(torch.equal(found[key], each) for key, each in expected.items())
    other = bp.attach(dense, plan, "l1")
    other.alpha = 0.0
    by_norm = bp.collapse(other).state_dict()
    assert any(not torch.equal(found[key], each) for key, each in by_norm.items())


def test_a_blended_run_starts_from_the_curvature(tmp_path: Path) -> None:
    assert go(tmp_path, "obd", "blend: {levels: [0.5, 0.0]}") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["collapse"]["relative_error"] < 1e-10


def test_a_target_is_met_with_a_criterion_of_data(tmp_path: Path) -> None:
    assert go(tmp_path, "fisher", "widths: {target: {macs: 0.5}}, cut: {}") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["cost"]["small"]["macs"] <= 0.5 * result["cost"]["dense"]["macs"]


def test_without_batches_it_is_told_before_training(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.yaml").write_text(
        f"{CONFIG}prune: {{criterion: {{name: obd}}, cut: {{}}}}\n"
    )
    assert main(["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert "(='obd') sees criterion.calibration (=0) batches" in capsys.readouterr().err
