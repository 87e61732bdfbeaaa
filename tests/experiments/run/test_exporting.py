"""Runs that write both models for a runtime: files, their scores and times, and what fails."""

import json

import onnxruntime
import pytest
import torch
import yaml
from observed_runs import CONFIG
from small_training import TinyVGG, loader
from torch.nn.functional import cross_entropy

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run import exporting
from branchprune.experiments.run.configuration_digest import digest
from branchprune.experiments.run.folder import check_folder

PRUNED = "prune: {widths: {keep: 0.5}, cut: {}}\n"


@pytest.fixture
def go(tmp_path):
    def run(text, *options, status=0):
        (tmp_path / "config.yaml").write_text(CONFIG + PRUNED + text)
        arguments = [str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]
        assert main(["run", *arguments, *options]) == status
        if not status:
            check_folder(tmp_path / "run", overwrite=True)  # nothing in it is foreign to runs
        return tmp_path / "run"

    return run


def loss(file):
    """Return the cross-entropy of a file on the test images, read by its own runtime."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    losses = [
        cross_entropy(torch.as_tensor(session.run(None, {name: x.numpy()})[0]), y, reduction="none")
        for x, y in loader()
    ]
    return float(torch.cat(losses).mean())


@pytest.mark.usefixtures("without_charts", "without_rehearsal")
def test_both_models_are_written_in_float32_and_8_bits_judged_and_timed(go, capsys):
    folder = go("export: {format: onnx, quantize: 8, samples: 20}\n")
    result = json.loads((folder / "result.json").read_text())
    found = result["export"]
    assert found["runtime"] == f"ONNX Runtime {onnxruntime.__version__}" and found["threads"] == 1
    names = [(file["model"], file["bits"], file["file"]) for file in found["files"]]
    assert names == [
        ("dense", 32, "dense.onnx"),
        ("dense", 8, "dense_8_bits.onnx"),
        ("small", 32, "small.onnx"),
        ("small", 8, "small_8_bits.onnx"),
    ]
    for file in found["files"]:
        path = folder / "export" / file["file"]
        assert file["bytes"] == path.stat().st_size and file["latency"]["median_s"] > 0
        assert file["test"] == pytest.approx(loss(path), rel=1e-5)
        assert file["parity"] < 1e-5
    wide, _, small, rounded = found["files"]
    assert small["bytes"] < wide["bytes"] and rounded["rounded"] == rounded["products"]
    assert rounded["agreement"]["images"] > 0
    for model, file in (("dense", wide), ("small", small)):
        assert file["test"] == pytest.approx(result["scores"][model]["test"], rel=1e-5)
    model = bp.load(TinyVGG(), folder / "small.safetensors").eval()
    session = onnxruntime.InferenceSession(folder / "export" / "small.onnx")
    x, _ = next(iter(loader()))
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.as_tensor(output), model(x), atol=1e-5)
    (line,) = (folder.parent / "results" / "tiny.jsonl").read_text().splitlines()
    assert json.loads(line)["export"]["files"][3]["file"] == "small_8_bits.onnx"
    said = capsys.readouterr().out
    assert "small, INT8" in said and "In ONNX Runtime" in said
    page = (folder / "report.html").read_text()
    assert "In ONNX Runtime" in page and '<th scope="col">dense, INT8</th>' in page


@pytest.mark.usefixtures("without_charts", "without_rehearsal")
def test_a_file_that_cannot_be_written_costs_no_result(go, monkeypatch):
    real = exporting.export

    def failing(model, *given, **named):
        if named.get("quantize"):
            raise bp.PruneError("quantize (=8): no")
        return real(model, *given, **named)

    monkeypatch.setattr(exporting, "export", failing)
    folder = go("export: {format: onnx, quantize: 8}\n")
    files = json.loads((folder / "result.json").read_text())["export"]["files"]
    assert [file.get("failed") for file in files] == [None, "quantize (=8): no"] * 2
    page = (folder / "report.html").read_text()
    assert "No file of small, INT8:</span> quantize (=8): no" in page


@pytest.mark.usefixtures("without_charts")
def test_what_no_format_holds_is_found_before_training(go, capsys, monkeypatch):
    def failing(*given, **named):
        raise bp.PruneError("ONNX has nothing for the operator aten.cdist")

    monkeypatch.setattr(exporting, "export", failing)
    folder = go("export: {format: onnx}\n", status=2)
    [line] = capsys.readouterr().err.splitlines()
    assert "aten.cdist" in line
    assert not folder.exists()


BAD = {
    "format": ("{format: onx}", "format (='onx') must be one of onnx"),
    "bits": ("{quantize: 4}", "quantize (=4) must be 8 or 16"),
    "bits of torch": ("{format: torch-export, quantize: 8}", "quantize (=8) is for format 'onnx'"),
    "samples": ("{samples: 0}", "export.samples (=0) must be a whole number"),
    "threads": ("{threads: 0}", "export.threads (=0) must be a whole number"),
    "max_drop": ("{max_drop: -1}", "export.max_drop (=-1"),
    "key": ("{quantise: 8}", "quantise"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named_before_anything_is_written(case, go, capsys):
    text, message = BAD[case]
    folder = go(f"export: {text}\n", status=2)
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and not folder.exists()


def test_a_run_without_files_is_the_one_that_it_was():
    before = {"name": "a", "seed": 1}
    now = before | {"export": None}
    assert digest(yaml.safe_dump(before)) == digest(yaml.safe_dump(now))
    other = before | {"export": {"format": "onnx"}}
    assert digest(yaml.safe_dump(before)) != digest(yaml.safe_dump(other))


@pytest.mark.usefixtures("without_charts", "without_rehearsal")
def test_a_file_that_cannot_be_judged_costs_no_result(go, monkeypatch):
    def failing(self, images):
        raise RuntimeError("no\nroom")

    monkeypatch.setattr(exporting.InRuntime, "forward", failing)
    folder = go("export: {format: onnx}\n")
    files = json.loads((folder / "result.json").read_text())["export"]["files"]
    assert [file["failed"].partition(" (")[0] for file in files] == ["RuntimeError: no room"] * 2
    assert "RuntimeError: no room" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("without_charts")
def test_what_cannot_judge_a_file_is_found_before_training(go, capsys, monkeypatch):
    def failing(self, images):
        raise RuntimeError("no room")

    monkeypatch.setattr(exporting.InRuntime, "forward", failing)
    folder = go("export: {format: onnx}\n", status=2)
    [line] = capsys.readouterr().err.splitlines()
    assert "RuntimeError: no room" in line and not folder.exists()
