"""Files in 8 bits and with weights of 16: what is rounded, by how much, and what stays float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import branchprune as bp
from branchprune.runtimes.captured import captured
from branchprune.runtimes.executorch_int8 import ExecuTorchInt8, rounded_products
from branchprune.runtimes.openvino import OpenVino

IMAGES = torch.randn(560, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 + 0.5


class Mixed(nn.Module):
    """Every kind of layer that has weights: plain, depthwise, transposed, fully connected."""

    def __init__(self, loud: float = 1.0) -> None:
        super().__init__()
        self.plain, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():  # a channel in which what others say is lost, with a scale for all
            self.depthwise.weight[0] *= loud

    def forward(self, image: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.plain(image)).relu()).relu()
        scores: Tensor = self.head(self.up(x).relu().mean((2, 3)))
        return scores


def made(loud: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = Mixed(loud)
    model(IMAGES)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return made()


@pytest.fixture(scope="module")
def written(model: nn.Module, tmp_path_factory: Any) -> dict[str, bp.Exported]:
    folder = tmp_path_factory.mktemp("rounded")
    return {
        name: bp.export(model, IMAGES[:1], folder / name, quantize=8, calibration=IMAGES)
        for name in ("int8.onnx", "int8.xml", "int8.pte")
    } | {
        name: bp.export(model, IMAGES[:1], folder / name, quantize=16, made_by="mine:Net")
        for name in ("half.onnx", "half.xml")
    }


def run(file: Path, x: Tensor) -> Tensor:
    """Run a file in its runtime, as its own documentation says."""
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return torch.as_tensor(session.run(None, {"image": x.numpy()})[0])
    if file.suffix == ".pte":
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(file).load_method("forward")
        assert method is not None
        return torch.cat([method.execute([part])[0] for part in x.split(64)])
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(file, "CPU", exact)({"image": x.numpy()})
    return torch.as_tensor(found[0])


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", ["int8.onnx", "int8.xml", "int8.pte"])
def test_outputs_in_8_bits_are_near_those_of_the_model_at_any_batch(
    name: str, written: dict[str, bp.Exported], model: nn.Module
) -> None:
    x = torch.randn(200, 3, 8, 8) * 2 + 0.5
    with torch.no_grad():
        wanted = model(x)
    found = run(written[name].path, x)
    assert 1e-4 < distance(found, wanted) < 0.04
    assert torch.allclose(run(written[name].path, x[:3]), found[:3], atol=1e-5)


def test_a_file_that_is_right_at_once_is_neither_written_nor_made_again(
    tmp_path: Path, model: nn.Module, monkeypatch: Any
) -> None:
    contents, graphs, write, convert = [], [], Path.write_bytes, torch.onnx.export

    def made(*given: Any, **named: Any) -> Any:
        graphs.append(given)
        return convert(*given, **named)

    def counted(path: Path, content: Any) -> int:
        contents.append(content)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", counted)
    monkeypatch.setattr(torch.onnx, "export", made)
    bp.export(model, IMAGES[:1], tmp_path / "a.onnx", quantize=8, calibration=IMAGES)
    float32, int8 = contents
    assert (tmp_path / "a.onnx").read_bytes() == int8 != float32
    assert len(graphs) == 1


def test_weights_of_a_program_in_8_bits_take_a_byte_each(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3)).eval()
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    wide = bp.export(model, IMAGES[:1], tmp_path / "a.pte")
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES[:40]}
    small = bp.export(model, IMAGES[:1], tmp_path / "b.pte", **given)
    assert 4 * weights < wide.bytes and weights < small.bytes < 1.2 * weights
    judged = small.quantized
    assert judged is not None and (judged.rounded, judged.products) == (2, 2)


def test_layers_of_a_program_stay_float32_one_by_one(model: nn.Module) -> None:
    program = captured(model, IMAGES[:1], "dynamic", "ExecuTorch")
    int8 = ExecuTorchInt8(program, IMAGES[:1], IMAGES[:20], "dynamic")
    assert [*int8.nodes] == ["plain", "depthwise", "up", "head"]
    with torch.no_grad():
        wanted, x = model(IMAGES[:50]), IMAGES[:50]
        some, one, none = (
            distance(made.module()(x), wanted)
            for made in (
                int8.rounded(but=["plain", "up"]),
                int8.rounded(only="head"),
                int8.rounded(but=[*int8.nodes]),
            )
        )
    assert rounded_products(int8.rounded(but=["plain", "up"])) == (2, 4)
    assert rounded_products(int8.rounded(only="head")) == (1, 4)
    assert none < 1e-5 < 1e-4 < min(one, some)


def test_layers_of_a_program_that_are_called_twice_stay_float32(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3), nn.Linear(3, 4)

        def forward(self, image: Tensor) -> Tensor:
            scores: Tensor = self.head(self.conv(self.conv(image).relu()).mean((2, 3)))
            return scores

    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES[:40]}
    judged = bp.export(Twice().eval(), IMAGES[:1], tmp_path / "a.pte", **given).quantized
    assert judged is not None and (judged.rounded, judged.products) == (1, 3)
    assert judged.judged.error < 0.05


def test_runtimes_agree_on_a_file_in_8_bits(written: dict[str, bp.Exported]) -> None:
    found = [run(written[name].path, IMAGES[:64]) for name in ("int8.onnx", "int8.xml")]
    assert distance(*found) < 0.01


def test_all_layers_read_whole_numbers_and_have_a_scale_for_each_channel(
    written: dict[str, bp.Exported],
) -> None:
    graph = onnx.load(written["int8.onnx"].path).graph
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    linear = [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert Counter(node.op_type for node in linear) == {"Conv": 2, "ConvTranspose": 1, "Gemm": 1}
    scales = {}
    for node in linear:
        activation, weight = (made_by[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert weights[weight.input[0]].dtype == np.int8
        assert weights[activation.input[2]].dtype == np.uint8
        scales[weights[weight.input[0]].shape] = weights[weight.input[1]].size
    assert scales == {(8, 3, 3, 3): 8, (8, 1, 3, 3): 8, (8, 6, 2, 2): 6, (4, 6): 4}
    judged = written["int8.onnx"].quantized
    assert judged is not None and (judged.rounded, judged.products, judged.kept) == (4, 4, [])


def test_a_loud_channel_of_a_depthwise_layer_costs_the_others_nothing(tmp_path: Path) -> None:
    model = made(loud=1000)
    small = bp.export(model, IMAGES[:1], tmp_path / "a.onnx", quantize=8, calibration=IMAGES)
    graph = onnx.load(small.path).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    [whole] = [a for a in arrays.values() if a.dtype == np.int8 and a.shape == (8, 1, 3, 3)]
    assert (np.abs(whole).max((1, 2, 3)) == 127).all()  # with one scale, the others would be 0


def test_the_agreement_is_that_of_images_that_set_no_ranges(
    written: dict[str, bp.Exported], model: nn.Module
) -> None:
    result = written["int8.onnx"]
    judged = result.quantized
    assert judged is not None and judged.calibrated == 256 and judged.judged.images == 304
    session = onnxruntime.InferenceSession(result.path)
    order = torch.randperm(560, generator=torch.Generator().manual_seed(0))
    x = IMAGES[order[256:]]
    found = torch.as_tensor(session.run(None, {"image": x.numpy()})[0])
    with torch.no_grad():
        wanted = model(x)
    same = (found.argmax(1) == wanted.argmax(1)).float().mean()
    errors = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert judged.judged.value == pytest.approx(float(same))
    assert judged.judged.error == pytest.approx(float(errors.mean()), rel=1e-3)
    assert judged.drop == pytest.approx(100 * (1 - float(same)), abs=1e-4)
    text = str(result)
    assert "INT8: 4 of 4 products in whole numbers, ranges from 256 images" in text
    assert "before it was rounded, parity: in ONNX Runtime" in text
    assert result.bytes == sum(file.stat().st_size for file in result.files)


def test_ranges_are_those_of_the_images_that_set_them(tmp_path: Path, model: nn.Module) -> None:
    few = IMAGES[:8].clone()
    result = bp.export(
        model, IMAGES[:1], tmp_path / "a.onnx", quantize=8, calibration=few, samples=3
    )
    assert result.quantized is not None
    assert (result.quantized.calibrated, result.quantized.judged.images) == (3, 5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shown = few[order[:3]]
    graph = onnx.load(result.path).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    scale = (max(0.0, float(shown.max())) - min(0.0, float(shown.min()))) / 255
    assert first.input[0] == "image"
    assert float(arrays[first.input[1]]) == pytest.approx(scale, rel=1e-4)


class Fragile(nn.Module):
    """The difference of two large numbers, which 8 bits do not hold, beside what they do."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.fragile = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.fine(image).relu().mean((2, 3))
        scores: Tensor = self.head(self.fragile(x + 30) - self.fragile(torch.full_like(x, 30.0)))
        return scores


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_only_layers_that_cost_more_than_may_be_lost_stay_float32(
    suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = Fragile().eval()
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES, "overwrite": True}
    path = tmp_path / f"a{suffix}"
    free = bp.export(model, IMAGES[:1], path, **given).quantized
    kept = bp.export(model, IMAGES[:1], path, max_drop=2, **given).quantized
    assert free is not None and kept is not None
    assert free.drop > 2 and not free.kept and free.errors
    assert kept.drop <= 2 and "fragile" in kept.kept and "fine" not in kept.kept
    assert 0 < kept.rounded < kept.products
    first, *others = kept.errors.values()
    assert first >= max(others) and [*kept.errors][: len(kept.kept)] == [*kept.kept]
    with torch.no_grad():
        wanted = model(IMAGES)
    same = (run(path, IMAGES).argmax(1) == wanted.argmax(1)).float().mean()
    assert same > 0.95


def test_a_score_decides_and_is_told(tmp_path: Path, model: nn.Module) -> None:
    seen: list[nn.Module] = []

    def score(module: nn.Module) -> float:
        seen.append(module)
        found: Tensor = module(IMAGES[:5])
        assert found.shape == (5, 4)
        return 50.0 if len(seen) == 1 else 49.75  # the model is the first

    result = bp.export(
        *(model, IMAGES[:1], tmp_path / "a.onnx"),
        **{"quantize": 8, "calibration": IMAGES, "score": score, "max_drop": 0.5},  # type: ignore[arg-type]
    )
    judged = result.quantized
    assert judged is not None and judged.score == (49.75, 50.0) and judged.drop == 0.25
    assert "score: 49.75, and 50 in float32" in str(result)


def test_what_cannot_be_reached_is_refused_and_leaves_nothing(
    tmp_path: Path, model: nn.Module
) -> None:
    scores = iter([100.0, *[0.0] * 99])
    with pytest.raises(bp.PruneError, match=r"max_drop \(=1\): 1e\+02 points are lost even with"):
        bp.export(
            *(model, IMAGES[:1], tmp_path / "a.onnx"),
            **{"quantize": 8, "calibration": IMAGES, "max_drop": 1},  # type: ignore[arg-type]
            score=lambda _: next(scores),
        )
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["a.onnx", "a.pte"])
def test_a_file_of_one_batch_is_rounded_and_judged_at_it(
    name: str, tmp_path: Path, model: nn.Module
) -> None:
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES[:50], "batch": 4}
    result = bp.export(model, IMAGES[:1], tmp_path / name, **given)
    assert result.quantized is not None and result.quantized.judged.images == 25
    with torch.no_grad():
        assert distance(run(result.path, IMAGES[:4]), model(IMAGES[:4])) < 0.1


@pytest.mark.parametrize("name", ["half.onnx", "half.xml"])
def test_weights_in_half_precision_are_those_of_the_model_rounded(
    name: str, written: dict[str, bp.Exported], model: nn.Module
) -> None:
    result = written[name]
    assert result.tolerance == 1e-3 and result.quantized is None
    state = {key: value.half().float() for key, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(IMAGES[:20])
        rounded = made()
        rounded.load_state_dict(state)
        nearer = rounded(IMAGES[:20])
    found = run(result.path, IMAGES[:20])
    assert distance(found, wanted) < 1e-3 and distance(found, nearer) < 1e-3
    assert not torch.allclose(found, wanted, rtol=0, atol=1e-6)


def test_half_precision_halves_the_numbers_in_the_file_and_keeps_its_header(
    written: dict[str, bp.Exported],
) -> None:
    made = onnx.load(written["half.onnx"].path)
    types = Counter(each.data_type for each in made.graph.initializer)
    assert onnx.TensorProto.FLOAT not in types and types[onnx.TensorProto.FLOAT16] >= 8
    header = {each.key: each.value for each in made.metadata_props}
    assert header["made_by"] == "mine:Net" and header["numbers"] == "float16 weights"
    kept = {each.key: each.value for each in onnx.load(written["int8.onnx"].path).metadata_props}
    assert kept["numbers"] == "int8" and kept.keys() >= {"widths", "params", "branchprune"}


class Straight(nn.Module):
    """A product without bias, the output of which goes straight into another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 16, bias=False), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.second(self.first(image.flatten(1)))
        return scores


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_runtime_that_computes_something_else_in_8_bits_is_noticed(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, given = Straight().eval(), {"quantize": 8, "calibration": IMAGES[:40]}
    path = tmp_path / f"a{suffix}"
    real, files = OpenVino.opened, []

    def opened(self: Any, file: Any, what: str, precision: str | None = None) -> Any:
        """Open the first file, of float32, as it is, and others as if they computed the triple."""
        on, times = real(self, file, what, precision), 3.0 if files else 1.0
        files.append(file)
        return lambda x: lambda: [times * y for y in on(x)().values()]

    monkeypatch.setattr(OpenVino, "opened", opened)
    if suffix == ".onnx":
        bp.export(model, IMAGES[:1], path, **given)  # type: ignore[arg-type]
        return
    with pytest.raises(bp.PruneError, match="OpenVINO computes other products of whole numbers"):
        bp.export(model, IMAGES[:1], path, **given)  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"quantize": 4}, r"quantize \(=4\) must be 8 or 16"),
    "truth": ({"quantize": True}, r"quantize \(=True\) must be 8 or 16"),
    "no images": ({"quantize": 8}, r"quantize \(=8\) needs calibration: images"),
    "images for 16": (
        {"quantize": 16, "calibration": IMAGES},
        "calibration is for quantize=8, and quantize is 16",
    ),
    "max_drop alone": ({"max_drop": 1.0}, "max_drop is for quantize=8, and quantize is None"),
    "one image": (
        {"quantize": 8, "calibration": IMAGES[:1]},
        r"calibration: images \(of shape \(1, 3, 8, 8\)\) must be at least two",
    ),
    "other images": (
        {"quantize": 8, "calibration": IMAGES[:, :1]},
        r"calibration \(of shape \(560, 1, 8, 8\)\) must be like the example, \(N, 3, 8, 8\)",
    ),
    "sparse images": (
        {"quantize": 8, "calibration": IMAGES.to_sparse()},
        r"calibration: images \(torch.sparse_coo\) must be dense",
    ),
    "score": (
        {"quantize": 8, "calibration": IMAGES, "score": 76.1},
        r"score \(=76.1\) must take a module",
    ),
    "several scores": (
        {"quantize": 8, "calibration": IMAGES, "score": lambda _: torch.zeros(2)},
        r"score \(=tensor\(\[0., 0.\]\)\) must return a number",
    ),
    "samples": (
        {"quantize": 8, "calibration": IMAGES, "samples": 0},
        r"samples \(=0\) must be a whole number",
    ),
    "max_drop": (
        {"quantize": 8, "calibration": IMAGES, "max_drop": -1},
        r"max_drop \(=-1\) must not be",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str, tmp_path: Path, model: nn.Module) -> None:
    given, message = BAD[case]
    with pytest.raises(bp.PruneError, match=message):
        bp.export(model, IMAGES[:1], tmp_path / "a.onnx", **given)
    assert not [*tmp_path.iterdir()]


def test_formats_without_whole_numbers_say_which_have_them(
    tmp_path: Path, model: nn.Module
) -> None:
    said = r"quantize \(=16\) is for format 'onnx' or 'openvino', and format is '{}'"
    for name, kind in (("a.pt2", "torch-export"), ("a.pte", "executorch")):
        with pytest.raises(bp.PruneError, match=said.format(kind)):
            bp.export(model, IMAGES[:1], tmp_path / name, quantize=16)


def test_models_of_several_inputs_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    with pytest.raises(bp.PruneError, match=r"quantize \(=8\) takes models of one input"):
        given: dict[str, Any] = {"quantize": 8, "calibration": torch.randn(9, 3, 3)}
        bp.export(Two(), (torch.randn(2, 3, 3), torch.randn(2, 3, 3)), tmp_path / "a.onnx", **given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_images_of_any_precision_in_any_form_of_example_are_taken(
    dtype: torch.dtype, tmp_path: Path, model: nn.Module
) -> None:
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES[:40].to(dtype)}
    result = bp.export(model, {"image": IMAGES[:1]}, tmp_path / "a.onnx", **given)
    assert result.quantized is not None and result.quantized.judged.error < 0.04
    given["calibration"] = IMAGES[:40, :, :4]
    with pytest.raises(bp.PruneError, match=r"must be like the example, \(N, 3, 8, 8\)"):
        bp.export(model, (IMAGES[:1],), tmp_path / "b.onnx", **given)


class ByKeyword(nn.Module):
    """Takes its image by a keyword alone, and no other batch than 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, *, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(image).relu().reshape(5, 4, -1).mean(2))
        return scores


@pytest.mark.parametrize(
    ("images", "judged", "name"), [(50, 25, "a.onnx"), (4, 2, "a.onnx"), (4, 2, "a.pte")]
)
def test_a_model_that_takes_one_batch_by_a_keyword_is_judged(
    images: int, judged: int, name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES[:images], "batch": 5}
    result = bp.export(ByKeyword().eval(), {"image": IMAGES[:5]}, tmp_path / name, **given)
    assert result.quantized is not None
    assert result.quantized.judged.images == judged and result.quantized.judged.error < 0.1


class OverBatch(nn.Module):
    """Scores of each image, and what is left of them without the batch."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.conv, self.head, self.make = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), make

    def forward(self, image: Tensor) -> Any:
        return self.make(self.head(self.conv(image).relu().mean((2, 3))))


OVER_BATCH: dict[str, Any] = {
    "a number": lambda y: y.mean(),
    "a number beside": lambda y: (y, y.mean()),
    "a sum": lambda y: y.sum(0),
    "the batch last": lambda y: y.T,
}


@pytest.mark.parametrize("batch", ["dynamic", 5])
@pytest.mark.parametrize("case", OVER_BATCH)
def test_outputs_that_do_not_begin_with_the_batch_are_judged(
    case: str, batch: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = OverBatch(OVER_BATCH[case]).eval()
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES[:20], "batch": batch}
    result = bp.export(model, IMAGES[:2], tmp_path / "a.onnx", **given)
    assert result.quantized is not None and "nan" not in str(result)
    assert result.quantized.judged.kind == "relative error"
    assert result.quantized.judged.images == 10
    with torch.no_grad():
        wanted = model(IMAGES[5:10])
    session = onnxruntime.InferenceSession(result.path)
    found = session.run(None, {"image": IMAGES[5:10].numpy()})
    for each, w in zip(found, wanted if isinstance(wanted, tuple) else [wanted], strict=True):
        assert distance(torch.as_tensor(each), w) < 0.1
    assert result.quantized.judged.error < 0.1


def test_outputs_of_whole_numbers_alone_are_refused_before_anything_is_rounded(
    tmp_path: Path,
) -> None:
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES}
    with pytest.raises(bp.PruneError, match="returns no floats, by which the file could be judged"):
        bp.export(OverBatch(lambda y: y.argmax(1)), IMAGES[:1], tmp_path / "a.onnx", **given)
    assert not [*tmp_path.iterdir()]


def test_nothing_may_be_lost_of_outputs_that_are_no_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OverBatch(lambda y: y[:, :1]).eval()
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES[:40], "max_drop": 0}
    result = bp.export(model, IMAGES[:1], tmp_path / "a.onnx", **given).quantized
    assert result is not None and result.drop == 0 and {*result.kept} >= {"conv", "head"}
    assert result.judged.error < 1e-5


@pytest.mark.parametrize("kind", [torch.tensor, np.float32])
def test_a_score_may_be_a_number_of_any_kind(kind: Any, tmp_path: Path, model: nn.Module) -> None:
    given: dict[str, Any] = {"quantize": 8, "calibration": IMAGES[:8], "score": lambda _: kind(7.5)}
    result = bp.export(model, IMAGES[:1], tmp_path / "a.onnx", **given).quantized
    assert result is not None and result.score == (7.5, 7.5)


def test_numbers_that_half_precision_makes_infinite_are_told_as_such(tmp_path: Path) -> None:
    model = OverBatch(lambda y: y).eval()
    model.make = lambda y: y / model.tiny
    model.register_buffer("tiny", torch.tensor([1e-9]))  # 0 in float16
    with pytest.raises(bp.PruneError, match=r"differ from the model's .*or in what is infinite"):
        bp.export(model, IMAGES[:1], tmp_path / "a.onnx", quantize=16)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx.failed"]
