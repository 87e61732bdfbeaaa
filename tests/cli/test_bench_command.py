"""`branchprune bench MODEL`: a small model beside its dense one, in a runtime, on a clock."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from clocked_runtime import OVERHEAD, Clocked, stopped_clock
from safetensors.torch import load_file
from torch import Tensor, nn

import branchprune as bp
from branchprune.cli import bench as bench_command
from branchprune.cli import main
from branchprune.models import VGG
from branchprune.runtimes.named import RUNTIMES

HERE = "test_bench_command"
SIZES: dict[str, Any] = {"stages": [[8, 8], [8]], "classes": 3}
IMAGE = (3, 4, 4)
EXAMPLE = ("--example", "1x3x4x4")


class Watched(Clocked):
    """Notes what it is given to run, and with how many threads."""

    def __init__(self, now: list[float]) -> None:
        super().__init__(now)
        self.given: list[tuple[nn.Module, Tensor]] = []

    def with_threads(self, threads: int | None) -> Watched:
        self.threads = threads or 99
        return self

    def prepared(self, model: nn.Module, example: Tensor) -> Any:
        self.given.append((model, example))
        return super().prepared(model, example)


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watched:
    """The runtime that bench finds under the name of ONNX Runtime, and another folder."""
    found = Watched(stopped_clock(monkeypatch))
    monkeypatch.setitem(RUNTIMES, "onnxruntime", found.with_threads)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return found


class Net(nn.Module):
    """Its width is an argument."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 2)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.b(self.a(image).relu()).relu().mean((2, 3)))
        return scores


def by_hand(width: int, pixels: int, batch: int) -> tuple[int, int, float]:
    """Multiply-adds and parameters of a Net, and the seconds that the runtime takes for it."""
    weights = 9 * 3 * width + 9 * width * width
    macs = batch * (weights * pixels + 2 * width)
    return macs, weights + 2 * width + 2 * width + 2, OVERHEAD + 1e-6 * (weights + 2 * width)


def test_a_dense_model_is_timed_beside_what_keep_makes_of_it(clocked: Watched, capsys: Any) -> None:
    given = ("--runtime", "onnxruntime", "--threads", "3", "--batch", "5", "--output", "b.json")
    assert main(["bench", f"{HERE}:Net", *EXAMPLE, "--keep", "0.5", *given]) == 0
    text = capsys.readouterr().out
    (dense, x), (small, same) = clocked.given
    assert (dense.a.out_channels, small.a.out_channels, small.b.in_channels) == (8, 4, 4)
    assert x.shape == (5, *IMAGE) and same is x and clocked.threads == 3
    (macs, params, slow), (fewer, less, fast) = (by_hand(width, 16, 5) for width in (8, 4))
    found = json.loads(Path("b.json").read_text())
    assert (found["runtime"], found["threads"], found["batch"]) == ("Clocked", 3, 5)
    assert found["found"]["dense_size"] == {"macs": macs, "params": params}
    assert found["found"]["small_size"] == {"macs": fewer, "params": less}
    assert found["found"]["dense"]["median_s"] == pytest.approx(slow)
    assert found["found"]["small"]["median_s"] == pytest.approx(fast)
    assert found["found"]["faster"]["median"] == pytest.approx(slow / fast)
    limit, reached = macs / fewer, slow / fast
    assert f"{reached:.2f} times as fast ({reached:.2f}–{reached:.2f})" in text
    assert f"{limit:.2f} times fewer multiply-adds: {100 * reached / limit:.0f}% of that" in text
    assert f"{macs:,}" in text and f"{less:,}" in text and f"{1000 * slow:#.3g} ms" in text
    assert "5×3×4×4 in Clocked 1, 3 threads" in " ".join(text.split())


def test_widths_are_multiples_if_that_is_asked_for(clocked: Watched) -> None:
    given = ("--keep", "0.3", "--multiple_of", "4", "--runtime", "onnxruntime", "--seconds", "0.1")
    assert main(["bench", f"{HERE}:Net", *EXAMPLE, "--init_args.width", "24", *given]) == 0
    assert [each.a.out_channels for each, _ in clocked.given] == [24, 8]


def test_a_small_file_is_timed_beside_the_model_that_made_it(clocked: Watched, capsys: Any) -> None:
    model = VGG(**SIZES)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, *IMAGE), keep=0.5))
    blended.alpha = 0
    bp.save(bp.collapse(blended), "small.safetensors", "branchprune.models.VGG", SIZES)
    assert main(["bench", "small.safetensors", *EXAMPLE, "--runtime", "onnxruntime"]) == 0
    (dense, x), (small, _) = clocked.given
    found = [
        [m.out_channels for m in each.modules() if isinstance(m, nn.Conv2d)]
        for each in (dense, small)
    ]
    assert found == [[8, 8, 8], [4, 4, 4]] and x.shape == (1, *IMAGE)
    saved = load_file("small.safetensors")
    assert all(torch.equal(each, saved[name]) for name, each in small.state_dict().items())
    assert "times as fast" in capsys.readouterr().out
    assert main(["bench", "small.safetensors", *EXAMPLE, "--keep", "0.5"]) == 2
    assert "keep (=0.5) is what to time a dense model beside" in capsys.readouterr().err


def test_a_dense_model_alone_is_said_to_be(clocked: Watched, capsys: Any) -> None:
    assert main(["bench", f"{HERE}:Net", *EXAMPLE, "--runtime", "onnxruntime"]) == 0
    text = capsys.readouterr().out
    assert len(clocked.given) == 1 and clocked.threads == 99
    assert "it is dense: give --keep 0.5" in text and f"{1000 * by_hand(8, 16, 1)[2]:#.3g}" in text


def test_a_real_runtime_times_both(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    given = ("--runtime", "onnxruntime", "--threads", "1", "--seconds", "0.01")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["bench", f"{HERE}:Net", *EXAMPLE, "--keep", "0.5", *given]) == 0
    text = capsys.readouterr().out
    assert re.search(r"1×3×4×4 in ONNX Runtime \d+\.\d+\.\d+, 1", text)
    assert re.search(r"^[\d.]+ times as fast \([\d.]+–[\d.]+\) as the dense model", text, re.M)


def test_without_a_model_options_are_of_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(bench_command, "bench", lambda options, console: asked.append(options))
    assert main(["bench"]) == 0
    assert main("bench --batch 2 --keep 0.5 --repeats 3 --threads 1 --output a".split()) == 0
    default, given = asked
    assert default == bench_command.Options()
    assert (given.batch_size, given.keep, given.repeats, given.threads) == (2, 0.5, 3, 1)
    assert (given.image_size, given.output, given.record) == (32, Path("a"), False)


class Refused(nn.Module):
    """Computes what ONNX has nothing for."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.a(image))


NET = [f"{HERE}:Net", *EXAMPLE]
BAD = {
    "runtime": ([*NET, "--runtime", "tflite"], "runtime (='tflite') must be one of pytorch, onnx"),
    "threads": ([*NET, "--threads", "0"], "threads (=0) must be a whole number of at least 1"),
    "threads 1.5": ([*NET, "--threads", "1.5"], "threads"),
    "batch": ([*NET, "--batch", "-1"], "batch (=-1) must be a whole number of at least 1"),
    "seconds": ([*NET, "--seconds", "0"], "seconds (=0.0) must be positive"),
    "keep": ([*NET, "--keep", "1.5"], "keep (=1.5)"),
    "multiple": ([*NET, "--multiple_of", "8"], "multiple_of (=8) belongs to keep"),
    "example": ([f"{HERE}:Net"], "example is missing"),
    "operator": (
        [f"{HERE}:Refused", *EXAMPLE, "--runtime", "onnxruntime"],
        "Refused cannot be exported to ONNX: ONNX has nothing for the operator prims.bessel_j0",
    ),
    "of VGG": ([*NET, "--repeats", "3"], "repeats (=3) belongs to bench without MODEL"),
    "recorded": ([*NET, "--record"], "record (=True) belongs to bench without MODEL"),
    "no model": (["--runtime", "onnxruntime"], "runtime (='onnxruntime') belongs to a model"),
    "output": ([*NET, "--output", "file/b.json"], "file"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("file").write_text("a file")
    args, message = BAD[case]
    assert main(["bench", *args]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("branchprune: error: ") and message in line


def test_a_package_that_is_missing_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["bench", *NET, "--runtime", "onnxruntime"]) == 2
    assert "pip install 'branchprune[onnx]'" in capsys.readouterr().err
