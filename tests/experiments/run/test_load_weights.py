"""Weights are found in checkpoints, whatever a wrapper put before their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.experiments.run.load_weights import load_weights


def made(width: int = 4) -> nn.Module:
    """A small net with a norm."""
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


def under(start: str, model: nn.Module) -> dict[str, Tensor]:
    return {start + name: tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("start", ["", "model.", "net.", "module.", "_orig_mod.", "a.backbone."])
@pytest.mark.parametrize("other", [{}, {"loss.weight": torch.ones(3)}], ids=["alone", "and more"])
def test_weights_under_any_prefix_are_read(
    tmp_path: Path, start: str, other: dict[str, Tensor]
) -> None:
    trained, model = made(), made()
    state = under(start, trained) | (other if start else {})
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "some.ckpt")
    load_weights(model, tmp_path / "some.ckpt")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_two_models_in_a_file_are_not_chosen_from(tmp_path: Path) -> None:
    torch.save(under("net.", made()) | under("ema.", made()), tmp_path / "two.pt")
    with pytest.raises(PruneError, match=r"two.pt holds 2 such models, under ema\., net\.: save"):
        load_weights(made(), tmp_path / "two.pt")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "generator"])
def test_weights_beside_what_else_a_training_keeps(tmp_path: Path, key: str) -> None:
    trained, model = made(), made()
    adam = torch.optim.Adam(trained.parameters())
    trained(torch.randn(2, 3, 8, 8)).sum().backward()
    adam.step()
    others = {"epoch": 3, "optimizer": adam.state_dict(), "config": {}, "losses": [0.5]}
    torch.save({**others, key: trained.state_dict()}, tmp_path / "some.pt")
    load_weights(model, tmp_path / "some.pt")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_of_two_under_names_of_their_own_none_is_chosen(tmp_path: Path) -> None:
    states = {"net": made().state_dict(), "ema": made().state_dict()}
    torch.save({**states, "epoch": 3}, tmp_path / "two.pt")
    with pytest.raises(PruneError, match=r"two.pt holds 2 that may be meant, 'net', 'ema': save"):
        load_weights(made(), tmp_path / "two.pt")
    torch.save({**states, "model": made().state_dict()}, tmp_path / "two.pt")
    load_weights(made(), tmp_path / "two.pt")


@pytest.mark.parametrize("content", [b"garbage", b"e", b"", b"\x00" * 99, b"PK", b"{}\n" * 99])
def test_a_file_of_another_kind_is_said_to_be_that(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "garbage.pt").write_bytes(content)
    with pytest.raises(PruneError) as caught:
        load_weights(made(), tmp_path / "garbage.pt")
    assert str(caught.value).endswith(
        "garbage.pt is not complete, or is no checkpoint: it does not begin as a file of "
        "torch.save does"
    )


def test_an_error_names_three_keys_and_counts_the_others(tmp_path: Path) -> None:
    torch.save(under("x", made()), tmp_path / "other.pt")
    with pytest.raises(PruneError) as caught:
        load_weights(made(), tmp_path / "other.pt")
    assert str(caught.value).endswith(
        'Missing key(s) in state_dict: "0.weight", "0.bias", "1.weight" and 5 more. Unexpected '
        'key(s) in state_dict: "x0.weight", "x0.bias", "x1.weight" and 6 more.'
    )
    with pytest.raises(PruneError, match=r"size mismatch for 0\.weight: copying a param with"):
        torch.save(made(5).state_dict(), tmp_path / "wide.pt")
        load_weights(made(), tmp_path / "wide.pt")


def test_a_key_that_is_missing_under_a_prefix_is_the_one_that_is_named(tmp_path: Path) -> None:
    state = under("net.", made())
    del state["net.2.bias"]
    torch.save(state | {"loss.weight": torch.ones(3)}, tmp_path / "less.pt")
    with pytest.raises(PruneError, match=r"Missing key\(s\) in state_dict: \"2\.bias\"\.$"):
        load_weights(made(), tmp_path / "less.pt")


def test_what_is_no_weight_is_named(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(3), "weights": {}, "epoch": 3}, tmp_path / "more.pt")
    said = r"holds no state_dict but 'weights' \(a dict\), 'epoch' \(a int\): save"
    with pytest.raises(PruneError, match=said):
        load_weights(made(), tmp_path / "more.pt")
