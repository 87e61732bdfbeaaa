"""`prune.few_images`: some training images without labels instead of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from observed_runs import CONFIG
from safetensors.torch import load_file
from small_training import TinyVGG, loader

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run.results_file import read_lines
from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.student import Student
from branchprune.reports.summary import Summary

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

FEW = "prune: {criterion: {name: l1, fit: 1}, few_images: {images: 10, steps: 3, batch_size: 8}}\n"


def run(folder: Path, text: str, *options: str) -> int:
    (folder / "config.yaml").write_text(CONFIG + text)
    return main(["run", str(folder / "config.yaml"), "--output", str(folder / "run"), *options])


def test_it_learns_from_the_first_images_and_nothing_else(tmp_path: Path) -> None:
    assert run(tmp_path, FEW) == 0
    dense = bp.load(TinyVGG(), tmp_path / "run" / "dense.safetensors").eval()
    small = bp.load(TinyVGG(), tmp_path / "run" / "small.safetensors")
    line = read_lines(tmp_path / "results" / "tiny.jsonl")[-1]
    assert line["method"] == "few_images" and line["epochs"] == {"dense": 2, "prune": 0}
    assert line["train_macs"] > 0 and line["seconds"].keys() == {"dense", "prune"}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert Summary(result).line.endswith("matched on 10 images for 3 steps.")
    assert result["collapse"]["relative_error"] < 1e-10
    assert result["collapse"]["relative_error_own_dtype"] < 1e-5
    assert sum(p.numel() for p in small.parameters()) == result["cost"]["small"]["params"]
    images = torch.cat([x for x, _ in loader()])[:10]
    blended = bp.fit_expand(bp.attach(dense, bp.plan(dense, images[:1], 0.5)), [images])
    blended.alpha = 0.0
    student = Student(blended)
    learn(student, dense, images, Learning(3, 8, seed=0))
    torch.testing.assert_close(student.folded().state_dict(), small.state_dict())


def test_what_was_made_before_a_kill_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    assert run(tmp_path, FEW) == 0
    first = load_file(tmp_path / "run" / "small.safetensors")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "small.safetensors").unlink()
    monkeypatch.setattr(
        "branchprune.experiments.run.few_images.learn", lambda *_: pytest.fail("learns again")
    )
    assert run(tmp_path, FEW, "--resume") == 0
    torch.testing.assert_close(
        load_file(tmp_path / "run" / "small.safetensors"), first, atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("images", 1), ("steps", -1), ("batch_size", 1), ("learning_rate", 0.0), ("mixup", -1.0)],
)
def test_what_is_out_of_range_is_told(key: str, value: float, tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, f"prune: {{few_images: {{{key}: {value}}}}}\n") == 2
    assert f"few_images.{key} (={value})" in capsys.readouterr().err


def test_more_images_than_there_are_are_refused(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, "prune: {few_images: {images: 100000}}\n") == 2
    assert "few_images.images (=100000) is more than the" in capsys.readouterr().err
