"""`branchprune search`, with a small program in place of the training."""

import json
import math
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from matplotlib.figure import Figure
from tiny_run import TINY

from branchprune.cli import main
from branchprune.experiments import jobs
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.locks import locked
from branchprune.experiments.run.config import make_parser, stored_text
from branchprune.experiments.search import config, search
from branchprune.reports import search as reports

EPOCHS, DENSE_MACS = 4, 1000
PROGRAM = """
import json, os, signal, sys, time
from math import log10
from pathlib import Path
args = sys.argv[1:]
at = lambda name: args[len(args) - args[::-1].index(name)]
output, world = Path(at("--output")), Path(WORLD)
todo = json.loads((world / "todo.json").read_text()).get(output.name, "ok")
with (world / "log").open("a") as file:
    file.write(json.dumps([output.name, args]) + "\\n")
if todo == "fail":
    print("branchprune: error: something is wrong", file=sys.stderr)
    sys.exit(2)
if todo == "kill all":
    os.kill(os.getppid(), signal.SIGKILL)
if todo in ("kill", "kill all"):
    os.kill(os.getpid(), signal.SIGKILL)
if args[0] == "dense":
    (output / "dense").mkdir(parents=True)
    (output / "dense.safetensors").write_text("weights")
    found = {"record": {"train_macs": MACS, "epochs": 7}, "scores": {"val": 0.8, "test": 0.75}}
    (output / "dense" / "finished.json").write_text(json.dumps(found))
    sys.exit()
score = 0.9 - 0.1 * abs(log10(float(at(RATE))) + 2)
score = {"bad": 0, "good": 0.8}.get(todo, score)
(output / "finetune").mkdir(parents=True, exist_ok=True)
rows = "".join(f"{e},{score * (e + 1) / EPOCHS},{50 * (e + 1)}\\n" for e in range(EPOCHS))
(output / "finetune" / "metrics.csv").write_text("epoch,metric/val_acc,cost/train_macs\\n" + rows)
if todo == "bad":
    time.sleep(60)
keep = float(at("--prune.widths.keep"))
small = {"macs": 2000 * keep**2, "params": 100 * keep}
result = {"scores": {"small": {"val": score, "test": score - 0.1}}}
result |= {"cost": {"dense": {"macs": 2000, "params": 100}, "small": small}}
result |= {"stages": {"finetune": {"train_macs": 200}}}
(output / "result.json").write_text(json.dumps(result))
"""
RATE = "--prune.task.learning_rate"
SPACE = {
    "prune.widths.keep": {"low": 0.2, "high": 0.9},
    "prune.task.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
}


class World:
    """A folder with a configuration, and what the program did there."""

    def __init__(self, path):
        self.path, self.output = path, path / "runs" / "search" / "tiny"
        self.set()

    def set(self, **changes):
        section = {"trials": 4, "startup": 2, "pruner": None, "space": SPACE} | changes
        section = {k: value for k, value in section.items() if value is not None or k == "pruner"}
        content = yaml.safe_load(TINY) | {"search": section}
        (self.path / "my.yaml").write_text(yaml.safe_dump(content))

    def go(self, *options, **todo):
        """Search; `todo` says what trials do, by number, as `t003="fail"`."""
        todo = {name.removeprefix("t"): how for name, how in todo.items()}
        (self.path / "todo.json").write_text(json.dumps(todo))
        return main(["search", "my.yaml", *options])

    def rows(self):
        path = self.path / "log"
        return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []

    def names(self):
        return [row[0] for row in self.rows()]

    def settings(self):
        """What the newest run of each trial was given, by its number: (keep, learning rate)."""
        keys = ("--prune.widths.keep", RATE)
        trials = {name: args for name, args in self.rows() if name != "dense"}
        return {
            name: tuple(float(args[args.index(key) + 1]) for key in keys)
            for name, args in trials.items()
        }

    def table(self, output=None):
        """The cells of search.md by trial."""
        lines = ((output or self.output) / "search.md").read_text().splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        return {row[0]: row[1:] for row in rows}


def score(rate):
    return 0.9 - 0.1 * abs(math.log10(rate) + 2)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PROGRAM.replace("WORLD", repr(str(tmp_path))).replace("RATE", repr(RATE))
    text = text.replace("EPOCHS", str(EPOCHS)).replace("MACS", str(DENSE_MACS))
    (tmp_path / "program.py").write_text(text)
    monkeypatch.setattr(search, "COMMAND", [sys.executable, "-S", str(tmp_path / "program.py")])
    sleep = time.sleep
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    monkeypatch.setattr(reports, "figure", lambda _: Figure())
    return World(tmp_path)


def test_the_best_trial_is_found_by_hand_too(world, capsys):
    world.set(max_macs=0.5)
    assert world.go() == 0
    assert world.names() == ["dense", *(f"{number:03}" for number in range(4))]
    rates = {n: rate for n, (keep, rate) in world.settings().items() if keep**2 <= 0.5}
    assert 0 < len(rates) < 4
    number = max(rates, key=lambda name: score(rates[name]))
    table, said = world.table(), " ".join(capsys.readouterr().out.split())
    for name, (keep, rate) in world.settings().items():
        value = f"{100 * score(rate):.2f}"
        value = f"**{value}**" if name == number else value + " (too large)" * (keep**2 > 0.5)
        assert table[name][2:] == [
            value,
            f"{100 * keep**2:.1f}",
            f"{100 * keep:.1f}",
            "200 (0.20×)",
        ]
    best = score(rates[number])
    told = f"Best: trial {number}, validation {100 * best:.2f}, test {100 * (best - 0.1):.2f}."
    assert told in said and said.count("test ") == 1 + said.count("other test ")
    assert "In all they took 800 (0.80×)" in said
    assert (world.output / "search.png").is_file()
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{world.output}/study.db")
    assert (study.best_trial.number, study.best_value) == (int(number), pytest.approx(best))
    assert world.go() == 0
    assert len(world.names()) == 5


def test_the_command_of_the_best_is_a_run_of_its_settings(world):
    assert world.go("--seed", "3", "--output", "out") == 0
    text = Path("out/search.md").read_text()
    [command] = re.findall(r"^branchprune run .*", text, re.M)
    run = make_parser().parse_args(files_as_options(shlex.split(command)[2:]))
    number = next(n for n, cells in world.table(Path("out")).items() if "**" in cells[2])
    settings = run.prune.widths.keep, run.prune.task["learning_rate"]
    assert settings == pytest.approx(world.settings()[number])
    assert (run.seed, run.dense.epochs, str(run.output)) == (3, 0, "out/best")
    assert run.dense.checkpoint == "out/dense/dense.safetensors"


def test_a_seed_says_what_is_tried(world):
    found = []
    for options in (["--output", "a"], ["--output", "b"], ["--output", "c", "--seed", "1"]):
        assert world.go(*options) == 0
        found.append(world.settings())
    assert found[0] == found[1] and not {*found[0].values()} & {*found[2].values()}
    assert len({*found[0].values()}) == 4


def test_after_a_kill_it_goes_on_as_if_nothing_had_happened(world):
    assert world.go("--output", "whole") == 0
    whole = world.settings()
    (world.path / "log").unlink()
    child = os.fork()
    if not child:
        world.go(t002="kill all")
        os._exit(0)  # it is not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert world.names() == ["dense", "000", "001", "002"]
    before = world.settings()["002"]
    assert world.go() == 0
    assert world.names()[4:] == ["002", "003"]
    assert world.settings() == whole and world.settings()["002"] == before
    assert "--resume" in world.rows()[4][1]
    assert "4 of 4 trials: 4 done" in (world.output / "search.md").read_text()


def test_what_a_killed_search_has_left_running_is_left_alone(world, capsys):
    assert world.go(t001="kill") == 0
    assert "trials/001 FAILED" in (said := capsys.readouterr().out) and "1 are missing" in said
    assert world.table()["001"][2] == "broken off after 0 epochs"
    with locked(world.output / "trials" / "001"):
        assert world.go() == 0
        assert world.names().count("001") == 1
        result = (world.output / "trials" / "000" / "result.json").read_text()
    (world.output / "trials" / "001").mkdir()
    (world.output / "trials" / "001" / "result.json").write_text(result)
    assert world.go() == 0
    assert world.names().count("001") == 1 and "4 done" in (world.output / "search.md").read_text()


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_bad_trial_is_stopped_and_what_it_took_counts(world, pruner, capsys):
    world.set(pruner=pruner, warmup=2)
    begun, others = time.monotonic(), {f"t{number:03}": "good" for number in range(4)}
    assert world.go(**others | {"t002": "bad"}) == 0
    assert time.monotonic() - begun < 50
    assert "trials/002 is stopped" in capsys.readouterr().out
    assert world.table()["002"][2:] == ["stopped after 2 epochs", "–", "–", "200 (0.20×)"]
    text = (world.output / "search.md").read_text()
    assert "3 done, 1 stopped" in text and "200 (0.20×) are of trials that have not" in text
    assert world.go() == 0 and world.names().count("002") == 1


def test_a_trial_that_fails_counts_and_is_not_made_again(world, capsys):
    assert world.go(t000="fail") == 0
    assert "4 trials have ended, 0 are missing" in capsys.readouterr().out
    assert world.table()["000"][2] == "failed after 0 epochs"
    assert world.go() == 0 and len(world.names()) == 5


def test_where_every_trial_fails_no_more_begin(world, capsys):
    assert world.go(t000="fail", t001="fail", t002="fail") == 1
    assert world.names() == ["dense", "000", "001", "002"]
    assert "No trial has ended that is not too large." in capsys.readouterr().out


def test_a_dense_training_that_fails_says_why(world, capsys):
    assert world.go(dense="fail") == 2
    assert world.names() == ["dense"]
    assert "the dense training failed: something is wrong" in flat(capsys.readouterr().err)


def test_there_may_be_more_trials_but_no_other_settings(world, capsys):
    world.set(trials=2)
    assert world.go() == 0
    world.set(trials=4)
    assert world.go("--jobs", "2") == 0
    assert len(world.names()) == 5 and len({*world.settings().values()}) == 4
    world.set(trials=4, startup=3)
    assert world.go() == 2
    assert "search.startup was 2 and is 3; give another --output" in flat(capsys.readouterr().err)
    world.set(trials=4)
    assert world.go("--prune.blend.hold", "2") == 2
    assert "prune.blend.hold was 1 and is 2" in flat(capsys.readouterr().err)


def test_choices_are_given_as_the_command_line_has_them(world):
    space = {
        "prune.blend.levels": {"choices": [[0.0], {"steps": 0.5}]},
        "prune.blend.hold": {"low": 1, "high": 3},
        "variant": {"choices": ["plain", "tuned", "other"]},
    }
    world.set(space=space)
    content = yaml.safe_load((world.path / "my.yaml").read_text())
    tuned = {"prune": {"finetune": {"epochs": 3}}}
    content["variants"] = {"plain": {}, "tuned": tuned, "other": {"seed": 1}}
    (world.path / "my.yaml").write_text(yaml.safe_dump(content))
    found, _ = config.read(["my.yaml"])
    runs = [
        make_parser().parse_args(files_as_options(["my.yaml", *options, "--output", "out"]))
        for options in map(config.options, found.examples())
    ]
    assert [run.prune.blend.levels for run in runs] == [[0.0], {"steps": 0.5}, [0.0]]
    assert [run.prune.blend.hold for run in runs] == [1, 3, 1]
    assert [run.prune.finetune and run.prune.finetune.epochs for run in runs] == [None, 3, None]
    assert [run.seed for run in runs] == [0, 0, 1]


def test_a_run_leaves_the_section_alone(world):
    with_it = stored_text(["my.yaml", "--output", "out"])
    (world.path / "plain.yaml").write_text(TINY)
    assert with_it == stored_text(["plain.yaml", "--output", "out"])


KEEP = {"prune.widths.keep": {"low": 0.2, "high": 0.9}}
WRONG = {
    "unknown key": (
        {"space": {"prune.widths.keeep": KEEP["prune.widths.keep"]}},
        "--prune.widths.keeep is no key; the nearest is prune.widths.keep",
    ),
    "unknown argument": (
        {"space": {"task.init_args.learning_rat": {"low": 0.1, "high": 0.2}}},
        "task.init_args.learning_rat is perhaps task.init_args.learning_rate",
    ),
    "refused": ({"space": {"prune.blend.mixing": {"choices": ["sum", "x"]}}}, "prune.blend.mixing"),
    "refused as a whole": (
        {"space": {"prune.cut": {"choices": ["{}"]}}},
        "search.space, as --prune",
    ),
    "fraction of an epoch": ({"space": {"prune.blend.hold": {"low": 1.5, "high": 2}}}, "1.5"),
    "dense": (
        {"space": {"model.init_args.width": {"low": 1, "high": 2}}},
        "space.model.init_args.width: trials share the dense model, and all but prune, task, data",
    ),
    "order": (
        {"space": {"prune.widths.keep": {"low": 0.5, "high": 0.5}}},
        "low (=0.5) must be below",
    ),
    "log": (
        {"space": {"prune.widths.keep": {"low": 0, "high": 1, "log": True}}},
        "space.prune.widths.keep: with log, low (=0) must be positive",
    ),
    "NaN": ({"space": {"prune.widths.keep": {"low": math.nan, "high": 1}}}, "low (=nan) must be"),
    "truth": ({"space": {"prune.widths.keep": {"low": False, "high": 1}}}, "low (=False) must be"),
    "text as log": (
        {"space": {"prune.widths.keep": {"low": 1, "high": 2, "log": 1}}},
        "must be {low",
    ),
    "one end": ({"space": {"prune.widths.keep": {"low": 1}}}, "must be {low: …, high: …}"),
    "number": ({"space": {"prune.widths.keep": 1}}, "space.prune.widths.keep (=1) must be"),
    "no choices": (
        {"space": {"prune.blend.mixing": {"choices": []}}},
        "choices (=[]) must be a list",
    ),
    "twice": ({"space": {"prune.blend.mixing": {"choices": ["sum", "sum"]}}}, "has one twice"),
    "variant": ({"space": {"variant": {"choices": ["none"]}}}, "(='none') is no variant"),
    "no space": ({"space": {}}, "search.space (={}) must be a mapping"),
    "space missing": ({"space": None}, "search.space is missing"),
    "no trials": ({"trials": 0}, "search.trials (=0) must be a whole number of at least 1"),
    "truth as trials": ({"trials": True}, "search.trials (=True) must be a whole number"),
    "key": ({"trails": 3}, "search.trails is no key; known are trials, space, max_macs"),
    "pruner": ({"pruner": "best"}, "search.pruner (='best') must be median, halving or null"),
    "macs": ({"max_macs": -1}, "search.max_macs (=-1) must be positive"),
}


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_before_anything_is_trained(case, world, capsys):
    changes, message = WRONG[case]
    world.set(**changes)
    assert world.go() == 2
    assert message in flat(capsys.readouterr().err)
    assert world.names() == [] and not world.output.exists()


def test_other_errors_are_named(world, capsys, monkeypatch):
    cases = {("none.yaml",): "none.yaml", ("plain.yaml",): "plain.yaml: search is missing"}
    (world.path / "plain.yaml").write_text(TINY)
    for files, message in cases.items():
        assert main(["search", *files]) == 2
        assert message in flat(capsys.readouterr().err)
    assert world.go("--jobs", "0") == 2
    assert "jobs (=0) must be a whole number above 0" in flat(capsys.readouterr().err)
    world.output.mkdir(parents=True)
    (world.output / "study.db").write_text("no data base " * 99)
    assert world.go() == 2
    assert "study.db is no study" in flat(capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert world.go() == 2
    assert "search needs optuna (" in (said := flat(capsys.readouterr().err))
    assert said.endswith('pip install "branchprune[search]"')
    assert world.names() == []
