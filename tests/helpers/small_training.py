"""Small networks, data, tasks and trainers, and classes that configurations of tests name."""

from __future__ import annotations

import math

import pytorch_lightning
import torch
import torchmetrics
from pytorch_lightning import Callback, LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from branchprune.lightning import ClassificationTask
from branchprune.models import VGG


def loader(n=24, channels=1, seed=0, shuffle=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, 8, 8, generator=generator)
    y = torch.randint(4, (n,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=shuffle)


def trainer(epochs, *callbacks, flavour=pytorch_lightning, **options):
    options = {"logger": False, "enable_checkpointing": False} | options
    return flavour.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def network():
    torch.manual_seed(0)
    return VGG([[8, 8], [16]], classes=4, in_channels=1)


def make_module(flavour, inner=True):
    """A LightningModule as a user writes it, network inside or layers of its own."""

    class Own(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            if inner:
                self.net = network()
            else:
                self.conv = nn.Conv2d(1, 8, 3, padding=1)
                self.norm = nn.BatchNorm2d(8)
                self.head = nn.Linear(8 * 64, 4)
            self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)
            self.outputs = []

        def forward(self, x):
            if inner:
                return self.net(x)
            return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            logits = self(batch[0])
            self.outputs.append(logits)
            self.accuracy(logits, batch[1])
            self.log("val_acc", self.accuracy)
            self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))

        def on_validation_epoch_end(self):
            self.log("val_spread", torch.cat(self.outputs).std())
            self.outputs.clear()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return Own()


class Scripted(ClassificationTask):
    """Logs what it is told to, an entry an epoch."""

    def __init__(self, script, name="score", model=None, **options):
        super().__init__(network() if model is None else model, **options)
        self.script, self.name = script, name

    def validation_step(self, batch, batch_idx):
        self.log(self.name, float(self.script[self.current_epoch]))


class Tiny(LightningDataModule):
    def train_dataloader(self):
        return loader()

    val_dataloader = test_dataloader = train_dataloader


class TinyVGG(VGG):
    def __init__(self):
        super().__init__([[8, 8], [16]], classes=4, in_channels=1)


def numbered(shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """The examples of `loader`, with their numbers."""
    dataset = loader().dataset
    assert isinstance(dataset, TensorDataset)
    count = torch.arange(len(dataset))
    return DataLoader(TensorDataset(*dataset.tensors, count), batch_size=8, shuffle=shuffle)


def softened(logits, temperature):
    """Return the softened probabilities of one example, in plain Python."""
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def distance(student, teacher, temperature):
    """Return T² times the mean over examples of Σ p log(p / q), p the teacher's."""
    total = 0.0
    for q_logits, p_logits in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softened(q_logits, temperature), softened(p_logits, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def randomised(seed):
    torch.manual_seed(seed)
    model = network()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) - 0.3 * (tensor.dim() > 1)
    return model


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.seen.append(outputs["loss"].item())
