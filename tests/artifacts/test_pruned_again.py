"""A grouped layer that pruning has made depthwise is pruned once more, saved, and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import branchprune as bp
from branchprune.graph.full_shapes import NAME

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Kind = type[nn.Conv2d] | type[nn.ConvTranspose2d]


def made(kind: Kind, width: int = 16, groups: int = 8) -> nn.Sequential:
    grouped = kind(width, width, 3, groups=groups)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), grouped, nn.Conv2d(width, 4, 1))


def cut(model: nn.Module) -> nn.Module:
    blended = bp.attach(model, bp.plan(model, X, 0.5))
    blended.alpha = 0
    return bp.collapse(blended)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_layer_that_became_depthwise(kind: Kind, tmp_path: Path) -> None:
    once = cut(made(kind))
    twice = cut(once)
    assert [model[2].groups for model in (once, twice)] == [8, 4]
    bp.save(twice, tmp_path / "twice.safetensors")
    for wide in (made(kind), once):
        loaded = bp.load(wide, tmp_path / "twice.safetensors")
        assert torch.equal(loaded(X), twice(X))
        assert str(loaded) == str(twice)


def test_a_depthwise_layer_of_another_model_is_refused(tmp_path: Path) -> None:
    """That it came from a grouped one, only a file of a pruned model says."""
    twice, other = cut(cut(made(nn.Conv2d))), cut(cut(made(nn.Conv2d, 16, 16)))
    del vars(twice)[NAME]
    for name, model in {"unknown": twice, "other": other}.items():
        bp.save(model, tmp_path / name)
        with pytest.raises(bp.PruneError, match="2 has groups=4, not 8"):
            bp.load(made(nn.Conv2d), tmp_path / name)
