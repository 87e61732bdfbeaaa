"""Layers in ONNX Runtime's profile: their times and multiply-adds are those of the right ones."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import branchprune as bp
from branchprune.models import VGG

SCRIPTS = Path(__file__).parents[2] / "scripts"
KEYS = ("threads", "multiple_of", "batch")
STAGES = [[32, 64], [32]]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("layer_latency")


def event(name, operator, us, cat="Node"):
    return {"cat": cat, "name": name, "dur": us, "args": {"op_name": operator}}


def test_the_least_time_of_each_node_in_the_order_of_runs(script):
    events = [
        event("session", "", 900, "Session"),
        event("a_kernel_time", "Conv", 7),
        event("a_fence_before", "Conv", 1),
        event("pool_kernel_time", "MaxPool", 3),
        event("b_kernel_time", "FusedConv", 5),
        event("a_kernel_time", "Conv", 4),
        event("pool_kernel_time", "MaxPool", 6),
        event("b_kernel_time", "FusedConv", 8),
    ]
    found = script.least_times(events)
    assert [(node.operator, node.us) for node in found] == [
        ("Conv", 4.0),
        ("MaxPool", 3.0),
        ("FusedConv", 5.0),
    ]
    assert [node.has_weights for node in found] == [True, False, True]


def test_what_is_lost_is_beyond_the_rate_of_the_dense_layer(script):
    assert script.Line("a", 80.0, 15.0, 800, 100).lost_us == 15.0 - 80.0 / 8
    assert script.Line("MaxPool", 30.0, 20.0).lost_us == 20.0


def test_layers_are_told_apart_by_their_place(script, monkeypatch):
    """Times that a profiler is said to have found come to the layer that ran at that place."""
    wide = [("c1", "Conv", 100), ("p", "MaxPool", 9), ("c2", "Conv", 50), ("c3", "Conv", 40)]
    narrow = [("r", "ReorderInput", 2), ("x", "Conv", 30), ("p", "MaxPool", 4)]
    narrow += [("y", "FusedConv", 20), ("z", "Conv", 10), ("l", "Gemm", 3)]
    found = {64: [*wide, ("l", "Gemm", 6)], 8: narrow}

    def profile(model, images, folder, threads):
        width = model.features[3].out_channels

        class Stub:
            def run(self, count):
                runs.append((width, count))

            def events(self):
                return [event(f"{name}_kernel_time", op, us) for name, op, us in found[width]]

        return Stub()

    runs = []
    monkeypatch.setattr(script, "Profiled", profile)
    models = VGG(STAGES).eval(), VGG([[4, 8], [4]]).eval()
    images = torch.randn(2, 3, 8, 8)
    lines = {each.what: each for each in script.layers(*models, images, 3, 50)}
    names = ["features.0", "features.3", "features.7", "classifier"]
    assert [*lines] == [*names, "MaxPool", "ReorderInput"]
    assert [(lines[n].dense_us, lines[n].small_us) for n in names] == [
        *[(100, 30), (50, 20)],
        *[(40, 10), (6, 3)],
    ]
    assert (lines["MaxPool"].dense_us, lines["ReorderInput"].small_us) == (9, 2)
    assert lines["ReorderInput"].dense_us == 0
    pixels = {"features.0": 64, "features.3": 64, "features.7": 16}
    for name, (ins, outs) in {"features.0": (3, 32), "features.3": (32, 64)}.items():
        assert lines[name].dense_macs == 2 * 9 * ins * outs * pixels[name]
    assert lines["features.7"].small_macs == 2 * 9 * 8 * 4 * 16
    assert lines["classifier"].small_macs == 2 * 4 * 10
    assert runs == [(64, 10), (8, 10), (8, 10), (64, 10)] * 2 + [(64, 10), (8, 10)]
    found[8] = narrow[:-1]
    with pytest.raises(bp.PruneError, match=r"4 layers, and nodes of \[4, 3\]"):
        script.layers(*models, images, 3, 50)


def test_a_small_network_in_the_runtime_itself(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "VGG", lambda: VGG(STAGES))
    path = tmp_path / "layers.json"
    cells = "--threads [1] --multiples [16] --batches [2]".split()
    given = "--keep 0.5 --image_size 8 --runs 5 --seconds 0.01".split()
    assert script.main([*cells, *given, "--output", str(path)]) == 0
    result = json.loads(path.read_text())
    [row] = result["rows"]
    assert row["widths"] == [16, 32, 16] and (row["multiple_of"], row["batch"], row["threads"]) == (
        16,
        2,
        1,
    )
    layers = row["layers"][:4]
    by_hand = [9 * 3 * 16 * 64, 9 * 16 * 32 * 64, 9 * 32 * 16 * 16, 16 * 10]
    assert [each["small_macs"] for each in layers] == [2 * macs for macs in by_hand]
    assert all(each["small_us"] > 0 for each in layers)
    dense = [9 * 3 * 32 * 64, 9 * 32 * 64 * 64, 9 * 64 * 32 * 16, 32 * 10]
    assert row["fewer"] == pytest.approx(sum(dense) / sum(by_hand))
    assert row["of_limit"] == pytest.approx(row["faster"][1] / row["fewer"])
    text = importlib.import_module("target_tables").layer_latency_table(result)
    assert f"| multiples of 16 | 1 | 2 | {row['dense_ms']:.2f} ms" in text
    assert "| features.3 |" in text and f"| {9 * 32 * 64 / (9 * 16 * 32):.2f} |" in text
