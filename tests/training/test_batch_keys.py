"""Batches that are dictionaries, models that return them or tuples: as tuples and tensors."""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pytorch_lightning import LightningDataModule
from small_training import loader, network, numbered, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import branchprune as bp
from branchprune.cli import main
from branchprune.errors import PruneError
from branchprune.lightning import (
    AdversarialTask,
    BranchPruning,
    ClassificationTask,
    Keys,
    ReconstructionTask,
)
from branchprune.models import VGG, Autoencoder

NAMED = Keys(input="image", target="label", number="id")


class Named:
    """A loader whose batches are dictionaries."""

    def __init__(self, plain: DataLoader) -> None:
        self.plain = plain

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.plain:
            yield dict(zip(("image", "label", "id"), batch, strict=False))

    def __len__(self) -> int:
        return len(self.plain)


class Loaders(LightningDataModule):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named

    def wrap(self, plain: DataLoader) -> Any:
        return Named(plain) if self.named else plain

    def train_dataloader(self) -> Any:
        return self.wrap(numbered())

    def val_dataloader(self) -> Any:
        return self.wrap(loader(seed=1))

    def test_dataloader(self) -> Any:
        return self.wrap(loader(seed=2))


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class Wrapped(nn.Module):
    """A network whose output is put into something."""

    def __init__(self, how: str = "dict") -> None:
        super().__init__()
        self.net, self.how = network(), how

    def forward(self, x: Tensor) -> Any:
        logits = self.net(x)
        if self.how == "dict":
            return OrderedDict(out=logits, aux=2 * logits)
        if self.how == "single":
            return {"out": logits}
        if self.how == "tuple":
            return 2 * logits, logits
        return Outputs(logits, 2 * logits) if self.training else logits


def trained(
    model: nn.Module, named: bool, pruned: bool = True, **options: Any
) -> dict[str, Tensor]:
    """Return the weights after training, pruning and collapsing."""
    torch.manual_seed(0)
    task = ClassificationTask(model, learning_rate=0.05, **options)
    schedule = bp.Schedule((0.5, 0.0))
    callbacks = [BranchPruning(schedule, init="reconstruction", calibration=2, fit=1)]
    run = trainer(2, *(callbacks if pruned else []))
    run.fit(task, Loaders(named))
    assert {"loss/train", "metric/val_acc"} <= run.callback_metrics.keys()
    assert not pruned or callbacks[0].small is task.model
    return {name.removeprefix("net."): value for name, value in task.model.state_dict().items()}


def check_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return trained(network(), named=False)


def test_batches_that_are_dictionaries(plain: dict[str, Tensor]) -> None:
    check_same(trained(network(), named=True, keys=NAMED), plain)


@pytest.mark.parametrize(
    ("how", "output"),
    [("dict", "out"), ("single", None), ("tuple", 1), ("named", "logits"), ("named", 0)],
)
def test_models_that_return_something_else(
    how: str, output: str | int | None, plain: dict[str, Tensor]
) -> None:
    check_same(trained(Wrapped(how), named=False, keys=Keys(output=output)), plain)


@pytest.mark.parametrize("remember", [None, 1])
def test_teachers_mixup_and_numbers_work_with_keys(remember: int | None) -> None:
    options: dict[str, Any] = {"teacher_weight": 0.5, "mixup": 0.4, "remember": remember}
    keys = Keys(**{**vars(NAMED), "output": "out"})
    named = trained(Wrapped(), named=True, pruned=False, keys=keys, **options)
    check_same(named, trained(network(), named=False, pruned=False, **options))


def test_features_of_a_teacher_work_with_keys() -> None:
    named = trained(Wrapped(), named=False, keys=Keys(output="out"), feature_weight=0.5)
    check_same(named, trained(network(), named=False, feature_weight=0.5))


def test_reconstruction() -> None:
    images = torch.rand(8, 3, 16, 16)
    found = []
    for batch, keys in [
        ((images, images), None),
        ({"noisy": images, "clean": images}, Keys(input="noisy", target="clean")),
    ]:
        torch.manual_seed(0)
        task = ReconstructionTask(Autoencoder([[8]], [[8]]), keys=keys)
        batches = DataLoader([batch], batch_size=None)
        trainer(1).fit(task, batches, batches)
        found.append(task.state_dict())
    check_same(*found)


def test_adversarial_batches_may_be_dictionaries() -> None:
    task = AdversarialTask(nn.Linear(1, 1), keys=Keys(input="image"))
    task.forward = lambda images: (images, images.mean((1, 2, 3)), images.mean((1, 2, 3)))  # type: ignore[method-assign, assignment, return-value]
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    images = torch.rand(4, 1, 8, 8)
    task.validation_step({"image": images}, 0)
    assert torch.equal(task.images[0][1], images)


@pytest.mark.parametrize(
    ("keys", "model", "message"),
    [
        (None, network, r"keys.input \(=None\).* batch \(dict: 'image', 'label'\)"),
        (Keys(input="image"), network, r"keys.target \(=None\).*keys=Keys\(target=…\)"),
        (Keys(input="imagee"), network, r"keys.input \(='imagee'\).*'image', 'label'"),
        (NAMED, Wrapped, r"keys.output \(=None\).* output \(OrderedDict: 'out', 'aux'\)"),
    ],
)
def test_what_is_missing_is_named(keys: Keys | None, model: Any, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        trained(model(), named=True, pruned=False, keys=keys)


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(PruneError, match=r"entry 'meta' of the batch is a list"):
        Keys(input="meta").input_of({"meta": [1]})
    with pytest.raises(PruneError, match=r"keys.target \(=None\).* batch \(list: 0\)"):
        Keys().target_of([torch.zeros(1)])
    with pytest.raises(PruneError, match=r"keys.output \(=None\).* output \(tuple: 0, 1\)"):
        Keys().output_of((torch.zeros(1), torch.zeros(1)))


class Net(VGG):
    def __init__(self) -> None:
        super().__init__([[8, 8], [16]], classes=4, in_channels=1)


CONFIG = """
name: named
model: {class_path: test_batch_keys.Net}
data: {class_path: test_batch_keys.Loaders, init_args: {named: true}}
task:
  class_path: branchprune.lightning.ClassificationTask
  init_args: {learning_rate: 0.05, keys: {input: image, target: label}}
dense: {epochs: 1}
"""


@pytest.mark.parametrize("algorithm", ["{blend: {levels: [0.0]}}", "{cut: {}}"])
def test_a_whole_run(algorithm: str, tmp_path: Path) -> None:
    criterion = "{name: reconstruction, calibration: 1, fit: 1}"
    prune = algorithm.replace("{", f"{{criterion: {criterion}, ", 1)
    (tmp_path / "run.yaml").write_text(f"{CONFIG}prune: {prune}\n")
    arguments = ["run", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--fast", "true"]) == 0
