"""Adversarial training of a generator and a discriminator that are one network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from branchprune.blending.blended import Blended
from branchprune.errors import PruneError, positive
from branchprune.training.batch_keys import Keys

Batch = Any
"""A tuple, list or dictionary with real images; see `Keys`."""
Part = Literal["generator", "discriminator"]
PARTS: tuple[Part, Part] = ("generator", "discriminator")


class AdversarialTask(LightningModule):
    """The game of Goodfellow et al. ("Generative Adversarial Nets", 2014), in one forward a step.

    The network is called with real images (N, C, H, W) alone, draws its noise itself, and returns
    generated images, their logits and the logits of the real images, as
    `branchprune.models.DCGAN` does; a plan of it is made with images alone, too. Its parameters
    are in two modules, `generator` and `discriminator`, each with an Adam optimizer of its own.
    The discriminator's loss is the cross-entropy of telling real from generated; the generator's
    is the non-saturating −log D(G(z)). Each loss moves its own part alone, also while the network
    is blended with its branches.

    Logged are loss/{train,val,test}_{generator,discriminator}, their sum as
    loss/{train,val,test}, and metric/{val,test}_swd, the `sliced_wasserstein` distance between
    all real and as many generated images of the split; lower is better. Its noise and its
    projections are the same every time.

    Args:
        model: The network.
        learning_rate: Learning rate of both optimizers at the start.
        beta1: Adam's decay of the mean of gradients, 0.5 in the DCGAN paper.
        real_label: What the discriminator is to say of real images; below 1 it is one-sided label
            smoothing (Salimans et al., "Improved Techniques for Training GANs", 2016).
        cosine: Let the learning rates fall to 0 along a cosine over the whole training, else keep
            them; without, the two parts keep chasing each other.
        projections: Number of directions of the metric.
        seed: Seed of the metric's noise and directions.
        keys: What batches are like, where they are no tuples: see `Keys`.

    Raises:
        PruneError: An argument is out of its range, or a parameter of the network belongs to
            neither part.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float = 2e-4,
        beta1: float = 0.5,
        real_label: float = 1.0,
        cosine: bool = True,
        projections: int = 256,
        seed: int = 0,
        keys: Keys | None = None,
    ) -> None:
        super().__init__()
        positive("learning_rate", learning_rate)
        if not 0 < real_label <= 1:
            raise PruneError(f"real_label (={real_label}) must be in (0, 1]")
        if projections < 1:
            raise PruneError(f"projections (={projections}) must be at least 1")
        self.automatic_optimization = False
        self.model, self.keys = model, keys or Keys()
        self.learning_rate, self.beta1, self.real_label = learning_rate, beta1, real_label
        self.cosine, self.projections, self.seed = cosine, projections, seed
        self.images: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return generated images, their logits and the logits of real images."""
        output: tuple[Tensor, Tensor, Tensor] = self.model(images)
        return output

    def parts(self) -> dict[Part, list[nn.Parameter]]:
        """Return the parameters of generator and discriminator, with those of their branches.

        Raises:
            PruneError: A parameter belongs to neither, or a part has none.
        """
        found: dict[Part, list[nn.Parameter]] = {part: [] for part in PARTS}
        for name, parameter in self.model.named_parameters():
            # Within a blended model a layer's path stands behind `model`, `reduce`, `twin`, ….
            path = name.partition(".")[2] if isinstance(self.model, Blended) else name
            part = next((part for part in PARTS if path.startswith(f"{part}.")), None)
            if part is None:
                raise PruneError(f"the parameter {name} is in neither of {' and '.join(PARTS)}")
            found[part].append(parameter)
        for part, parameters in found.items():
            if not parameters:
                raise PruneError(f"the network has no parameters in {part!r}")
        return found

    def configure_optimizers(self) -> Any:
        """Build one Adam for each part, and its cosine over epochs."""
        betas = (self.beta1, 0.999)
        optimizers = [torch.optim.Adam(p, self.learning_rate, betas) for p in self.parts().values()]
        if not self.cosine:
            return optimizers
        epochs = max(1, self.trainer.max_epochs or 1)
        return optimizers, [CosineAnnealingLR(optimizer, epochs) for optimizer in optimizers]

    def losses(self, generated: Tensor, real: Tensor) -> dict[Part, Tensor]:
        """Return the loss of each part from logits (N, 1) of generated and of real images."""
        cross_entropy = binary_cross_entropy_with_logits
        says_real = torch.full_like(real, self.real_label)
        return {
            "generator": cross_entropy(generated, torch.ones_like(generated)),
            "discriminator": cross_entropy(real, says_real)
            + cross_entropy(generated, torch.zeros_like(generated)),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Move both parts, each along its own loss, and return the sum of the losses."""
        images = self.keys.input_of(batch)
        _, generated, real = self(images)
        losses = self.losses(generated, real)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        for (part, parameters), optimizer in zip(self.parts().items(), optimizers, strict=True):
            optimizer.zero_grad()
            moved = [parameter for parameter in parameters if parameter.requires_grad]
            # A path that is not computed at this α gets no gradient: its optimizer skips it.
            self.manual_backward(losses[part], inputs=moved, retain_graph=part != PARTS[-1])
        for optimizer in optimizers:
            optimizer.step()
        return self._log_losses(losses, "train", len(images))

    def on_train_epoch_end(self) -> None:
        """Lower the learning rates, which manual optimisation leaves to the module."""
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else ():
            assert isinstance(scheduler, LRScheduler)
            scheduler.step()

    def _log_losses(self, losses: dict[Part, Tensor], stage: str, size: int) -> Tensor:
        total = torch.stack([*losses.values()]).detach().sum()
        for name, value in {"": total, **{f"_{k}": v.detach() for k, v in losses.items()}}.items():
            self.log(f"loss/{stage}{name}", value, on_step=False, on_epoch=True, batch_size=size)
        return total

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str) -> None:
        images = self.keys.input_of(batch)
        if batch_idx == 0:
            self.images.clear()
        with _seeded(self.seed + batch_idx, images.device):
            generated, *logits = self(images)
        self.images.append((generated, images))
        self._log_losses(self.losses(*logits), stage, len(images))

    def _log_distance(self, stage: str) -> None:
        generated, real = (torch.cat(images) for images in zip(*self.images, strict=True))
        self.images.clear()
        distance = sliced_wasserstein(generated, real, self.projections, self.seed)
        self.log(f"metric/{stage}_swd", distance)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Generate as many images as there are real ones."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Generate as many images as there are real ones."""
        self._evaluate(batch, batch_idx, "test")

    def on_validation_epoch_end(self) -> None:
        """Compare the generated images with the real ones."""
        self._log_distance("val")

    def on_test_epoch_end(self) -> None:
        """Compare the generated images with the real ones."""
        self._log_distance("test")


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256, seed: int = 0) -> Tensor:
    """Return the sliced Wasserstein-2 distance between two sets of images.

    `√(mean over θ of W₂²(θ·a, θ·b))` with random unit vectors θ; in one dimension W₂² is the mean
    squared difference of the sorted values. Images that are all moved by v are as far apart as
    the root mean square of v over its pixels. Two samples of one distribution are not 0 apart,
    but the less the larger they are. Means and variances decide most of it, fine strokes little:
    it finds collapsed modes, while blur has to be looked at.

    Sources: Rabin, Peyré, Delon and Bernot, "Wasserstein Barycenter and its Application to Texture
    Mixing" (2011); for generated images, Karras et al., "Progressive Growing of GANs" (2018).

    Args:
        a: Images (N, C, H, W).
        b: As many images of the same shape.
        projections: Number of directions.
        seed: Seed of the directions.

    Raises:
        PruneError: The shapes differ.
    """
    if a.shape != b.shape:
        raise PruneError(f"a (shape {tuple(a.shape)}) and b (shape {tuple(b.shape)}) must agree")
    a, b = a.detach().flatten(1).float(), b.detach().flatten(1).float()
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(a.shape[1], projections, generator=generator), dim=0).to(a)
    difference = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return difference.square().mean().sqrt()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw the random numbers of a `with` block from a seed; leave the generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
