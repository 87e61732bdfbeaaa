"""What `scripts/yolo.py` reads, trains in which order, and writes; training itself is left out."""

import importlib
import json
from pathlib import Path

import pytest
import small_yolo  # noqa: F401  before ultralytics

ROOT = Path(__file__).parents[2]
FILE = str(ROOT / "configs" / "yolo.yaml")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("yolo")


def test_the_configuration_says_what_the_script_does_by_itself(script):
    assert script.parse_options([FILE]) == script.parse_options([]) == script.Options()


def test_variants_and_options_override_it(script):
    found = script.parse_options([FILE, "--variant", "quick", "--images", "7"])
    assert (found.images, found.epochs, found.keep) == (7, 4, 0.5)
    assert (found.epochs_of("cut"), found.epochs_of("dense")) == (6, 4)


def test_a_wrong_file_is_told(script, tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("imagse: 7\n")
    for args, told in [((FILE, "--variant", "cpu"), "known are quick"), ((wrong,), "imagse")]:
        with pytest.raises(SystemExit):
            script.parse_options([*map(str, args)])
        assert told in capsys.readouterr().err


def test_all_ways_train_as_long_from_the_dense_model(script, monkeypatch, tmp_path):
    made = []

    class Fake:
        def __init__(self, model):
            self.model = str(model)

        def train(self, **options):
            made.append((self.model, options["epochs"], options["trainer"], options["name"]))

    found = {"map50": 0.5, "map50_95": 0.25, "params": 1, "macs": 2, "onnx_difference": 1e-7}
    found |= {"latency_s": {}, "speed_up": {"median": 1.5}}
    monkeypatch.setattr(script, "YOLO", Fake)
    monkeypatch.setattr(script, "measured", lambda *_: found)
    monkeypatch.setattr(script.environment, "recorded", lambda name: tmp_path / name)
    folder = ["--folder", str(tmp_path / "runs")]
    assert script.main([FILE, "--variant", "quick", "--images=1", "--record", *folder]) == 0
    dense = str(tmp_path / "runs" / "dense" / "weights" / "best.pt")
    assert [(m, n) for m, n, *_ in made] == [("yolov8n.yaml", 4), *[(dense, 6)] * 3]
    assert [trainer is None for *_, trainer, _ in made] == [True, True, False, False]
    assert len({name for *_, name in made}) == 4
    alphas = [[*trainer.schedule] for *_, trainer, _ in made[2:]]
    assert alphas == [pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0]), [0.0] * 6]
    lines = [json.loads(line) for line in (tmp_path / "yolo.jsonl").read_text().splitlines()]
    assert [line["epochs"] for line in lines] == [4, 6, 6, 6]
    assert len({line["configuration"] for line in lines}) == 1
    check_table(script, lines)


def check_table(script, lines):
    """Lines of another configuration are left out, of the others the last of a method counts."""
    older = [{**line, "map50": 0.1} for line in lines]
    other = [{**line, "map50": 0.2, "configuration": "other"} for line in lines]
    text = script.table([*other, *older, *lines[::-1]])
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| ")][2:]
    assert [row[0].strip("| ") for row in rows] == [*script.METHODS]
    assert [row[2] for row in rows] == ["0.500"] * 4
    assert [row[6] for row in rows] == ["–", "–", "1.50", "1.50"]
