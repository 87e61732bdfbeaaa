"""All that prepares a branch, under `torch.inference_mode`, on tensors that were made there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import vgg
from torch import Tensor

import branchprune as bp


def small_under(
    mode: torch.inference_mode | torch.no_grad, file: Path
) -> tuple[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, x = vgg().eval(), torch.randn(20, 3, 8, 8)

    def batches() -> Iterator[Tensor]:
        yield from x.clone().split(10)

    with mode:
        images = x.clone()
        found = bp.sensitivity(model, images[:1], [images])
        plan = bp.plan(model, images[:1], target={"macs": 0.5}, batches=batches())
        blended = bp.attach(model, plan, "reconstruction", batches=[images])
        blended = bp.fit_expand(blended, batches())
        bp.fit_expand(blended, [images])
        blended.alpha = 0.0
        small = bp.collapse(blended)
        bp.save(small, file)
        loaded = bp.load(model, file)
    loaded(x).sum().backward()
    small(x).sum().backward()
    return str(found), small.state_dict()


def test_it_is_what_is_done_outside(tmp_path):
    wanted, weights = small_under(torch.no_grad(), tmp_path / "small.safetensors")
    found, others = small_under(torch.inference_mode(), tmp_path / "other.safetensors")
    assert found == wanted
    torch.testing.assert_close(others, weights)


def test_a_model_that_was_made_there_is_told():
    with torch.inference_mode():
        model = vgg()
    with pytest.raises(bp.PruneError, match=r"was made, moved or cast under torch\.inference_mode"):
        bp.plan(model, torch.zeros(1, 3, 8, 8))
