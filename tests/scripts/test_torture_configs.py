"""Configurations with a mistake are refused in one line, before anything is trained."""

import importlib
import sys
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
torture = importlib.import_module("torture_configs")
sys.path.pop()

CUT = {**yaml.safe_load(torture.COMMON), "prune": yaml.safe_load(torture.PRUNE[1])}
TEXT = yaml.safe_dump(CUT)
MISTAKES = {
    "dense: {epochs: -1}": "dense.epochs (=-1)",
    "dense: {epochs: 1, epochs: 2}": "the key 'epochs' is there twice (line 2)",
    "name: &a [*a]": "an alias stands for itself (line 2)",
    "x: " + "[" * 1000: "nested too deeply",
    torture.BOMB: "the aliases stand for more than 100,000 values (line 17)",
    "precision: 64-true": "precision (='64-true') must be one of 32-true, 16-mixed, bf16-mixed",
    "precision: transformer-engine": "precision (='transformer-engine') must be one of",
    "seed: 2020-13-45": "seed (='2020-13-45') must be a whole number",
    "model: {class_path: branchprune.models.VGG, init_args: {stages: [[-4]]}}": "cannot be made",
    "prune: {widths: {keep: {features.1: 0.5}}}": "keep names 'features.1', which makes no chann",
    "prune: {widths: {multiple_of: 64}}": "multiple_of (=64) is more than the width of every",
    "metric: {test: nothing}": "metric (='nothing') is not logged; the task logs loss/test, ",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_told(text, tmp_path):
    (tmp_path / "base.yaml").write_text(TEXT)
    found = torture.outcome(torture.Mutant("", f"base: base.yaml\n{text}".encode()), tmp_path)
    assert (found.end, MISTAKES[text] in found.said) == ("refused", True), found


def test_equal_seeds_give_equal_mutants_of_every_kind():
    some, same, others = ([*torture.mutants(80, seed)] for seed in (0, 0, 1))
    assert some == same and some != others
    said = " ".join(mutant.what for mutant in some)
    assert all(word in said for word in ("= nan", "without", " as ", " in ", " for ", "cut off"))


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("1 / 0", "traceback"),
        ("__import__('os').kill(__import__('os').getpid(), 27)", "traceback"),
        ("print('branchprune: error: no', file=__import__('sys').stderr) or 2", "refused"),
        ("__import__('os').mkdir('run') or 2", "traceback"),
        ("0", "ran"),
    ],
)
def test_what_became_of_a_run_is_seen(command, end, tmp_path, monkeypatch):
    monkeypatch.setattr("branchprune.cli.main", lambda _: eval(command))
    assert torture.outcome(torture.Mutant("", b""), tmp_path).end == end
