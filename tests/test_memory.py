"""A teacher that remembers, and views that come again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from given_images import ALL, Given, attach
from test_lightning import loader, network, trainer
from test_pruning import CONFIG, Seen
from test_training_options import Tiny
from torch import Tensor, nn

import branchprune as bp
from branchprune.cli import main
from branchprune.json_lines import read_lines
from branchprune.lightning import ClassificationTask, TrainingCost
from branchprune.memory import Memory, fingerprints
from branchprune.teaching import Teacher


class Counting:
    """Twice its input; notes how many examples it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return 2 * x.flatten(1)


def test_what_is_known_is_not_asked_again() -> None:
    memory, function = Memory(), Counting()
    x = torch.randn(9, 3, 2, 2)
    for part in (x[:4], x[2:6], x[:6].flip(0), x[[8, 8, 0]], x, x):
        assert torch.equal(memory.recall(part, function), 2 * part.flatten(1))
    assert function.asked == [4, 2, 2, 2]
    again = Memory()
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.recall(x.flip(0), Counting()), 2 * x.flip(0).flatten(1))
    later = torch.randn(50, 3, 2, 2)
    assert torch.equal(again.recall(later, function), 2 * later.flatten(1))
    assert torch.equal(again.recall(x, function), 2 * x.flatten(1))
    assert function.asked == [4, 2, 2, 2, 50]


def test_the_last_bit_and_the_place_of_a_value_count_and_the_layout_does_not() -> None:
    x = torch.randn(64, 3, 4, 4)
    changed = torch.nextafter(x, x + 1)
    one = torch.where(
        torch.arange(48).view(3, 4, 4) == torch.arange(48)[:, None, None, None], changed[0], x[0]
    )
    moved = torch.stack([x[0].flatten().roll(k).view(3, 4, 4) for k in range(48)])
    keys = fingerprints(torch.cat([x, one, moved[1:]])).tolist()
    assert len({*keys}) == len(keys) == 64 + 48 + 47
    other = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(fingerprints(other), fingerprints(x))
    assert torch.equal(fingerprints(x[5:7]), fingerprints(x)[5:7])


def test_outputs_that_are_none_of_an_example_are_refused() -> None:
    with pytest.raises(bp.PruneError, match="an output for each of 4"):
        Memory().recall(torch.randn(4, 2), lambda x: x.sum())


def test_a_teacher_that_remembers_says_the_same() -> None:
    model, x = network(), torch.randn(6, 1, 8, 8)
    plain, remembering = Teacher(model), Teacher(model, remembers=True)
    for _ in range(2):
        assert torch.equal(plain(x)[0], remembering(x)[0])
    nn.init.zeros_(remembering.network.classifier.weight)
    assert torch.equal(plain(x)[0], remembering(x)[0])  # nothing is computed
    assert not torch.equal(plain(x + 1)[0], remembering(x + 1)[0])


def test_the_multiply_adds_of_a_teacher_are_spent_once() -> None:
    """The batches of the loader are the same in every epoch."""
    costs = {}
    for remember in (False, True):
        cost = TrainingCost()
        task = ClassificationTask(
            network(), teacher_weight=0.5, remember=remember, learning_rate=0.01
        )
        run = trainer(4, cost)
        run.fit(task, loader(), loader())
        costs[remember] = cost.macs
    forward = bp.plan(network(), next(iter(loader()))[0][:1]).before.macs
    images = sum(len(x) for x, _ in loader())
    assert costs[False] - costs[True] == 3 * forward * images


@pytest.mark.parametrize("views", [1, 3])
def test_views_come_again_in_any_order(views: int) -> None:
    data = Given(**(ALL | {"noise": 0.0}), views=views)
    shown: list[dict[int, set[bytes]]] = []
    order = []
    for epoch in range(2 * views):
        attach(data, epoch)
        batches = [*data.train_dataloader()]
        labels = torch.cat([y for _, y in batches]).tolist()
        images = torch.cat([x for x, _ in batches])
        order.append(labels)
        found: dict[int, set[bytes]] = {}
        for image, label in zip(images, labels, strict=True):
            found.setdefault(label, set()).add(image.numpy().tobytes())
        shown.append(found)
    assert all(a != b for a, b in pairwise(order))
    for first, again in zip(shown, shown[views:], strict=False):
        assert all(first[label] == again[label] for label in first.keys() & again.keys())
    if views > 1:
        both = shown[0].keys() & shown[1].keys()
        assert any(shown[0][label] != shown[1][label] for label in both)


def test_noise_does_not_come_again() -> None:
    with pytest.raises(bp.PruneError, match=r"noise \(=0.1\): views \(=2\)"):
        Given(noise=0.1, views=2)


def test_a_checkpoint_without_memory_is_loaded(tmp_path: Path) -> None:
    run = trainer(1)
    run.fit(ClassificationTask(network()), loader(), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    task = ClassificationTask(network(), teacher_weight=0.5, remember=True)
    trainer(2).fit(task, loader(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert task.teacher is not None and task.teacher.memory is not None
    assert len(task.teacher.memory.places) == sum(len(x) for x, _ in loader())


class OneView(Tiny):
    views = 1


def settings(text: str) -> str:
    return (
        CONFIG.replace("Tiny}", "OneView}").replace("test_training_options.One", "test_memory.One")
        + text
    )


@pytest.mark.parametrize(
    "text", ["levels: null, finetune: {}", "levels: [0.5, 0.0]", "levels: [0.5, 0.0], finetune: {}"]
)
def test_a_budget_knows_what_is_remembered(text: str, tmp_path: Path) -> None:
    """As `test_a_budget_of_multiply_adds_is_kept_and_used`."""
    Seen.seen = []
    task = "task: {teacher_weight: 0.5, remember: true}"
    lines: list[dict[str, Any]] = []
    for macs in ("3.0e+7", "3.6e+7"):
        config = tmp_path / f"{macs}.yaml"
        config.write_text(settings(f"prune: {{{text}, {task}, budget: {{train_macs: {macs}}}}}\n"))
        assert main(["run", str(config), "--output", str(tmp_path / macs)]) == 0
        lines.append(read_lines(tmp_path / "results" / "tiny.jsonl")[-1])
    last = "finetune" if "finetune" in lines[0]["epochs"] else "prune"
    longer = lines[1]["epochs"][last] - lines[0]["epochs"][last]
    an_epoch = (lines[1]["train_macs"] - lines[0]["train_macs"]) / longer
    assert longer >= 1 and 0 <= 3.0e7 - lines[0]["train_macs"] < an_epoch


def test_a_checkpoint_holds_what_the_teacher_remembers(tmp_path: Path) -> None:
    task = ClassificationTask(network(), teacher_weight=0.5, remember=True)
    run = trainer(1)
    run.fit(task, loader(), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    resumed = ClassificationTask(network(), teacher_weight=0.5, remember=True)
    cost = TrainingCost()
    trainer(2, cost).fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert task.teacher is not None and resumed.teacher is not None
    first, second = task.teacher.memory, resumed.teacher.memory
    assert first is not None and second is not None
    assert first.places == second.places
    assert torch.equal(first.state_dict()["outputs"], second.state_dict()["outputs"])
