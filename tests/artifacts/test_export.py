"""Exported files compute what the model does, say what they are, and tell nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

import branchprune as bp
from branchprune.artifacts.parity import difference

ROOT = Path(bp.__file__).parents[1]
SUFFIXES = (".onnx", ".xml", ".pt2", ".pte")
CHILD = Path(__file__).parents[1] / "helpers" / "exported_alone.py"


class Digits(nn.Module):
    """A network for images of 8×8, with norms and a hidden width that can shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(image).flatten(1))
        return scores


def small() -> nn.Module:
    """Return a pruned network whose norms have seen images."""
    torch.manual_seed(0)
    model = Digits()
    model(torch.randn(64, 1, 8, 8) * 2 + 1)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 1, 8, 8), keep=0.5))
    blended.alpha = 0
    return bp.collapse(blended).train()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def written(model: nn.Module, tmp_path_factory: Any) -> dict[str, bp.Exported]:
    folder = tmp_path_factory.mktemp("exported")
    (secret := torch.zeros(1, 1, 8, 8))[0, 0] = torch.arange(64.0).view(8, 8) * 1e6
    named = {"made_by": "my_package:Digits", "init_args": {"classes": 10}}
    return {
        suffix: bp.export(model, secret / 1e6, folder / f"small{suffix}", **named)
        for suffix in SUFFIXES
    }


def program(file: Path) -> Any:
    """Open an ExecuTorch program; its package warns when it is imported for the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.runtime import Runtime
    return Runtime.get().load_program(file)


def run(file: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Run a file in its runtime, as its own documentation says."""
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return [torch.as_tensor(each) for each in session.run(None, arrays)]
    if file.suffix == ".xml":
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        found = openvino.Core().compile_model(file, "CPU", exact)(arrays)
        return [torch.as_tensor(each) for each in found.values()]
    if file.suffix == ".pte":
        found = program(file).load_method("forward").execute([*inputs.values()])
        return [each for each in found if each is not None]
    output = torch.export.load(file).module()(*inputs.values())
    return [output] if isinstance(output, Tensor) else [*output]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_compute_what_the_model_does_at_any_batch(
    suffix: str, written: dict[str, bp.Exported], model: nn.Module
) -> None:
    for size in (1, 2, 5, 64):
        x = torch.randn(size, 1, 8, 8) * 2 + 1
        (found,) = run(written[suffix].path, {"image": x})
        with torch.no_grad():
            wanted = Digits.forward(model.eval(), x)  # type: ignore[arg-type]
        assert found.shape == (size, 10)
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_result_says_what_was_written(suffix: str, written: dict[str, bp.Exported]) -> None:
    result = written[suffix]
    beside = [result.path.with_suffix(".bin")] if suffix == ".xml" else []
    assert [*result.files] == [result.path, *beside]
    assert result.bytes == sum(file.stat().st_size for file in result.files)
    assert [*result.parity] == [1, 3, 7] and max(result.parity.values()) <= 1e-5
    assert result.seconds > 0 and result.batch == "dynamic"
    text = str(result)
    assert text.startswith(f"{result.path}{' and small.bin' * (suffix == '.xml')}: ")
    takes = "batches up to 64" if suffix == ".pte" else "any batch"
    assert f"{result.bytes / 1000:.1f} kB, {takes}, in" in text
    assert "at batches of 1, 3 and 7 (tolerance 1e-05)" in text and result.runtime in text


def test_a_processor_that_computes_in_bfloat16_by_itself_is_told(
    written: dict[str, bp.Exported],
) -> None:
    own = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    result = written[".xml"]
    assert result.precision == own
    assert ("compared with INFERENCE_PRECISION_HINT=f32" in str(result)) == (own != "f32")
    assert written[".onnx"].precision == "f32" and "INFERENCE" not in str(written[".onnx"])


def header(file: Path) -> dict[str, str]:
    """Return what a file says of itself, read without branchprune."""
    if file.suffix == ".onnx":
        return {each.key: each.value for each in onnx.load(file).metadata_props}
    if file.suffix == ".xml":
        info = openvino.Core().read_model(file).rt_info["branchprune"]
        return {key: each.value for key, each in info.items()}
    if file.suffix == ".pte":
        (said,) = program(file).load_method("branchprune").execute([])
        return dict(json.loads(said))
    extra = {"branchprune.json": ""}
    torch.export.load(file, extra_files=extra)
    found: dict[str, str] = json.loads(extra["branchprune.json"])
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_say_what_they_are(suffix: str, written: dict[str, bp.Exported]) -> None:
    said = header(written[suffix].path)
    assert said["class"] == "Digits" and said["branchprune"] == bp.__version__
    assert json.loads(said["widths"])["features.4"] == {
        "in_channels": 4,
        "out_channels": 8,
        "groups": 1,
    }
    assert said["made_by"] == "my_package:Digits"
    assert json.loads(said["init_args"]) == {"classes": 10}
    dense = sum(each.numel() for each in Digits().parameters())
    assert said["dense_params"] == str(dense) and int(said["params"]) < dense / 2
    assert said["torch"] == torch.__version__


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_path_no_code_and_no_example_is_in_a_file(
    suffix: str, written: dict[str, bp.Exported]
) -> None:
    content = b"".join(file.read_bytes() for file in written[suffix].files)
    if suffix == ".pt2":
        with zipfile.ZipFile(written[suffix].path) as records:
            content += b"".join(map(records.read, records.namelist()))
    for found in (str(ROOT), "site-packages", "self.features(", ".py"):
        assert found.encode() not in content, found
    assert torch.arange(64.0).numpy().tobytes() not in content


def test_an_onnx_file_is_valid_has_one_file_and_the_opset_that_was_asked_for(
    model: nn.Module, written: dict[str, bp.Exported], tmp_path: Path
) -> None:
    assert onnx.load(written[".onnx"].path).opset_import[0].version == 20
    result = bp.export(model, torch.randn(1, 1, 8, 8), tmp_path / "a.onnx", opset=18, batch=3)
    assert [*tmp_path.iterdir()] == [result.path]
    made = onnx.load(result.path)
    onnx.checker.check_model(made, full_check=True)
    assert made.opset_import[0].version == 18
    (image,) = made.graph.input
    assert image.name == "image"
    assert [each.dim_value for each in image.type.tensor_type.shape.dim] == [3, 1, 8, 8]
    assert [each.name for each in made.graph.output] == ["output"]
    assert [*result.parity] == [3] and "a batch of 3, in" in str(result)


def test_the_model_stays_as_it_is(model: nn.Module, tmp_path: Path) -> None:
    model.train()
    model.head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        bp.export(model, torch.randn(1, 1, 8, 8), tmp_path / "a.pt2")
    assert model.training and model.features[1].training and not model.head.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(each.requires_grad for each in model.parameters())


class Two(nn.Module):
    """Two inputs, of which one has no batch, and two outputs, of which one is whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor | None]:
        scores = self.head(self.conv(x).relu().mean((2, 3))) * scale
        return {"scores": scores, "nothing": None, "x": scores.argmax(1)}


class Pair(Two):
    """The same as a tuple, its inputs not to be changed."""

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        found = super().forward(x.mul_(1.0), scale)
        assert found["scores"] is not None and found["x"] is not None
        return found["scores"], found["x"]


def inputs_of(suffix: str, kind: type[Two], x: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Return inputs of a file: those of ExecuTorch have no names, and the order of the example."""
    first_scale = suffix == ".pte" and kind is Two
    return {"scale": scale, "x": x} if first_scale else {"x": x, "scale": scale}


PAIRS = [(kind, suffix) for kind in (Two, Pair) for suffix in SUFFIXES]


@pytest.mark.parametrize("kind, suffix", PAIRS[:-1])
def test_several_inputs_and_outputs(kind: type[Two], suffix: str, tmp_path: Path) -> None:
    model = kind().eval()
    x, scale = torch.randn(2, 3, 6, 6), torch.full((1,), -3.0)
    example: Any = (x, scale) if kind is Pair else {"scale": scale, "x": x}
    path = bp.export(model, example, tmp_path / f"two{suffix}").path
    x = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        wanted = model(x, scale)
    if suffix == ".pt2" and kind is Two:
        found = torch.export.load(path).module()(scale=scale, x=x)
        assert found["nothing"] is None
        found = [found["scores"], found["x"]]
    else:
        found = run(path, inputs_of(suffix, kind, x, scale))
    scores, classes = [wanted["scores"], wanted["x"]] if kind is Two else wanted
    assert torch.allclose(found[0], scores, rtol=0, atol=1e-5) and torch.equal(found[1], classes)
    if suffix == ".onnx":
        names = [each.name for each in onnx.load(path).graph.output]
        assert names == (["scores", "x_out"] if kind is Two else ["output_0", "output_1"])


def test_an_input_that_forward_changes_is_refused_where_files_cannot(tmp_path: Path) -> None:
    example, message = (torch.randn(2, 3, 6, 6), torch.ones(1)), "forward changes its input x, and"
    with pytest.raises(bp.PruneError, match=f"Pair cannot be exported to ExecuTorch: {message}"):
        bp.export(Pair(), example, tmp_path / "a.pte")
    assert [*tmp_path.iterdir()] == []


class Turned(nn.Module):
    """Its channels are split, and its output has twice as many rows as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).chunk(2, 1)
        return torch.cat([second, first], 0)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_program_takes_batches_up_to_64_whatever_the_example_has(
    size: int, tmp_path: Path, capfd: Any
) -> None:
    model, last = Turned().eval(), {"memory_format": torch.channels_last}
    model.to(**last)
    path = bp.export(model, torch.randn(size, 4, 6, 6).to(**last), tmp_path / "a.pte").path
    assert capfd.readouterr() == ("", "")  # its libraries write to the standard error
    for batch in (1, 2, 15, 16, 64):
        x = torch.randn(batch, 4, 6, 6)
        (found,) = run(path, {"x": x})
        with torch.no_grad():
            assert torch.allclose(found, model(x), rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError):
        run(path, {"x": torch.randn(65, 4, 6, 6)})
    assert model.conv.weight.is_contiguous(**last)


def test_a_program_of_one_batch_takes_more_than_64(tmp_path: Path) -> None:
    x = torch.randn(64, 4, 6, 6)
    assert [*bp.export(Turned().eval(), x, tmp_path / "b.pte", batch=65).parity] == [65]


def test_what_replaces_a_file_is_whole_and_nothing_is_left_beside(
    model: nn.Module, tmp_path: Path
) -> None:
    path, x = tmp_path / "a.xml", torch.randn(1, 1, 8, 8)
    path.write_text("old")
    path.with_suffix(".bin").write_text("old")
    bp.export(model, x, path, overwrite=True)
    assert {each.name for each in tmp_path.iterdir()} == {"a.xml", "a.bin"}
    assert len(run(path, {"image": x})) == 1


def test_files_run_where_branchprune_cannot_be_imported(
    written: dict[str, bp.Exported], model: nn.Module, tmp_path: Path
) -> None:
    image = torch.randn(1, 1, 8, 8)
    torch.save(image, tmp_path / "image.pt")
    files = [written[suffix].path for suffix in SUFFIXES]
    command = [sys.executable, CHILD, tmp_path / "image.pt", *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        wanted = model.eval()(image)
    found = json.loads(result.stdout)
    assert len(found) == len(files)
    for file, output in zip(files, found, strict=True):
        assert torch.allclose(torch.tensor(output), wanted, rtol=0, atol=1e-5), file


def test_differences_are_those_of_the_worst_output() -> None:
    ones, ints = torch.ones(3), torch.arange(3)
    assert difference([ones, ints], [ones, ints]) == 0
    off = torch.tensor([1.0, 1.5, 1.0])
    assert difference([ones, off], [ones, ones]) == 0.5
    assert difference([2 * off], [2 * ones]) == 0.5
    nan = torch.tensor([1.0, float("nan"), float("inf")])
    assert difference([nan.clone()], [nan]) == 0
    for found, wanted in (
        ([ones], [ones, ones]),
        ([ones], [torch.ones(4)]),
        ([ints + 1], [ints]),
        ([ones], [nan]),
        ([nan], [ones]),
        ([-nan], [nan]),
        ([ones], [torch.zeros(3)]),
    ):
        assert difference(found, wanted) == float("inf")
