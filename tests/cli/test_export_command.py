"""`branchprune export`: a model by its import path or from a file, written, compared and timed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

import branchprune as bp
from branchprune.benchmarks.beside_dense import beside_dense
from branchprune.cli import main
from branchprune.models import VGG

HERE = "test_export_command"
EXAMPLE = ("--example", "1x3x8x8")


class Net(nn.Module):
    """Its width is an argument."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, 2)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(image).relu().mean((2, 3)))
        return scores


class Drawing(Net):
    """Computes something else in each call."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) + torch.rand(2)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_a_model_with_its_weights_is_written_compared_and_timed(
    tmp_path: Path, capsys: Any
) -> None:
    model = Net(6).eval()
    torch.save(model.state_dict(), "mine.pt")
    given = ("--init_args.width", "6", "--checkpoint", "mine.pt", "--format", "onnx", "--opset")
    assert main(["export", f"{HERE}:Net", *given, "18", *EXAMPLE]) == 0
    written, parity, latency = capsys.readouterr().out.splitlines()
    size = (tmp_path / "Net.onnx").stat().st_size
    assert written.startswith(f"Net.onnx: {size / 1000:.1f} kB, any batch, in ")
    assert "at batches of 1, 3 and 7 (tolerance 1e-05)" in parity
    version = re.escape(f"ONNX Runtime {onnxruntime.__version__}")
    ms = r"(\d+(?:\.\d+)?) ms"
    found = re.fullmatch(
        rf"latency: {ms} at a batch of 1 in {version}, f32, 1 thread \(median of \d+, "
        rf"interquartile range {ms}\)",
        latency,
    )
    assert found is not None and 0 < float(found[1]) < 1000
    image = torch.randn(5, 3, 8, 8)
    session = onnxruntime.InferenceSession("Net.onnx")
    (scores,) = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.as_tensor(scores), model(image), rtol=0, atol=1e-5)


def test_a_pruned_file_is_exported_beside_itself(tmp_path: Path, capsys: Any) -> None:
    sizes: dict[str, Any] = {"stages": [[8, 8], [8]], "classes": 3}
    model, x = VGG(**sizes), torch.randn(2, 3, 4, 4)
    blended = bp.attach(model, bp.plan(model, x, keep=0.5))
    blended.alpha = 0
    small = bp.collapse(blended).eval()
    (tmp_path / "run").mkdir()
    bp.save(small, "run/small.safetensors", "branchprune.models.VGG", sizes)
    given = ("--format", "torch-export", "--batch", "2", "--threads", "2")
    assert main(["export", "run/small.safetensors", *given, "--example", "1x3x4x4"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("run/small.pt2: ") and "a batch of 2, in" in text
    assert re.search(r"latency: .* at a batch of 2 in PyTorch .*, f32, 2 threads \(", text)
    assert_beside_dense(text, sizes, small, 2)
    extra = {"branchprune.json": ""}
    program = torch.export.load("run/small.pt2", extra_files=extra)
    assert '"made_by": "branchprune.models.VGG"' in extra["branchprune.json"]
    with torch.no_grad():
        assert torch.allclose(program.module()(x), small(x), rtol=0, atol=1e-5)


def assert_beside_dense(text: str, sizes: Any, small: nn.Module, batch: int) -> None:
    """Look for the line on the dense model, and compare it with weights times pixels."""
    by_hand = [
        sum(m.weight.numel() for m in model.features if isinstance(m, nn.Conv2d))
        for model in (VGG(**sizes), small)
    ]
    ms = r"(\d+(?:\.\d+)?) ms"
    found = re.search(
        rf"^in turns with {ms} of the dense model: ([\d.]+) times as fast \(([\d.]+)–([\d.]+)\) as "
        r"the dense model, with ([\d.]+) times fewer multiply-adds: (\d+)% of that$",
        text,
        re.M,
    )
    assert found is not None and float(found[1]) > 0
    faster, low, high, fewer = (float(found[i]) for i in (2, 3, 4, 5))
    assert low <= faster <= high and fewer == pytest.approx(by_hand[0] / by_hand[1], rel=0.15)
    assert int(found[6]) == pytest.approx(100 * faster / fewer, abs=2)


def save_small() -> nn.Module:
    """Write a Net of half the width to mine.safetensors."""
    model = Net()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8), keep=0.5))
    blended.alpha = 0
    small = bp.collapse(blended).eval()
    bp.save(small, "mine.safetensors")
    return small


def test_the_dense_model_comes_first_and_both_are_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(steps: Any, sizes: Any, batch: int) -> Any:
        outputs.extend(torch.as_tensor(step()[0]) for step in steps)
        params.extend(size.params for size in sizes)
        return beside_dense(steps, sizes, batch, seconds=0.01)

    outputs: list[Tensor] = []
    params: list[int] = []
    x, small = torch.randn(1, 3, 8, 8), save_small()
    monkeypatch.setattr("branchprune.cli.export_latency.beside_dense", compare)
    monkeypatch.setattr("branchprune.cli.export.given_example", lambda *_: x)
    given = ("--checkpoint", "mine.safetensors", "--output", "a.onnx")
    assert main(["export", f"{HERE}:Net", *given]) == 0
    with torch.no_grad():
        wanted = small(x)
    assert torch.allclose(outputs[1], wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(outputs[0], wanted, rtol=0, atol=1e-5)
    assert params == [28 * 4 + 2 * 4 + 2, 28 * 2 + 2 * 2 + 2]


def test_a_dense_model_that_cannot_be_exported_ends_no_export(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def of_small_alone(model: nn.Module, *args: Any, **given: Any) -> Any:
        if model.conv.out_channels == 4:
            raise bp.PruneError(f"{args[1]}.failed: it is too wide")
        return bp.export(model, *args, **given)

    monkeypatch.setattr("branchprune.cli.export_latency.export", of_small_alone)
    save_small()
    given = ("--checkpoint", "mine.safetensors", "--output", "a.onnx", *EXAMPLE)
    assert main(["export", f"{HERE}:Net", *given]) == 0
    _, _, latency, beside = capsys.readouterr().out.splitlines()
    assert latency.startswith("latency: ") and Path("a.onnx").is_file()
    assert beside == "not beside the dense model: dense.onnx.failed: it is too wide"


def test_a_program_of_executorch_is_timed_with_the_threads_that_are_asked_for(capfd: Any) -> None:
    for threads in ("1", "2"):
        given = ("--format", "executorch", "--threads", threads, "--overwrite", *EXAMPLE)
        assert main(["export", f"{HERE}:Net", *given]) == 0
        captured = capfd.readouterr()
        assert captured.out.startswith("Net.pte: ") and "batches up to 64, in" in captured.out
        many = "1 thread" if threads == "1" else "2 threads"
        assert re.search(
            rf"latency: .* at a batch of 1 in ExecuTorch [\d.]+, f32, {many} \(", captured.out
        )
        assert [line for line in captured.err.splitlines() if "are random" not in line] == []


def test_a_model_of_a_library_has_an_example_and_its_random_weights_are_told(capsys: Any) -> None:
    assert main(["export", "squeezenet1_1", "--output", "a.xml"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("a.xml and a.bin: ")
    [line] = captured.err.splitlines()
    assert line.startswith("branchprune: warning: the weights of squeezenet1_1 are random")


def test_a_folder_of_images_sets_ranges_and_judges(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    (tmp_path / "images" / "more").mkdir(parents=True)
    pixels = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8).numpy()
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / "images" / ("more" if i % 2 else "") / f"{i}.png")
    torch.save(Net().state_dict(), "mine.pt")
    given = ("--checkpoint", "mine.pt", "--quantize", "8", "--calibration", "images")
    prepared = ("--image_size", "8", "--mean", "[0.5, 0.5, 0.5]", "--std", "[0.2, 0.2, 0.2]")
    output = ("--output", "a.onnx", "--samples", "10")
    assert main(["export", f"{HERE}:Net", *given, *prepared, *output]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "INT8: 2 of 2 products in whole numbers, ranges from 10 images"
    assert lines[3].startswith("on 30 others the class is the same for ")
    assert re.match(r"latency: .* in ONNX Runtime .*, INT8 and f32, 1 thread \(", lines[-1])
    scale = next(
        numpy_helper.to_array(each)
        for each in onnx.load("a.onnx").graph.initializer
        if each.name == "image_scale"
    )
    widest = (1 - 0.5) / 0.2 - (0 - 0.5) / 0.2  # of pixels from 0 to 255, in 255 steps
    assert float(scale) == pytest.approx(widest / 255, rel=0.02)


def test_another_output_ends_with_1_and_another_name(tmp_path: Path, capsys: Any) -> None:
    assert main(["export", f"{HERE}:Drawing", "--format", "onnx", *EXAMPLE]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("branchprune: error: Drawing.onnx.failed: in ONNX Runtime its outputs")
    assert [each.name for each in tmp_path.iterdir()] == ["Drawing.onnx.failed"]


BAD = {
    "no format": ([], "format is missing: give one of onnx, openvino, torch-export, executorch"),
    "unknown format": (["--format", "onx"], "format (='onx') must be one of onnx, openvino"),
    "unknown suffix": (["--output", "a.tflite"], "output (='a.tflite') must end in one of .onnx"),
    "both": (["--format", "onnx", "--output", "a.pt2"], "must end in .onnx, as format is 'onnx'"),
    "opset of torch": (["--output", "a.pt2", "--opset", "20"], "opset (=20) is for format 'onnx'"),
    "opset below": (["--output", "a.onnx", "--opset", "17"], "opset (=17) must be 18 or above"),
    "batch 0": (["--output", "a.onnx", "--batch", "0"], "batch (=0) must be a whole number"),
    "batch word": (["--output", "a.onnx", "--batch", "all"], "batch (='all') must be 'dynamic'"),
    "tolerance": (["--output", "a.onnx", "--tolerance", "-1"], "tolerance (=-1.0) must be"),
    "threads": (["--output", "a.onnx", "--threads", "0"], "threads (=0) must be a whole number"),
    "exists": (["--output", "old.onnx"], "old.onnx exists; move it, name another, or set overwr"),
    "no folder": (["--output", "none/a.onnx"], "there is no folder none"),
    "bits": (["--output", "a.onnx", "--quantize", "4"], "quantize (=4) must be 8 or 16"),
    "bits of torch": (
        ["--output", "a.pt2", "--quantize", "8"],
        "quantize (=8) is for format 'onnx'",
    ),
    "8 bits": (["--output", "a.onnx", "--quantize", "8"], "give a folder of them, --calibration"),
    "images": (
        ["--output", "a.onnx", "--calibration", "b"],
        "calibration (='b') is for --quantize",
    ),
    "size": (["--output", "a.onnx", "--image_size", "8"], "image_size (=8) says how images are"),
    "both inputs": (
        ["--output", "a.onnx", "--quantize", "8", "--calibration", "b"],
        "an image of --calibration is the example: leave it out",
    ),
    "unknown option": (["--quantise", "8"], "--quantise is no option"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line(case: str, tmp_path: Path, capsys: Any) -> None:
    Path("old.onnx").write_text("old")
    args, message = BAD[case]
    assert main(["export", f"{HERE}:Net", *EXAMPLE, *args]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("branchprune: error: ") and message in line
    assert [each.name for each in tmp_path.iterdir()] == ["old.onnx"]


def test_an_example_is_asked_for(capsys: Any) -> None:
    assert main(["export", f"{HERE}:Net", "--format", "onnx"]) == 2
    assert "give the shape of an input, --example 1x3x224x224" in capsys.readouterr().err


def test_a_file_is_replaced_if_that_is_asked_for(capsys: Any) -> None:
    Path("old.onnx").write_text("old")
    given = ("--output", "old.onnx", "--overwrite", *EXAMPLE)
    assert main(["export", f"{HERE}:Net", *given]) == 0
    assert Path("old.onnx").stat().st_size > 100


def test_help_has_a_table_of_formats(capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "usage: branchprune export" in text
    rows = [re.split(r"  +", line.strip()) for line in text.partition("formats:\n")[2].splitlines()]
    assert rows == [
        ["format", "suffix", "extra to install", "runtime", "fp16", "INT8", "dynamic batch"],
        ["onnx", ".onnx", "branchprune[onnx]", "ONNX Runtime", "yes", "yes", "yes"],
        ["openvino", ".xml", "branchprune[openvino]", "OpenVINO", "yes", "yes", "yes"],
        ["torch-export", ".pt2", "–", "PyTorch", "–", "–", "yes"],
        ["executorch", ".pte", "branchprune[executorch]", "ExecuTorch", "–", "yes", "up to 64"],
    ]
