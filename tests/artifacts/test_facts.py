"""What a file says of its model: read by others' means, kept with the weights, and shown."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import vgg
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import branchprune as bp
from branchprune.cli import main

KNOWN: dict[str, Any] = {
    "keep": {"": 0.5, "features": 0.25},
    "metric": {"top1": {"value": 0.76, "interval": [0.74, 0.78], "dataset": "CIFAR-10"}, "nll": 1},
    "license": "mit",
}


def narrow() -> nn.Module:
    model = vgg(classes=7)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8), 0.5))
    blended.alpha = 0.0
    return bp.collapse(blended)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return narrow()


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def sha256(path: Path) -> str:
    """Return the digest of a file's tensors, as its docstring says, by way of NumPy."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        sizes = ",".join(str(size) for size in tensor.shape)
        dtype = str(tensor.dtype).split(".")[1]
        content = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        found.update(f"{name}\0{dtype}\0{sizes}\0".encode() + content.numpy().tobytes("C"))
    return found.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_digest_is_that_of_the_weights_whatever_else_the_file_says(
    small: nn.Module, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = bp.load(vgg(classes=7), _saved(small, tmp_path)).to(dtype)
    bp.save(model, a := tmp_path / "a.safetensors")
    bp.save(model, b := tmp_path / "b.safetensors", **KNOWN)
    assert header(a)["sha256"] == header(b)["sha256"] == sha256(a)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    bp.save(model, b)
    assert header(b)["sha256"] == sha256(b) != sha256(a)


def _saved(model: nn.Module, folder: Path, **known: Any) -> Path:
    path = folder / "small.safetensors"
    bp.save(model, path, **known)
    return path


def test_a_header_says_what_it_was_given_and_where_the_class_is(
    small: nn.Module, tmp_path: Path
) -> None:
    said = header(_saved(small, tmp_path, made_by="my:Net", init_args={"a": 1}, **KNOWN))
    assert said["import_path"] == f"{type(small).__module__}:{type(small).__qualname__}"
    assert json.loads(said["keep"]) == KNOWN["keep"] and said["license"] == "mit"
    assert json.loads(said["metric"]) == KNOWN["metric"]
    versions = json.loads(said["versions"])
    assert versions == {"branchprune": bp.__version__, "torch": str(torch.__version__)}
    assert int(said["params"]) == sum(p.numel() for p in small.parameters())
    assert int(said["dense_params"]) == sum(p.numel() for p in vgg(classes=7).parameters())


def test_what_is_known_goes_with_the_weights_and_made_by_with_the_model(
    small: nn.Module, tmp_path: Path
) -> None:
    path = _saved(small, tmp_path, made_by="my:Net", init_args={"a": 1}, **KNOWN)
    model, again = bp.load(vgg(classes=7), path), tmp_path / "again.safetensors"
    bp.save(model, again)
    assert header(again) | {"digest": ""} == header(path) | {"digest": ""}
    bp.save(model, again, metric={"top1": 0.5})
    assert json.loads(header(again)["metric"]) == {"top1": 0.5}
    assert header(again)["license"] == "mit"
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    bp.save(model, again)
    assert header(again)["made_by"] == "my:Net"
    assert not {"keep", "metric", "license"} & header(again).keys()


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"keep": 0}, r"keep \(=0\)"),
        ({"keep": float("nan")}, "keep"),
        ({"keep": {"a": 2}}, "keep"),
        ({"keep": True}, "keep"),
        ({"metric": 0.7}, "metric .* by name"),
        ({"metric": {"a": float("inf")}}, "metric .* finite"),
        ({"metric": {"a": {"interval": [0, 1]}}}, "metric"),
        ({"metric": {"a": {"value": 1, "interval": [0]}}}, "metric"),
        ({"metric": {"a": {"value": 1, "more": [0]}}}, "metric"),
        ({"metric": {"a\n": 1}}, "metric"),
        ({"license": ""}, "license"),
        ({"license": "mit\nx"}, "license"),
        ({"license": 3}, "license"),
    ],
)
def test_what_no_header_can_hold_is_refused_by_name(
    known: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(bp.PruneError, match=message):
        bp.save(nn.Linear(2, 2), tmp_path / "a.safetensors", **known)
    assert not [*tmp_path.iterdir()]


def shown(capsys: Any, *args: object) -> list[str]:
    assert main(["show", *map(str, args)]) == 0
    return list(capsys.readouterr().out.splitlines())


def refused(capsys: Any, *args: object) -> str:
    assert main(["show", *map(str, args)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return str(line)


def test_show_prints_each_layer_narrow_and_dense(
    small: nn.Module, tmp_path: Path, capsys: Any
) -> None:
    path = _saved(small, tmp_path, made_by="my:Net", init_args={"a": 1}, **KNOWN)
    lines = shown(capsys, path)
    assert 'made by      my:Net {"a": 1}' in lines
    assert "score        top1: 0.76 (0.74 to 0.78, dataset CIFAR-10)" in lines
    dense = dict(vgg(classes=7).named_modules())
    table = {cells[0]: cells[1:] for line in lines if len(cells := line.split()) > 3}
    for name, module in small.named_modules():
        own = [*module.parameters(recurse=False)]
        if not own:
            continue
        kind, *cells = table[name]
        assert kind.startswith(type(module).__name__.rstrip("12d"))
        shapes = [own[0].shape, next(iter(dense[name].parameters())).shape]
        wanted = ["×".join(map(str, shape)) for shape in shapes]
        count = f"{sum(p.numel() for p in own):,}"
        assert cells == [*(wanted if wanted[0] != wanted[1] else wanted[:1]), count]


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_an_exported_file_says_what_the_one_did_that_it_is_of(
    suffix: str, small: nn.Module, tmp_path: Path, capsys: Any
) -> None:
    path = _saved(small, tmp_path, made_by="my:Net", **KNOWN)
    model, file = bp.load(vgg(classes=7), path), tmp_path / f"small{suffix}"
    bp.export(model, torch.randn(1, 3, 8, 8), file, batch=1)
    before = shown(capsys, path)
    lines = shown(capsys, file)
    for name in ("class", "made by", "parameters", "keep", "score", "license", "sha256"):
        told = [" ".join(line.split()) for line in before if line.startswith(f"{name} ")]
        assert told == [" ".join(line.split()) for line in lines if line.startswith(f"{name} ")]
        assert told


def test_what_show_cannot_read_is_told_in_a_line(tmp_path: Path, capsys: Any) -> None:
    plain, other = tmp_path / "plain.safetensors", tmp_path / "a.onnx"
    save_file({"a": torch.ones(2)}, plain)
    other.write_bytes(b"no such file")
    (tmp_path / "a.xml").write_text("<net/>")
    (tmp_path / "a.pt2").write_bytes(b"PK\x03\x04")
    (tmp_path / "a.pt").touch()
    assert "was not written by branchprune" in refused(capsys, plain)
    assert "does not exist" in refused(capsys, tmp_path / "none.safetensors")
    assert "does not exist" in refused(capsys, tmp_path / "none.onnx")
    assert "a.onnx" in refused(capsys, other)
    assert "has no header" in refused(capsys, tmp_path / "a.xml")
    assert "damaged" in refused(capsys, tmp_path / "a.pt2")
    assert "must end in" in refused(capsys, tmp_path / "a.pt")
    assert "model.safetensors does not exist" in refused(capsys, tmp_path)


def test_a_file_of_a_newer_version_is_told_to_be_one(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "new.safetensors"
    save_file({"weight": torch.ones(2, 2)}, path, metadata={"format": "branchprune/3"})
    for model in ((), (nn.Linear(2, 2),)):
        with pytest.raises(bp.PruneError, match=r"newer version.*'branchprune/3'.*--upgrade"):
            bp.load(*model, path)
    assert "newer version" in refused(capsys, path)
    assert main(["plan", "torch.nn.Linear", "--checkpoint", str(path), "--example", "1x2"]) == 2


@pytest.mark.parametrize("key", ["keep", "metric", "notes", "macs", "params", "buffers"])
@pytest.mark.parametrize("said", ["{", '"a"', "[1, {}]", "null", "[" * 100000])
def test_a_strangers_header_is_refused_in_a_line(
    key: str, said: str, small: nn.Module, tmp_path: Path, capsys: Any
) -> None:
    path = _saved(small, tmp_path)
    state, found = {k: v.clone() for k, v in load_file(path).items()}, header(path)
    save_file(state, path, metadata=found | {"format": "branchprune/1", key: said})
    if main(["show", str(path)]) == 2:
        assert "damaged" in capsys.readouterr().err
    else:
        assert said in ("null", '"a"', "[1, {}]")  # numbers and names that are none are not shown


def test_what_would_move_the_cursor_is_not_printed(
    small: nn.Module, tmp_path: Path, capsys: Any
) -> None:
    path = _saved(small, tmp_path)
    found = header(path) | {
        "format": "branchprune/1",
        "class": "A\x1b[2J",
        "notes": '["\\u001b[1m"]',
    }
    save_file({k: v.clone() for k, v in load_file(path).items()}, path, metadata=found)
    assert not any("\x1b" in line for line in shown(capsys, path))


def test_of_a_program_of_executorch_it_is_said_what_returns_its_header(
    tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "small.pte").write_bytes(b"")
    assert "ExecuTorch returns its header by its method 'branchprune'" in refused(
        capsys, tmp_path / "small.pte"
    )
    (tmp_path / "small.txt").write_bytes(b"")
    assert "ExecuTorch" not in refused(capsys, tmp_path / "small.txt")
