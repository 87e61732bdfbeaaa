"""Images in memory: what is held out, which arguments are refused, and a training on them."""

import numpy as np
import pytest
import torch
from given_images import ALL, Divided, Given, attach, rows, same
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from branchprune import PruneError
from branchprune.lightning import ClassificationTask, ReconstructionTask


@pytest.mark.parametrize("labels", [torch.tensor([0] * 50 + [1] * 30 + [2] * 20), None])
def test_validation_is_held_out_by_class_and_no_image_is_in_two_splits(labels):
    data, other = (Divided(100, labels, val_fraction=0.2, split_seed=s) for s in (0, 1))
    other.given = data.given
    data.setup()
    other.setup()
    train, val, test = (rows(data.splits[split][0]) for split in ("train", "val", "test"))
    assert (len(train), len(val)) == (80, 20) and train | val == rows(data.given["train"])
    assert test == rows(data.given["test"])
    assert rows(other.splits["val"][0]) != val
    if labels is not None:
        assert data.splits["val"][1].bincount().tolist() == [10, 6, 4]
        pairs = zip(data.given["train"].flatten(1).tolist(), labels.tolist(), strict=True)
        by_image = {tuple(values): label for values, label in pairs}
        for x, y in zip(*data.splits["train"], strict=True):
            assert by_image[tuple(x.flatten().tolist())] == y


def test_limit_train_keeps_the_classes_and_the_validation():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    data = Divided(100, labels)
    limited = Divided(100, labels, limit_train=21, batch_size=7)
    limited.given = data.given
    data.setup()
    limited.setup()
    assert torch.equal(data.splits["val"][0], limited.splits["val"][0])
    counts = limited.splits["train"][1].bincount()
    assert counts.sum() == 21
    assert np.allclose(counts, 21 * np.array([0.5, 0.3, 0.2]), atol=1)
    assert rows(limited.splits["train"][0]) < rows(data.splits["train"][0])


def test_image_size_is_the_shorter_side():
    data = Given(image_size=3, labels=None)
    data.setup()
    found = data.splits["test"][0]
    assert found.dtype == torch.uint8 and found.shape == (40, 3, 4, 3)
    originals = data.given["test"].permute(0, 2, 3, 1).numpy()
    expected = [np.array(Image.fromarray(x).resize((3, 4), 2)).astype(int) for x in originals]
    difference = found.permute(0, 2, 3, 1).numpy() - np.stack(expected)
    assert np.abs(difference).max() <= 1 and abs(difference.mean()) < 0.1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, r"batch_size \(=0\)"),
        ({"eval_batch_size": 0}, r"eval_batch_size \(=0\)"),
        ({"val_fraction": 0.0}, r"val_fraction \(=0.0\)"),
        ({"val_fraction": 1.0}, r"val_fraction \(=1.0\)"),
        ({"val_fraction": 0.99}, r"val_fraction \(=0.99\) leaves none of 40"),
        ({"seed": -1}, r"seed \(=-1\)"),
        ({"split_seed": -1}, r"split_seed \(=-1\)"),
        ({"crop_padding": -1}, r"crop_padding \(=-1\)"),
        ({"noise": -0.1}, r"noise \(=-0.1\)"),
        ({"limit_train": 0}, r"limit_train \(=0\)"),
        ({"limit_train": 37}, r"limit_train \(=37\) is more than the 36"),
        ({"limit_train": 7}, r"batch_size \(=8\) is more than the 7"),
        ({"image_size": 0}, r"image_size \(=0\)"),
        ({"batch_size": 37}, r"batch_size \(=37\) is more than the 36"),
    ],
)
def test_an_argument_out_of_range_is_named(options, reason):
    with pytest.raises(PruneError, match=reason):
        Divided(**options).setup()


def test_a_small_part_is_one_image_at_least():
    data = Divided(val_fraction=0.001)
    data.setup()
    assert [len(data.splits[split][0]) for split in ("train", "val")] == [39, 1]


def test_images_are_read_once(monkeypatch):
    data, calls = Given(), []
    monkeypatch.setattr(data, "load", lambda: calls.append(1) or Given.load(data))
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        next(iter(loader))
    assert len(calls) == 1


def test_several_devices_are_refused():
    data = Given()
    attach(data, 0)
    data.trainer.world_size = 2
    with pytest.raises(PruneError, match=r"devices \(=2\)"):
        data.train_dataloader()


def test_batches_are_on_the_device_of_the_trainer():
    data = Given(**ALL)
    attach(data, 0)
    data.trainer.strategy.root_device = torch.device("meta")
    data.train_dataloader()
    assert {x.device.type for x in data.splits["train"]} == {"meta"}


class Watched(LightningModule):
    """Keeps all training batches, and dies at a step."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.layer, self.dies_at, self.seen = nn.Linear(90, 1), dies_at, []

    def training_step(self, batch, batch_idx):
        self.seen.append([x.clone() for x in batch])
        if self.global_step == self.dies_at:
            raise KeyboardInterrupt("killed")
        return self.layer(batch[0].flatten(1)).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, epochs, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        log_every_n_steps=1,
        **(quiet | options),
    )


def test_a_resumed_training_sees_the_batches_it_would_have_seen(tmp_path):
    data = Given(**ALL)
    whole, broken, resumed = Watched(), Watched(dies_at=12), Watched()
    trainer(tmp_path, 4, enable_checkpointing=False).fit(whole, data)
    keep = ModelCheckpoint(tmp_path, filename="last")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, 4, callbacks=[keep]).fit(broken, data)
    fresh = Given(**ALL)
    fresh.given = data.given
    trainer(tmp_path, 4, callbacks=[keep]).fit(
        resumed, fresh, ckpt_path=tmp_path / "last.ckpt", weights_only=False
    )
    assert len(whole.seen) == 20 and len(broken.seen) == 13 and len(resumed.seen) == 10
    assert same(broken.seen, whole.seen[:13])
    assert same(resumed.seen, whole.seen[10:])


@pytest.mark.parametrize("kind", [ClassificationTask, ReconstructionTask])
def test_a_training_runs_through(tmp_path, kind):
    classify = kind is ClassificationTask
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten()) if classify else ()
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), *head)
    own = {} if classify else {"window": 3}
    data = Given(labels=torch.arange(40) % 3 if classify else None, **ALL)
    fit = trainer(tmp_path, 2, enable_checkpointing=False, num_sanity_val_steps=0)
    fit.fit(kind(model, **own), data)
    fit.test(kind(model, **own), data, verbose=False)
    score = "metric/test_acc" if classify else "metric/test_psnr"
    assert fit.callback_metrics[score].isfinite()
