"""Results and folders of an earlier configuration: told, and made anew; others stay."""

import json
from pathlib import Path

import pytest
import yaml
from test_compare import RUNS, World, table, world  # noqa: F401
from tiny_run import TINY

from branchprune.cli import main
from branchprune.experiments.compare import stale
from branchprune.experiments.files import read_lines
from branchprune.experiments.run.config import stored_text
from branchprune.experiments.run.configuration_digest import OF_DENSE, digest, settings_of


@pytest.fixture
def configured(world, monkeypatch):  # noqa: F811
    """A world whose program writes what it was configured to do, as runs do."""

    def text(arguments):
        given = yaml.safe_load(Path("base.yaml").read_text())
        named = {
            arguments[i][2:]: arguments[i + 1]
            for i in range(1, len(arguments) - 1)
            if arguments[i].startswith("--") and arguments[i] != "--variant"
        }
        return yaml.safe_dump(given | {"seed": named["seed"], "output": named["output"]})

    monkeypatch.setattr(stale, "stored_text", text)

    def finish():
        """Give each new line and folder the configuration that a run would have stored."""
        path = Path("kept/r.jsonl")
        lines = read_lines(path)
        made = [args for name, args, _ in world.rows() if name != "dense"]
        for line, args in zip(lines[-len(made) :], made, strict=True):
            line["configuration"] = digest(text(args))
        for name, args, _ in world.rows():
            (Path("runs/compare/small") / name / "config.yaml").write_text(text(args))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        Path("log").unlink()

    world.finish = finish
    return world


def test_lines_of_another_configuration_are_told_and_made_anew(configured, capsys):
    Path("base.yaml").write_text("{prune: {keep: 0.5}}")
    assert configured.go() == 0
    configured.finish()
    assert configured.go() == 0 and configured.names() == []
    Path("base.yaml").write_text("{prune: {keep: 0.25}}")
    capsys.readouterr()
    assert configured.go("--table") == 0
    assert f"{RUNS[0]}: its line is of another configuration" in (out := capsys.readouterr().out)
    assert "it is left out" in out and "no results in" in out
    assert configured.go() == 0
    out = capsys.readouterr().out
    assert configured.names() == RUNS  # and not the dense training, which is the same
    assert all(args[-2:] == ["--overwrite", "true"] for _, args, _ in configured.rows())
    assert "(prune.keep was 0.5, today 0.25)" in out and "begins anew" in out


def test_a_dense_model_of_another_configuration_is_trained_anew(configured, capsys):
    Path("base.yaml").write_text("{dense: {epochs: 5}}")
    assert configured.go() == 0
    configured.finish()
    Path("base.yaml").write_text("{dense: {epochs: 6}}")
    assert configured.go() == 0
    assert configured.names() == ["dense", *RUNS]
    assert configured.args("dense")[-2:] == ["--overwrite", "true"]
    assert "(dense.epochs was 5, today 6)" in capsys.readouterr().out


def test_a_dense_training_goes_on_whatever_is_pruned_afterwards(configured):
    Path("base.yaml").write_text("{prune: {keep: 0.5}}")
    assert configured.go() == 0
    configured.finish()
    Path("runs/compare/small/dense/dense.safetensors").unlink()  # as if it had been broken off
    Path("base.yaml").write_text("{prune: {keep: 0.25}}")
    assert configured.go() == 0
    assert configured.args("dense")[-1] == "--resume"


def test_lines_that_do_not_say_their_configuration_stay(configured, capsys):
    assert configured.go() == 0
    Path("log").unlink()
    Path("base.yaml").write_text("{prune: {keep: 0.25}}")
    assert configured.go() == 0 and configured.names() == []
    out = capsys.readouterr().out
    assert "the configuration of 7 lines is unknown" in out and "ours" in table(out)


def test_a_run_stores_what_a_comparison_expects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    arguments = ["tiny.yaml", "--seed", "3", "--prune.cost.epochs", "2"]
    assert main(["run", *arguments, "--output", "out", "--resume"]) == 0
    [line] = read_lines(Path("results/tiny.jsonl"))
    elsewhere = stored_text([*arguments, "--output", "x", "--results", "y", "--accelerator", "cpu"])
    assert line["configuration"] == digest(elsewhere) == digest(Path("out/config.yaml").read_text())
    for changed in (["--seed", "4"], ["--prune.widths.keep", "0.25"]):
        other = stored_text([*arguments, *changed, "--output", "out"])
        assert digest(other) != line["configuration"]
    pruned_otherwise = stored_text([*arguments, "--prune.widths.keep", "0.25", "--output", "out"])
    assert settings_of(pruned_otherwise, OF_DENSE) == settings_of(elsewhere, OF_DENSE)
