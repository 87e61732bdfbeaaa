"""The table of exported networks: what its script measures of one."""

import importlib
import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def exports(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("exports")


def test_dense_and_small_are_written_in_float32_and_in_8_bits(exports, tmp_path):
    output = tmp_path / "found.json"
    given = ["--networks", '["digits CNN"]', "--formats", "[onnx, torch-export]"]
    assert exports.main([*given, "--images=8", "--seconds=0", "--output", str(output)]) == 0
    onnx, program = json.loads(output.read_text())["rows"]
    assert onnx.keys() > {"commit", "hardware", "torch"} and 0.2 < onnx["macs"] < 0.3
    every = ["dense", "dense_int8", "small", "small_int8"]
    assert not onnx["failed"] and sorted(onnx["ms"]) == sorted(onnx["bytes"]) == every
    assert max(onnx["parity"].values()) < 1e-5
    size, wide = onnx["bytes"], 4 * 261_000
    assert 0.9 * wide < size["dense"] < 1.1 * wide and size["small"] < 0.3 * size["dense"]
    assert size["dense_int8"] < 0.3 * size["dense"] and size["small_int8"] < 0.4 * size["small"]
    assert all(0 < error < 0.1 for error in onnx["error"].values())
    assert sorted(program["ms"]) == ["dense", "small"] and not program["error"]


def test_what_cannot_be_written_says_why(exports, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise exports.bp.PruneError(f"{tmp_path} is full")

    monkeypatch.setattr(exports.bp, "export", refuse)
    row, [layer] = exports.Row("a net", "onnx", 1.0), [exports.nn.Linear(1, 1)]
    networks = {"dense": layer}
    exports.measure(row, networks, exports.torch.zeros(2, 1), tmp_path, exports.Options())
    assert row.failed.keys() == {"dense", "dense_int8"} and not row.ms
