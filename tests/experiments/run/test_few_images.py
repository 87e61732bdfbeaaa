"""`prune.few_images`: some training images without labels instead of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observed_runs import CONFIG
from PIL import Image
from safetensors.torch import load_file
from small_training import TinyVGG, loader

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run.results_file import read_lines
from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.student import Student
from branchprune.graph.memory_format import put_channels_last
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
    blended = bp.fit_expand(bp.attach(dense, bp.plan(dense, images[:1], 0.5)), [images], ridge=0.1)
    blended.alpha = 0.0
    put_channels_last([dense, blended], images)
    student = Student(blended)
    put_channels_last([student.model], images)
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
    [
        *[
            ("images", 1),
            ("steps", -1),
            ("batch_size", 1),
            ("learning_rate", 0.0),
            ("form.mixing_alpha", -1.0),
        ],
        ("form.steps_a_look", 0),
        *[("form.weight_decay", -1.0), ("form.ridge", -1.0), ("form.finish.average", 2.0)],
    ],
)
def test_what_is_out_of_range_is_told(key: str, value: float, tmp_path: Path, capsys: Any) -> None:
    text = str(value)
    for name in reversed(key.split(".")):
        text = f"{{{name}: {text}}}"
    assert run(tmp_path, f"prune: {{few_images: {text}}}\n") == 2
    assert f"few_images.{key} (={value})" in capsys.readouterr().err


def test_a_view_that_is_none_is_told(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, "prune: {few_images: {form: {views: [crop]}}}\n") == 2
    told = "few_images.form.views: 'crop' is none of crops, colours, noise"
    assert told in capsys.readouterr().err


def test_a_criterion_that_needs_labels_is_told(tmp_path: Path, capsys: Any) -> None:
    text = "prune: {criterion: {name: taylor}, few_images: {}}\n"
    assert run(tmp_path, text) == 2
    assert "(='taylor') needs labels, few_images has none" in capsys.readouterr().err


FORMS = {
    "form: {match: head, mixing: mixup, views: [crops, colours, noise]}": -1,
    "form: {match: maps, error: mean, optimizer: sgd, weight_decay: 0.1}": -1,
    "form: {optimizer: muon, finish: {average: 0.5, recalibrate: 2, refit: 2}}": 1,
    "form: {steps_a_look: 2}": -1,
    "form: {fresh: true, folder: FOLDER}": 0,
    "form: {blended: {steps: 3, drawn: prefix}}": 1,
    "form: {blended: {steps: 3, order: robust first}}": 1,
}
"""Forms, and whether they cost more than the plain one."""


def test_it_learns_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (12, 9, 9, 3), np.uint8)):
        Image.fromarray(image).save(tmp_path / "others" / f"{i}.png")
    small, macs = [], []
    for i, form in enumerate(["form: {mixing_alpha: 1.0}", *FORMS]):
        form = form.replace("FOLDER", str(tmp_path / "others"))
        text = FEW.replace("images: 10", f"images: 10, {form}")
        text += "precision: bf16-mixed\n" if "maps" in form else ""
        dense = ["--dense.epochs", "0", "--dense.checkpoint", str(tmp_path / "0/dense.safetensors")]
        assert run(tmp_path, text, "--output", str(tmp_path / str(i)), *dense * bool(i)) == 0
        small.append(load_file(tmp_path / str(i) / "small.safetensors"))
        macs.append(read_lines(tmp_path / "results" / "tiny.jsonl")[-1]["train_macs"])
    for found in small[1:]:
        assert any(not torch.equal(value, small[0][key]) for key, value in found.items())
    assert [(here > macs[0]) - (here < macs[0]) for here in macs[1:]] == [*FORMS.values()]


def test_too_few_images_in_a_folder_are_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "others").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "others" / "0.png")
    folder = tmp_path / "others"
    assert run(tmp_path, f"prune: {{few_images: {{images: 9, form: {{folder: {folder}}}}}}}\n") == 2
    assert "few_images.images (=9) is more than the 1 in few_images.form.folder" in (
        capsys.readouterr().err
    )


def test_more_images_than_there_are_are_refused(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, "prune: {few_images: {images: 100000}}\n") == 2
    assert "few_images.images (=100000) is more than the" in capsys.readouterr().err
