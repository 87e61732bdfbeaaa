"""What cannot be exported is refused in one line, and no half-written file is left."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

import branchprune as bp
from branchprune.artifacts.export_formats import FORMATS
from branchprune.errors import Failed

X = torch.randn(2, 4)
SUFFIXES = (".onnx", ".xml", ".pt2", ".pte")


class Net(nn.Module):
    """One layer, and what a subclass does with its output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.then(self.layer(x))

    def then(self, y: Tensor) -> Any:
        return y


class TwoRows(Net):
    """Reshapes to a batch that is written down."""

    def then(self, y: Tensor) -> Any:
        return y.reshape(2, 3)


class OneRow(Net):
    """Takes a batch of 1 alone."""

    def then(self, y: Tensor) -> Any:
        return y.reshape(1, 3)


class ByNumbers(Net):
    """Goes a way that depends on numbers."""

    def then(self, y: Tensor) -> Any:
        return y if y.sum() > 0 else y.unique()


class Decomposed(Net):
    """Uses an operator that ONNX lacks."""

    def then(self, y: Tensor) -> Any:
        return torch.linalg.svd(y)[1]


class Deformed(nn.Module):
    """Uses an operator of torchvision."""

    def forward(self, x: Tensor) -> Any:
        offset = x.new_zeros(2, 18, 3, 3)
        return deform_conv2d(x, offset, x.new_ones(4, 4, 3, 3))


class WithNumber(Net):
    """Returns a number beside a tensor."""

    def then(self, y: Tensor) -> Any:
        return y, 3


class Drawing(Net):
    """Computes something else in each call."""

    def then(self, y: Tensor) -> Any:
        return y + torch.rand_like(y)


class AtOne(Net):
    """Computes something else for a batch of 1, which no graph of any batch has."""

    def then(self, y: Tensor) -> Any:
        return y * 2 if y.shape[0] == 1 else y


class Unused(Net):
    """Has an input that it does not use."""

    def forward(self, x: Tensor, other: Tensor) -> Any:  # type: ignore[override]
        return self.layer(x)


class Endless(Net):
    """Computes no numbers."""

    def then(self, y: Tensor) -> Any:
        return y * float("nan")


class Nothing(Net):
    """Returns nothing."""

    def then(self, y: Tensor) -> Any:
        return None


class Counting(Net):
    """Counts its calls, and computes with that."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def then(self, y: Tensor) -> Any:
        self.calls += 1
        return y * self.calls


class ByBatch(Net):
    """Goes a way that depends on the batch."""

    def then(self, y: Tensor) -> Any:
        return y * 2 if y.shape[0] > 8 else y


class Masked(nn.Module):
    """Attention with a mask; for a batch of 1 a file holds something else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        y = self.layer(x) * 2 if x.shape[0] == 1 else self.layer(x)
        return (y[:, None] + mask).softmax(-1)


class Merging(nn.Linear):
    """Adds to its weight for evaluation, as adapters do, and takes it back for training."""

    merged = False

    def train(self, mode: bool = True) -> Any:
        if mode == self.merged:
            self.weight.data += -1 if mode else 1
            self.merged = not mode
        return super().train(mode)


def blended() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    return bp.attach(model, bp.plan(model, torch.randn(1, 1, 8, 8), keep=0.5))


KNOWN = ".onnx (onnx), .xml (openvino), .pt2 (torch-export), .pte (executorch)"
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "suffix": (Net, {"path": "a.onx"}, f"must end in one of {KNOWN}; the nearest is .onnx"),
    "no suffix": (Net, {"path": "a"}, f"path (='a') must end in one of {KNOWN}"),
    "format": (Net, {"format": "onx"}, "format (='onx') must be one of onnx, openvino, torch-exp"),
    "other suffix": (Net, {"format": "openvino"}, "must end in .xml, as format is 'openvino'"),
    "opset below 18": (Net, {"opset": 17}, "opset (=17) must be 18 or above"),
    "opset of none": (Net, {"opset": 99}, "opset (=99) is none that the installed onnx knows"),
    "opset of torch": (
        Net,
        {"path": "a.pt2", "opset": 20},
        "opset (=20) is for format 'onnx', and format is 'torch-export'",
    ),
    "opset of OpenVINO": (Net, {"path": "a.xml", "opset": 20}, "and format is 'openvino'"),
    "batch 0": (Net, {"batch": 0}, "batch (=0) must be a whole number of at least 1"),
    "batch negative": (Net, {"batch": -2}, "batch (=-2) must be"),
    "batch bool": (Net, {"batch": True}, "batch (=True) must be"),
    "batch word": (Net, {"batch": "any"}, "batch (='any') must be 'dynamic', or a whole number"),
    "tolerance": (Net, {"tolerance": 0}, "tolerance (=0) must be positive"),
    "tolerance word": (Net, {"tolerance": "1"}, "tolerance (='1') must be positive"),
    "blended": (blended, {}, "model is blended: collapse it before it is exported"),
    "class": (lambda: Net, {}, "model (a type) must be a torch.nn.Module"),
    "half": (lambda: Net().half(), {}, "Net has parameters of torch.float16"),
    "meta": (lambda: Net().to("meta"), {}, "layer.weight is on the device meta"),
    "no folder": (Net, {"path": "none/a.onnx"}, "path (='none/a.onnx'): there is no folder none"),
    "example": (Net, {"example": "x"}, "example (a str) must be a tensor"),
    "example without batch": (Net, {"example": torch.tensor(1.0)}, "no tensor with a batch"),
    "example of nothing": (Net, {"example": torch.zeros(0, 4)}, "example has a batch of 0"),
    "other example": (
        Net,
        {"example": torch.zeros(2, 5)},
        "an example of shape (2, 5) does not pass through Net: ",
    ),
    "fixed batch": (
        TwoRows,
        {},
        "TwoRows cannot be exported to ONNX: forward takes no other batch than 2, or compares it "
        "with the one of the call before, and the batch is dynamic: give batch=2",
    ),
    "batch of 1 alone": (
        OneRow,
        {"example": X[:1]},
        "batch (='dynamic'): an example of shape (2, 4) does not pass through OneRow",
    ),
    "way by numbers": (
        ByNumbers,
        {"path": "a.pt2"},
        "ByNumbers cannot be exported to torch.export: the way of forward depends on numbers in "
        "tensors, test_export_errors.py:",
    ),
    "operator": (Decomposed, {}, "ONNX has nothing for the operator aten._linalg_svd"),
    "operator of ExecuTorch": (
        Decomposed,
        {"path": "a.pte"},
        "ExecuTorch cannot run Decomposed: it has nothing for the operator aten::_linalg_svd.U",
    ),
    "operator without a form for its memory": (
        Deformed,
        {"path": "a.pte", "example": torch.randn(2, 4, 5, 5)},
        "cannot be exported to ExecuTorch: it has nothing for the operator "
        "'torchvision::deform_conv2d'",
    ),
    "batch that ExecuTorch fixes": (
        lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
        {"path": "a.pte", "example": torch.randn(2, 4, 5, 5)},
        "it takes no other batch than 2 there, and the batch is dynamic: give batch=1",
    ),
    "example above the largest batch": (
        Net,
        {"path": "a.pte", "example": torch.randn(65, 4)},
        "example has a batch of 65, and a file of ExecuTorch for any batch takes 64: give fewer, "
        "or batch=65",
    ),
    "number": (WithNumber, {}, "forward returns 3, which is no tensor"),
    "unused input": (
        Unused,
        {"path": "a.xml", "example": (X, X)},
        "forward does not use other, and OpenVINO keeps no such input",
    ),
    "no numbers": (Endless, {}, "Endless: an output has no finite number"),
    "nothing": (Nothing, {}, "Nothing: forward returns no tensor"),
    "counting": (Counting, {"path": "a.pt2"}, "Counting: forward changes calls"),
    "way by batch": (
        ByBatch,
        {},
        "for some batches, and the batch is dynamic: give batch=1",
    ),
    "no path": (Net, {"path": None}, "path (a NoneType) must be the path of a file"),
    "meta example": (Net, {"example": X.to("meta")}, "example (a tensor on meta, torch.strided)"),
    "format as a suffix": (Net, {"format": "pt2"}, "the nearest is 'torch-export'"),
    "format in a list": (Net, {"format": ["onnx"]}, "format (=['onnx']) must be one of"),
    "made_by": (Net, {"made_by": "a b"}, "made_by (='a b') must be a name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(
    case: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make, given, message = REFUSED[case]
    arguments = {"example": X, "path": "a.onnx"} | given
    with pytest.raises(bp.PruneError, match=re.escape(message)) as caught:
        bp.export(make(), **arguments)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, Failed)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_mask_is_no_way_past_the_comparison(low: float, tmp_path: Path) -> None:
    mask = torch.zeros(2, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), low)
    with pytest.raises(Failed, match="at a batch of 1"):
        bp.export(Masked(), (X, mask), tmp_path / "a.pt2")


def test_weights_that_change_with_the_mode_are_left_alone(tmp_path: Path) -> None:
    model = Merging(4, 3)
    before = model.weight.detach().clone()
    bp.export(model, X, tmp_path / "a.pt2")
    assert torch.equal(model.weight, before) and model.training and not model.merged


def test_a_link_leads_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").symlink_to("b.pt2")
    bp.export(Net(), X, tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").is_symlink() and (tmp_path / "b.pt2").is_file()


def test_the_generator_of_a_forward_that_draws_is_left_alone(tmp_path: Path) -> None:
    model, before = Drawing(), torch.get_rng_state()
    with pytest.raises(Failed):
        bp.export(model, X, tmp_path / "a.pt2")
    assert torch.equal(torch.get_rng_state(), before)


def test_what_takes_one_batch_is_exported_for_that(tmp_path: Path) -> None:
    assert [*bp.export(TwoRows(), X, tmp_path / "a.onnx", batch=2).parity] == [2]
    assert [*bp.export(OneRow(), X[:1], tmp_path / "b.pt2", batch=1).parity] == [1]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_computes_something_else_gets_another_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    others = [path.with_suffix(".bin")] if suffix == ".xml" else []
    for file in (path, *others):
        file.write_text("old")
    with pytest.raises(Failed, match=r"its outputs differ from the model's by [\d.e-]+ of the"):
        bp.export(AtOne() if suffix == ".pte" else Drawing(), X, path, overwrite=True)
    assert path.read_text() == "old"
    failed = {f"{file.name}.failed" for file in (path, *others)}
    assert {each.name for each in tmp_path.iterdir()} == {path.name, *failed} | {
        each.name for each in others
    }
    assert all((tmp_path / name).stat().st_size > 3 for name in failed)


def test_tolerance_is_what_may_differ(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    x = torch.randn(4, 64)
    worst = max(bp.export(model, x, tmp_path / "a.onnx").parity.values())
    assert 0 < worst < 1e-6
    result = bp.export(model, x, tmp_path / "b.onnx", tolerance=1.01 * worst)
    assert result.tolerance == 1.01 * worst
    with pytest.raises(Failed, match="and tolerance is "):
        bp.export(model, x, tmp_path / "c.onnx", tolerance=0.99 * worst)
    assert not (tmp_path / "c.onnx").exists() and (tmp_path / "c.onnx.failed").exists()


@pytest.mark.parametrize("name", ["a.xml", "a.bin"])
def test_files_that_exist_are_not_replaced_unasked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(bp.PruneError, match=f"{name} exists; move it, name another"):
        bp.export(Net(), X, tmp_path / "a.xml")
    assert (tmp_path / name).read_text() == "mine" and len([*tmp_path.iterdir()]) == 1


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(bp.PruneError, match="is no regular file"):
        bp.export(Net(), X, tmp_path / "a.onnx", overwrite=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_told_and_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    model, x = nn.Linear(400, 40), torch.randn(1, 400)
    bp.export(model, x, tmp_path / f"b{suffix}")  # so that nothing else is written now
    path, limits = tmp_path / f"a{suffix}", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = {*tmp_path.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (9999, limits[1]))
    try:
        with pytest.raises(Failed, match=f"^cannot write {path}: "):
            bp.export(model, x, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {*tmp_path.iterdir()} == before


def test_a_folder_in_which_nobody_may_write_is_told() -> None:
    with pytest.raises(Failed, match=r"^cannot write /proc/a\.onnx: \w"):  # not even root may
        bp.export(Net(), X, "/proc/a.onnx")


MISSING = {
    "onnx": (".onnx", "format (='onnx') needs onnx,", "'branchprune[onnx]'"),
    "onnxscript": (".onnx", "format (='onnx') needs onnxscript,", "'branchprune[onnx]'"),
    "onnxruntime": (".onnx", "format (='onnx') needs onnxruntime,", "'branchprune[onnx]'"),
    "openvino": (".xml", "format (='openvino') needs openvino,", "'branchprune[openvino]'"),
    "executorch": (".pte", "format (='executorch') needs executorch,", "'branchprune[executorch]'"),
}


@pytest.mark.parametrize("package", MISSING)
def test_an_extra_that_is_missing_is_named(package: str, tmp_path: Path, monkeypatch: Any) -> None:
    suffix, told, extra = MISSING[package]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(bp.PruneError, match=re.escape(told)) as caught:
        bp.export(Net(), X, tmp_path / f"a{suffix}")
    assert str(caught.value).endswith(f"pip install {extra}")
    assert [*tmp_path.iterdir()] == []


def test_every_format_has_what_users_are_told() -> None:
    assert [*FORMATS] == ["onnx", "openvino", "torch-export", "executorch"]
    assert [each.suffix for each in FORMATS.values()] == [*SUFFIXES]
