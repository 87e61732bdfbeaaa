"""A teacher that remembers what it said of the first views of each example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from given_images import ALL, Given
from observed_runs import CONFIG, Seen
from pytorch_lightning import Trainer
from small_training import Tiny, loader, network, numbered, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.files import read_lines
from branchprune.experiments.run.callbacks.training_cost import TrainingCost
from branchprune.lightning import ClassificationTask
from branchprune.training.distillation import Teacher
from branchprune.training.logit_cache import LogitCache

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")


class Counting:
    """Twice its input; notes how many examples it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return 2 * x.flatten(1)


def test_after_so_many_views_the_mean_is_recalled() -> None:
    generator, memory, function = torch.Generator().manual_seed(0), LogitCache(3), Counting()
    said: dict[int, list[Tensor]] = {}
    computed = 0
    for step in range(40):
        numbers = torch.randperm(9 if step < 20 else 30, generator=generator)[:4]
        x = torch.randn(4, 3, 2, 2, generator=generator)
        found = memory.recall(x, numbers, function)
        for number, view, output in zip(numbers.tolist(), x, found, strict=True):
            known = said.setdefault(number, [])
            if len(known) < 3:
                known.append(2 * view.flatten())
                computed += 1
                assert torch.equal(output, known[-1])
            else:
                assert torch.allclose(output, sum(known) / 3, atol=1e-6)  # type: ignore[arg-type]
        if step % 7 == 0:  # as a checkpoint does
            state, memory = memory.state_dict(), LogitCache(3)
            memory.load_state_dict(state)
    assert sum(function.asked) == computed < 4 * 40
    assert min(len(views) for views in said.values()) < 3


def test_an_example_may_come_twice_in_a_batch() -> None:
    memory, x = LogitCache(1), torch.randn(3, 2)
    assert torch.equal(memory.recall(x, torch.tensor([5, 5, 0]), Counting()), 2 * x)
    again = memory.recall(torch.zeros(2, 2), torch.tensor([0, 5]), Counting())
    assert torch.allclose(again, torch.stack([2 * x[2], x[0] + x[1]]))


def test_an_output_may_be_a_number() -> None:
    memory, x = LogitCache(2), torch.randn(3, 4, 5)
    for views in x[:2]:
        for i in range(4):
            memory.recall(views[i : i + 1], torch.tensor([i]), lambda view: view.sum(1))
    mean = memory.recall(x[2], torch.arange(4), Counting())
    assert torch.allclose(mean, x[:2].sum(2).mean(0), atol=1e-6)


def test_outputs_that_are_none_of_an_example_are_refused() -> None:
    with pytest.raises(bp.PruneError, match="an output for each of 4"):
        LogitCache(1).recall(torch.randn(4, 2), torch.arange(4), lambda x: x.sum())


def test_a_teacher_that_remembers_looks_at_first() -> None:
    model, views, which = network(), torch.randn(3, 6, 1, 8, 8), torch.arange(6)
    plain, remembering = Teacher(model), Teacher(model, looks=2)
    said = [plain(x)[0] for x in views]
    for x, expected in zip(views[:2], said[:2], strict=True):
        assert torch.equal(remembering(x, numbers=which)[0], expected)
    nn.init.zeros_(remembering.network.classifier.weight)  # nothing is computed any more
    recalled = remembering(views[2], numbers=which.flip(0))[0]
    assert torch.allclose(recalled, ((said[0] + said[1]) / 2).flip(0), atol=1e-6)


def test_what_is_remembered_is_summed_in_single_precision() -> None:
    memory, views = LogitCache(3), torch.tensor([[[2048.0]], [[1.0]], [[1.0]]])
    for view in views:
        memory.recall(view, torch.tensor([0]), Tensor.half)
    found = memory.recall(views[0], torch.tensor([0]), Tensor.half)
    assert found.item() == pytest.approx(2050 / 3)  # as a half, 2048 + 1 is 2048


def test_a_checkpoint_is_of_its_time() -> None:
    memory, other, numbers = LogitCache(5), LogitCache(5), torch.arange(2)
    memory.recall(torch.ones(2, 3), numbers, Tensor.clone)
    state = memory.state_dict()
    other.load_state_dict(state)
    for cache in (memory, other):
        cache.recall(torch.ones(2, 3), numbers, Tensor.clone)
        assert cache.counts.tolist() == [2, 2]
    assert state["counts"].tolist() == [1, 1] and torch.equal(state["sums"], torch.ones(2, 3))


def test_the_multiply_adds_of_a_teacher_are_spent_on_its_looks() -> None:
    costs = {}
    for remember in (None, 2):
        cost = TrainingCost()
        task = ClassificationTask(
            network(), teacher_weight=0.5, remember=remember, learning_rate=0.01
        )
        trainer(5, cost).fit(task, numbered(shuffle=True), loader())
        costs[remember] = cost.macs
    forward = bp.plan(network(), next(iter(loader()))[0][:1]).before.macs
    images = sum(len(x) for x, _ in loader())
    assert costs[None] - costs[2] == 3 * forward * images


def test_batches_without_numbers_are_refused() -> None:
    task = ClassificationTask(network(), teacher_weight=0.5, remember=2)
    with pytest.raises(bp.PruneError, match=r"remember \(=2\): .* third entry"):
        trainer(1).fit(task, loader(), loader())
    x, y = next(iter(loader()))
    task.check_batch((x, y, torch.arange(len(x)), torch.ones(len(x))))
    for wrong in (torch.arange(len(x)) - 1, torch.ones(len(x)), torch.arange(3), ["a"] * len(x)):
        with pytest.raises(bp.PruneError, match=r"remember \(=2\)"):
            task.check_batch((x, y, wrong))  # type: ignore[arg-type]
    with pytest.raises(bp.PruneError, match=r"numbers \(=None\): .* looks \(=2\)"):
        Teacher(network(), looks=2)(x)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = ClassificationTask(network(), teacher_weight=0.5, remember=2)
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(bp.PruneError, match=r"remember \(=2\): there are 2 processes"):
        trainer(1).fit(task, numbered(), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remember": 0, "teacher_weight": 0.5}, r"remember \(=0\)"),
        ({"remember": -1, "teacher_weight": 0.5}, r"remember \(=-1\)"),
        ({"remember": True, "teacher_weight": 0.5}, r"remember \(=True\)"),
        ({"remember": 2.5, "teacher_weight": 0.5}, r"remember \(=2.5\)"),
        ({"remember": 2}, r"teacher_weight \(=0.0\)"),
        ({"remember": 2, "teacher_weight": 0.5, "feature_weight": 1.0}, r"feature_weight \(=1.0\)"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(bp.PruneError, match=message):
        ClassificationTask(network(), **options)


@pytest.mark.parametrize("labels", ["own", None])
def test_numbers_of_images_are_their_places(labels: str | None) -> None:
    data = Given(**ALL, labels=labels, numbered=True)
    plain = Given(**ALL, labels=labels)
    plain.given = data.given
    data.seed = plain.seed
    seen = []
    for batch, (inputs, targets) in zip(
        data.train_dataloader(), plain.train_dataloader(), strict=True
    ):
        assert torch.equal(batch[0], inputs) and torch.equal(batch[1], targets)
        seen += batch[2].tolist()
        if labels:
            assert torch.equal(batch[1], batch[2])
    assert sorted(seen) == [*range(40)]
    assert {len(batch) for batch in (*data.val_dataloader(), *data.test_dataloader())} == {2}


def test_a_checkpoint_without_memory_is_loaded(tmp_path: Path) -> None:
    run = trainer(1)
    run.fit(ClassificationTask(network()), loader(), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    task = ClassificationTask(network(), teacher_weight=0.5, remember=1)
    trainer(2).fit(task, numbered(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert task.teacher is not None and task.teacher.memory is not None
    assert int(task.teacher.memory.counts.sum()) == sum(len(x) for x, _ in loader())


class Numbered(Tiny):
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return numbered(shuffle=True)


def settings(text: str) -> str:
    data = "data: {class_path: test_memory.Numbered}"
    return CONFIG.replace("data: {class_path: small_training.Tiny}", data) + text


@pytest.mark.parametrize(
    "text",
    [
        "cut: {}, finetune: {}",
        "blend: {levels: [0.5, 0.0]}",
        "blend: {levels: [0.5, 0.0]}, finetune: {}",
    ],
)
def test_a_budget_knows_what_is_remembered(text: str, tmp_path: Path) -> None:
    """As `test_a_budget_of_multiply_adds_is_kept_and_used`."""
    Seen.seen = []
    task = "task: {teacher_weight: 0.5, remember: 2}"
    lines: list[dict[str, Any]] = []
    for macs in ("2.1e+7", "2.5e+7"):
        config = tmp_path / f"{macs}.yaml"
        config.write_text(settings(f"prune: {{{text}, {task}, cost: {{train_macs: {macs}}}}}\n"))
        assert main(["run", str(config), "--output", str(tmp_path / macs)]) == 0
        lines.append(read_lines(tmp_path / "results" / "tiny.jsonl")[-1])
    last = "finetune" if "finetune" in lines[0]["epochs"] else "prune"
    longer = lines[1]["epochs"][last] - lines[0]["epochs"][last]
    an_epoch = (lines[1]["train_macs"] - lines[0]["train_macs"]) / longer
    assert longer >= 1 and 0 <= 2.1e7 - lines[0]["train_macs"] < an_epoch


def test_a_checkpoint_holds_what_the_teacher_remembers(tmp_path: Path) -> None:
    task = ClassificationTask(network(), teacher_weight=0.5, remember=2)
    run = trainer(1)
    run.fit(task, numbered(), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    resumed = ClassificationTask(network(), teacher_weight=0.5, remember=2)
    trainer(2).fit(
        resumed, numbered(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert task.teacher is not None and resumed.teacher is not None
    first, second = task.teacher.memory, resumed.teacher.memory
    assert first is not None and second is not None
    assert first.sums is not None and second.sums is not None
    assert second.counts[:24].eq(2).all() and first.counts[:24].eq(1).all()
    assert torch.allclose(second.sums[:24], 2 * first.sums[:24])
