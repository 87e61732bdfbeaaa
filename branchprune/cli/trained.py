"""A trained model by its name, with how it wants its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from branchprune.artifacts.origin import Origin
from branchprune.cli.named_model import build
from branchprune.errors import PruneError, first_line, optional
from branchprune.few_images.folder import read_folder, read_prepared


@dataclass(frozen=True)
class Preparation:
    """How a model wants its images.

    Attributes:
        size: Height and width; None: as they are.
        mean: What is subtracted from each channel of an image in [0, 1]; None: nothing.
        std: What each channel is then divided by; None: nothing.
        own: What its library does with an image before it evaluates the model; None: not known.
    """

    size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    own: Callable[[Any], Tensor] | None = None

    def read(self, folder: Path, grey: bool = False) -> Tensor:
        """Read the images of a folder, as the library does or by size, mean and std.

        Args:
            folder: The folder.
            grey: See `read_folder`.

        Raises:
            PruneError: See `read_folder`.
        """
        if self.own is not None and not grey:
            return read_prepared(folder, self.own)
        return read_folder(folder, self.size, self.mean, self.std, grey)

    def but(
        self,
        size: int | tuple[int, int] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> Preparation:
        """Return it with what a user gives in place of the library's, which then does not do it."""
        if size is None and mean is None and std is None:
            return self
        both = (size, size) if isinstance(size, int) else size
        return Preparation(both or self.size, mean or self.mean, std or self.std)


def trained(origin: Origin, checkpoint: Path | None) -> tuple[nn.Module, Preparation]:
    """Return a model with its weights, in evaluation mode.

    Args:
        origin: What makes it, as in `branchprune plan`.
        checkpoint: File with its weights; None: those that the library has, or, of an import path,
            what is made there as it is.

    Raises:
        PruneError: The model cannot be built, or the weights cannot be read or downloaded.
    """
    name = origin.made_by.removeprefix("torchvision/")
    of_torchvision, of_timm = name in _torchvision(), name.startswith("timm/")
    if checkpoint is None and (of_torchvision or of_timm):
        if origin.init_args:
            raise PruneError(
                f"init_args (={dict(origin.init_args)}) make another model than the {name} whose "
                "weights its library has: give those of this one, --checkpoint FILE"
            )
        found = _of_torchvision(name) if of_torchvision else _of_timm(name.removeprefix("timm/"))
        return _pretrained(name, *found)
    model, shape = build(origin, checkpoint)
    size = (shape[-2], shape[-1]) if shape else None
    return model.eval(), Preparation(size)


def _pretrained(
    name: str, make: Callable[[], nn.Module], wanted: Preparation
) -> tuple[nn.Module, Preparation]:
    try:
        return make().eval(), wanted
    except (OSError, RuntimeError) as error:
        raise PruneError(
            f"the weights of {name} cannot be downloaded ({first_line(error)}): give a file, "
            "--checkpoint FILE"
        ) from error


def _torchvision() -> list[str]:
    from branchprune.benchmarks.zoo_models import torchvision_families  # imports torchvision

    return [*torchvision_families()]


def _of_torchvision(name: str) -> tuple[Callable[[], nn.Module], Preparation]:
    from torchvision import models  # type: ignore[import-untyped]

    weights = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    crop = getattr(transforms, "crop_size", None) or transforms.resize_size
    size = (crop[0], crop[-1])
    wanted = Preparation(size, transforms.mean, transforms.std, transforms)
    return partial(models.get_model, name, weights=weights), wanted


def _of_timm(name: str) -> tuple[Callable[[], nn.Module], Preparation]:
    timm = optional("timm", f"model (='timm/{name}')")
    if not timm.is_model(name):
        build(Origin(f"timm/{name}"))  # says which name is near
    found = timm.get_pretrained_cfg(name)
    if found is None:
        raise PruneError(f"model (='timm/{name}') has no weights in timm: give --checkpoint FILE")
    evaluation = timm.data.resolve_data_config(pretrained_cfg=found.to_dict())
    own = timm.data.create_transform(**evaluation)
    wanted = Preparation(evaluation["input_size"][1:], found.mean, found.std, own)
    return partial(timm.create_model, name, pretrained=True), wanted
