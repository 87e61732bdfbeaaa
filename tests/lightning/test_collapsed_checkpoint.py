"""A checkpoint of a blended network becomes the small model that its branch alone is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from small_training import loader, make_module, network, trainer
from torch import nn

import branchprune as bp
from branchprune.cli import main
from branchprune.lightning import BranchPruning
from branchprune.lightning.example_shapes import example_like, shapes_of

FLAVOURS = [pytorch_lightning, lightning.pytorch]
X = torch.randn(5, 1, 8, 8)
HERE = __name__
REDUCE = "reduce.features.0.weights.0"


class Alone(pytorch_lightning.Callback):
    """Keeps what the branch alone computes after each epoch."""

    def __init__(self, pruning: BranchPruning) -> None:
        self.pruning, self.outputs = pruning, {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        blended = copy.deepcopy(self.pruning.blended).eval()
        blended.alpha = 0.0
        with torch.no_grad():
            self.outputs[trainer.current_epoch] = blended(X)


def module(flavour: Any = pytorch_lightning, inner: bool = True) -> Any:
    return make_module(flavour, inner)


def own_layers() -> Any:
    return module(inner=False)


def trained(
    folder: Path,
    flavour: Any = pytorch_lightning,
    inner: bool = True,
    extra: Any = (),
    **options: Any,
) -> tuple[Any, BranchPruning, dict[int, torch.Tensor], list[Path]]:
    """Train at α = 0.5 and 0; return the module, the callback, the branch's outputs, the files."""
    pruning = BranchPruning(
        bp.Schedule((0.5, 0.0)), keep=0.5, example=torch.randn(2, 1, 8, 8), **options
    )
    keeper = flavour.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, monitor="val_acc")
    alone = Alone(pruning)
    users = module(flavour, inner)
    run = trainer(2, pruning, alone, *extra, keeper, flavour=flavour, enable_checkpointing=True)
    run.fit(users, loader(), loader(seed=1))
    return users, pruning, alone.outputs, sorted(folder.glob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:in epoch=0")
@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("inner", [True, False], ids=["network", "own layers"])
def test_every_checkpoint_becomes_what_its_branch_alone_was(
    flavour: Any, inner: bool, tmp_path: Path
) -> None:
    users, pruning, outputs, files = trained(tmp_path, flavour, inner)
    assert len(files) == len(outputs) == 2
    for epoch, file in enumerate(files):
        for model in (module(flavour, inner), *([network()] if inner else [])):
            before = copy.deepcopy(model.state_dict())
            small = BranchPruning.load_collapsed(file, model)
            torch.testing.assert_close(small(X), outputs[epoch])
            after = model.state_dict()
            assert all(torch.equal(after[name], value) for name, value in before.items())
    last = pruning.small.eval().state_dict()
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, last[name])
    assert type(small).__qualname__ == type(users.net if inner else users).__qualname__


def test_a_checkpoint_above_alpha_0_is_warned_of_and_one_at_0_is_not(tmp_path: Path) -> None:
    *_, files = trained(tmp_path)
    with pytest.warns(UserWarning, match=r"in epoch=0\.ckpt alpha is 0\.5, .*the branch alone"):
        BranchPruning.load_collapsed(files[0], network())
    BranchPruning.load_collapsed(files[1], network())  # warnings are errors here


@pytest.mark.filterwarnings("ignore:in epoch")
def test_what_the_training_was_told_is_told_again(tmp_path: Path) -> None:
    options = {"exclude": ["features.0"], "multiple_of": 2, "norms": "private", "init": "random"}
    _, pruning, outputs, files = trained(tmp_path, **options)
    small = BranchPruning.load_collapsed(files[0], network())
    torch.testing.assert_close(small(X), outputs[0])
    assert pruning.plan is not None
    kept = {group.name: group.kept for group in pruning.plan.groups}
    assert small.get_submodule("features.0").out_channels == kept["features.0"] == 8


@pytest.mark.filterwarnings("ignore:in epoch")
def test_lightnings_own_average_is_collapsed_too(tmp_path: Path) -> None:
    *_, files = trained(tmp_path, extra=[EMAWeightAveraging(decay=0.5)])
    small = BranchPruning.load_collapsed(files[-1], network())
    held = torch.load(files[-1], weights_only=True)["state_dict"]
    wide, reduce = (held[f"net.{x}"] for x in ("model.features.0.weight", REDUCE))
    folded = torch.einsum("ko,oijl->kijl", reduce.double(), wide.double())
    torch.testing.assert_close(small.get_submodule("features.0").weight, folded.float())


def refused(path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(bp.PruneError, match=message) as caught:
        BranchPruning.load_collapsed(path, model)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_collapsed_says_why_in_a_line(tmp_path: Path) -> None:
    users, _, _, files = trained(tmp_path / "run")
    refused(tmp_path / "none.ckpt", network(), "does not exist")
    (tmp_path / "text.ckpt").write_text("text")
    refused(tmp_path / "text.ckpt", network(), "no file of torch.save")
    content = files[1].read_bytes()
    (torn := tmp_path / "torn.ckpt").write_bytes(content[: len(content) // 2])
    refused(torn, network(), "damaged")
    torch.save({"a": torch.ones(1)}, torn)
    refused(torn, network(), "no 'state_dict'")
    torch.save({"state_dict": users.state_dict()}, torn)
    refused(torn, network(), "not written in a training with BranchPruning")
    held = torch.load(files[1], weights_only=True)
    torch.save(held | {"more": Alone}, torn)
    refused(torn, network(), "more than weights")
    torch.save(held | {"state_dict": users.state_dict()}, torn)
    refused(torn, network(), "holds no blended network")
    state = held["callbacks"]["BranchPruning"]
    earlier = {"BranchPruning": {k: v for k, v in state.items() if k != "blending"}}
    torch.save(held | {"callbacks": earlier}, torn)
    refused(torn, network(), "an earlier version")
    from branchprune.models import VGG

    refused(files[1], VGG([[8, 8], [12]], classes=4, in_channels=1), "another model: its widths")
    refused(files[1], VGG([[8, 8], [16]], classes=5, in_channels=1), "another model")


@pytest.mark.filterwarnings("default:in epoch")
def test_the_command_writes_the_model_and_its_card(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    _, pruning, outputs, files = trained(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["collapse", str(files[1]), f"{HERE}:network"]) == 0
    said = capsys.readouterr()
    assert pruning.plan is not None and not said.err
    before, after = pruning.plan.before, pruning.plan.after
    assert f"params: {before.params:,} → {after.params:,}" in said.out
    assert said.out.endswith("small.safetensors\nsmall.md\n")
    small = bp.load("small.safetensors", trust=[HERE, "small_training"])
    torch.testing.assert_close(small(X), outputs[1])
    card = Path("small.md").read_text()
    assert f"| multiply-adds for one example | {before.macs:,} | {after.macs:,} |" in card
    assert "epoch 1 at α = 0" in card
    assert main(["collapse", str(files[1]), f"{HERE}:network"]) == 2
    assert "small.safetensors exists" in capsys.readouterr().err
    assert main(["collapse", str(files[0]), f"{HERE}:module", "--output", "b.safetensors"]) == 0
    assert capsys.readouterr().err.startswith("branchprune: warning: in epoch=0.ckpt alpha is 0.5")
    torch.testing.assert_close(bp.load(network().eval(), "b.safetensors")(X), outputs[0])
    assert main(["collapse", "none.ckpt", f"{HERE}:network", "--output", "c.safetensors"]) == 2
    assert "none.ckpt does not exist" in capsys.readouterr().err


def test_an_example_is_made_again_of_its_shapes() -> None:
    given = {"x": torch.randn(2, 3), "y": [torch.arange(4), (torch.ones(1).bool(), 3, None)]}
    found = example_like(shapes_of(given))
    assert found["x"].shape == (2, 3) and found["x"].std() > 0
    ids, (flag, number, nothing) = found["y"]
    assert ids.dtype == torch.int64 and ids.shape == (4,) and flag.dtype == torch.bool
    assert (number, nothing) == (3, None)
    with pytest.raises(bp.PruneError, match="example is missing"):
        example_like(shapes_of([object()]))
