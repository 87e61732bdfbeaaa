"""configs/methods.yaml: each method runs, in small, and makes a model of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from shipped import CONFIGS

from branchprune.cli import main
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.run.config import parse
from branchprune.experiments.search.config import read as read_search

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

FILE = CONFIGS / "methods.yaml"
METHODS = compare_config.read(FILE, ["digits"]).methods
DIGITS = [str(FILE), "--variant", "digits", "--fast", "true", "--data.init_args.batch_size", "32"]
DIGITS += ["--model.init_args.depth", "8"]
TARGETED = ("for_a_target", "learned_ranking", "fastnas", "over_all", "isomorphic")
LIKE_OTHERS = ("rewound", "blocks and widths for a target")
"""What makes the same of a dense model of one epoch, whose only block is needed, as others do."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model, of two batches."""
    folder: Path = tmp_path_factory.mktemp("methods")
    assert main(["dense", *DIGITS, "--output", str(folder / "dense")]) == 0
    return folder / "dense" / "dense.safetensors"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The method that made a model of some weights."""
    return {}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_digits(
    name: str, dense: Path, made: dict[str, str], tmp_path: Path
) -> None:
    rows = [part for row in METHODS[name].rows for part in ("--variant", row)]
    options = ["--dense.epochs", "0", "--dense.checkpoint", str(dense)]
    options += ["--prune.rounds.max_drop", "1"] if name.startswith("rounds") else []
    targeted = METHODS[name].rows[0] in TARGETED
    options += ["--prune.criterion.calibration", "1"] if targeted else []
    assert main(["run", *DIGITS, *rows, *options, "--output", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    cost, part = result["cost"], 0.8 if "rounds" in name else 0.25  # of a dry run two rounds
    assert cost["small"]["params"] < part * cost["dense"]["params"]
    state = load_file(tmp_path / "run" / "small.safetensors")
    digest = hashlib.sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state)))
    if name not in LIKE_OTHERS:
        assert made.setdefault(digest.hexdigest(), name) == name  # no two methods are one
    prune = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["prune"]
    assert (prune["finetune"] is None) == (prune["blend"] is not None)


def test_what_does_not_train_is_not_fine_tuned() -> None:
    untrained = parse([str(FILE), "--variant", "taylor", "--variant", "untrained", "--output", "x"])
    assert untrained.prune.finetune is None


def test_a_search_chooses_among_methods() -> None:
    search, _ = read_search([str(FILE), "--output", "unused"])
    assert {*search.space["variant"].examples} <= {
        row for method in METHODS.values() for row in method.rows
    }
