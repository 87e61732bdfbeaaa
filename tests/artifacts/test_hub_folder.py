"""A folder for the Hugging Face Hub: its own tools read it, and nothing of others is replaced."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants
from torch import Tensor, nn

import branchprune as bp
from branchprune.models import VGG

FILES = {"README.md", "config.json", "model.safetensors"}
ARGUMENTS: dict[str, Any] = {"stages": [[8], [8]], "classes": 5}


class Shared(nn.Module, PyTorchModelHubMixin):  # type: ignore[misc]
    """A user's class that is shared by the Hub's own mixin."""

    def __init__(self, width: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return scores


def small(keep: float = 0.5) -> nn.Module:
    model = VGG(**ARGUMENTS)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8), keep))
    blended.alpha = 0.0
    return bp.collapse(blended).eval()


def written(folder: Path, **known: Any) -> nn.Module:
    model = small()
    bp.save(model, f"{folder}/", "branchprune.models.VGG", ARGUMENTS, **known)
    return model


def test_the_hubs_own_tools_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    known = {"keep": 0.5, "metric": {"top1": {"value": 0.76, "interval": [0.7, 0.8]}}}
    model = written(folder, license="MIT", **known)
    assert {constants.REPOCARD_NAME, constants.CONFIG_NAME} < FILES
    assert constants.SAFETENSORS_SINGLE_FILE in FILES
    assert {path.name for path in folder.iterdir()} == FILES
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "branchprune"
    assert "pruning" in card.data.tags
    dense = sum(p.numel() for p in VGG(**ARGUMENTS).parameters())
    left = sum(p.numel() for p in model.parameters())
    assert f"| parameters | {dense:,} | {left:,} | {left / dense:.1%} |" in card.text
    assert "| top1 | 0.76 (0.7 to 0.8) |" in card.text and "branchprune.models.VGG" in card.text
    config = json.loads((folder / "config.json").read_text())
    assert config["stages"] == [[8], [8]] and config["architectures"] == ["VGG"]
    assert config["branchprune"]["metric"] == known["metric"]


def test_what_the_card_says_to_write_loads_the_model(tmp_path: Path, monkeypatch: Any) -> None:
    model, x = written(tmp_path / "net"), torch.randn(2, 3, 8, 8)
    text = (tmp_path / "net" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], scope)
    assert torch.equal(scope["model"](x), model(x))


def test_a_dense_model_goes_to_the_mixin_of_the_hub_and_back(tmp_path: Path) -> None:
    model, x = Shared(width=6, classes=3).eval(), torch.randn(2, 3, 8, 8)
    bp.save(model, f"{tmp_path}/ours/", f"{__name__}:Shared", {"width": 6, "classes": 3})
    assert torch.equal(Shared.from_pretrained(tmp_path / "ours")(x), model(x))
    ours = bp.load(tmp_path / "ours", trust=__name__)
    ours.save_pretrained(tmp_path / "theirs")
    assert torch.equal(Shared.from_pretrained(tmp_path / "theirs")(x), model(x))


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    Shared().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(bp.PruneError, match=rf"{name} is not of branchprune"):
            bp.save(small(), tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        (tmp_path / name).unlink()
        del before[name]
    bp.save(small(), tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before["README.md"]  # whose text is theirs


def test_a_card_is_written_again_until_it_is_a_users(tmp_path: Path) -> None:
    bp.save(small(0.5), tmp_path)
    first = (tmp_path / "README.md").read_text()
    bp.save(small(0.25), tmp_path)
    second = (tmp_path / "README.md").read_text()
    assert first != second
    (tmp_path / "README.md").write_text("mine")
    bp.save(small(0.5), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named_and_left_as_it_was(
    tmp_path: Path, monkeypatch: Any
) -> None:
    with pytest.raises(bp.PruneError, match=r"cannot write .*no/folder"):
        bp.save(small(), f"{tmp_path}/no/folder/")
    (tmp_path / "file").touch()
    with pytest.raises(bp.PruneError, match=r"cannot write .*file"):
        bp.save(small(), f"{tmp_path}/file/")

    def full(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(bp.PruneError, match=r"config\.json: No space left"):
        bp.save(small(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "model.safetensors"}
