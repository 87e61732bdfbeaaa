"""What would fail late is found before anything is written or trained."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from small_training import Tiny, TinyVGG, loader
from torch.utils.data import DataLoader

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.cut import CutConfig
from branchprune.experiments.run.depth import DepthConfig
from branchprune.experiments.run.prune_config import PruneConfig
from branchprune.experiments.run.rehearsal import copied_data, pruning_in_small
from branchprune.experiments.run.widths import WidthsConfig
from branchprune.lightning import ClassificationTask

BASE = {
    "name": "tiny",
    "model": {"class_path": "small_training.TinyVGG"},
    "data": {"class_path": "small_training.Tiny"},
    "task": {"class_path": "branchprune.lightning.ClassificationTask"},
    "dense": {"epochs": 1},
    "prune": {"cut": {}, "finetune": {"epochs": 1}},
    "accelerator": "cpu",
}


class Forgetful(ClassificationTask):
    """Trains the wide model, and nothing that is narrower."""

    def training_step(self, batch, batch_idx):
        if sum(p.numel() for p in self.model.parameters()) < WIDE:
            raise KeyError("features")
        return super().training_step(batch, batch_idx)


class Picky(ClassificationTask):
    """Has no optimizer for a blended model."""

    def configure_optimizers(self):
        if isinstance(self.model, bp.Blended):
            return torch.optim.SGD([], 0.1)
        return super().configure_optimizers()


class Unmade(TinyVGG):
    """A model that fails as it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.missing = {}["missing"]


class Drawing(Tiny):
    """Data that is shuffled by a generator of its own, which goes on from epoch to epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = torch.Generator().manual_seed(0)

    def train_dataloader(self):
        return DataLoader(loader().dataset, batch_size=8, shuffle=True, generator=self.draws)


class Nothing(Tiny):
    """Data without a training batch."""

    def train_dataloader(self):
        return []


WIDE = sum(p.numel() for p in TinyVGG().parameters())
HERE = "test_rehearsal"
LATE = [
    ({"task": {"class_path": f"{HERE}.Forgetful"}}, "finetune stage: KeyError: 'features' (test_"),
    ({"task": {"class_path": f"{HERE}.Picky"}, "prune": {"blend": {}}}, "prune stage: "),
    ({"data": {"class_path": f"{HERE}.Nothing"}}, "data (Nothing): train_dataloader() gives no b"),
    ({"model": {"class_path": f"{HERE}.Unmade"}}, "cannot be made: KeyError: 'missing' (test_reh"),
    ({"prune": {"cut": {}, "finetune": {}, "cost": {"train_macs": 5}}}, "cost (=5) is used up"),
    (
        {"prune": {"cut": {}, "rounds": {"gradual": True}}, "dense": {"epochs": -1}},
        "dense.epochs (=-1) must be a whole number of at least 0",
    ),
    ({"prune": {"cut": {}, "finetune": {"epochs": -1}}}, "finetune.epochs (=-1)"),
    ({"prune": {"cut": {}, "sparsify": {"weight": float("inf")}}}, "sparsify.weight (=inf)"),
    ({"prune": {"blend": {"matching": float("nan")}}}, "matching (=nan)"),
    ({"prune": {"cut": {}, "rounds": {"count": 0}}}, "rounds.count (=0)"),
    ({"prune": {"blend": {"monitor": "val_acc"}}}, "monitor (='val_acc') is not logged"),
    ({"name": "a/../../b"}, "name (='a/../../b')"),
    ({"results": "/dev/null/results.jsonl"}, "results file /dev/null/results.jsonl cannot be wr"),
    ({"results": "file/x"}, "results file file/x cannot be written: "),
    ({"output": "file/run", "results": "r"}, "output folder file/run cannot be written"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    Path("file").write_text("")


def written():
    return sorted(path.name for path in Path().iterdir())


def started(**changed):
    Path("own.yaml").write_text(yaml.safe_dump({"output": "run"} | BASE | changed))
    return main(["run", "own.yaml"])


@pytest.mark.parametrize(("changed", "message"), LATE)
def test_it_is_told_in_one_line_and_nothing_is_written(changed, message, capsys):
    assert started(**changed) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert written() == ["file", "own.yaml"]


def test_a_disk_with_no_room_for_the_checkpoints(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert started() == 2
    assert "output folder run: the run writes" in capsys.readouterr().err
    assert written() == ["file", "own.yaml"]


def test_a_rehearsal_leaves_no_trace(monkeypatch):
    """The run has the numbers that it has without."""
    found = []
    for name in ("with", "without"):
        assert started(output=name, data={"class_path": f"{HERE}.Drawing"}) == 0
        found.append(bp.load(TinyVGG(), Path(name, "small.safetensors")).state_dict())
        monkeypatch.setattr(
            "branchprune.experiments.run.experiment._Run._rehearse", lambda *_: None
        )
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert written() == ["file", "own.yaml", "results", "with", "without"]


def test_a_copy_of_data_shares_its_tensors_and_arrays():
    data = Tiny()
    data.images, data.labels, data.draws = torch.zeros(3), {"all": np.zeros(3)}, torch.Generator()
    data.trainer = Trainer(logger=False, enable_checkpointing=False)
    copied = copied_data(data)
    assert copied is not data and copied.images is data.images and copied.draws is not data.draws
    assert copied.labels is not data.labels and copied.labels["all"] is data.labels["all"]
    with Path("file").open() as data.file:
        assert copied_data(data) is data


@pytest.mark.parametrize(("name", "seen"), [("taylor", 2), ("discrimination", 6)])
def test_what_tells_classes_apart_sees_all_its_batches(name, seen):
    """Two batches may be of one class, as where data are sorted."""
    settings = PruneConfig(cut=CutConfig(), criterion=CriterionConfig(name, calibration=6))
    assert pruning_in_small(settings).criterion.calibration == seen


def test_as_many_blocks_as_serve_a_target_are_one():
    widths = WidthsConfig(target={"macs": 0.5})
    settings = PruneConfig(depth=DepthConfig("auto", calibration=9), widths=widths, cut=CutConfig())
    small = pruning_in_small(settings).depth
    assert (small.blocks, small.calibration, small.levels) == (1, 2, settings.depth.levels)
    few = pruning_in_small(replace(settings, depth=DepthConfig(["3"], calibration=1))).depth
    assert (few.blocks, few.calibration) == (["3"], 1)
