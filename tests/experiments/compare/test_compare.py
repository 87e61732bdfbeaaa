"""`branchprune compare`, with a small program in place of the training."""

import csv
import json
import re
import shlex
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy.stats import ttest_1samp

from branchprune.cli import main
from branchprune.errors import PruneError
from branchprune.experiments.compare import compare
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare import results as compare_results
from branchprune.reports import comparison_plots

MACS = 123_456_789_012
PROGRAM = """
import json, os, sys, time
from pathlib import Path
args = sys.argv[1:]
at = lambda name: args[args.index(name) + 1]
output, world = Path(at("--output")), Path(WORLD)
todo = json.loads((world / "todo.json").read_text())
name = "dense" if args[0] == "dense" else "/".join(output.parts[-2:])
with (world / "log").open("a") as file:
    file.write(json.dumps([name, args, os.environ["OMP_NUM_THREADS"]]) + "\\n")
how = todo.get(name, "ok")
if how == "fail":
    sys.exit("something is wrong")
if how == "hang":
    time.sleep(60)
output.mkdir(parents=True, exist_ok=True)
if "--overwrite" in args:  # what is there moves away
    (output / "config.yaml").unlink()
if name == "dense":
    (output / "dense.safetensors").write_text("weights")
    (output / "dense").mkdir(exist_ok=True)
    found = {"record": {"train_macs": MACS, "epochs": 7}, "scores": {"val": 0.8, "test": 0.75}}
    found |= todo.get("found", {})
    (output / "dense" / "finished.json").write_text(json.dumps(found))
    sys.exit()
method, seed = at("--method"), int(at("--seed"))
line = json.loads((world / "line.json").read_text())
line |= {"experiment": at("--name"), "method": method, "preset": at("--preset"), "seed": seed}
line |= {"command": "branchprune " + " ".join(args), "final": 0.5 + 0.01 * seed}
results = Path(at("--results"))
results.parent.mkdir(parents=True, exist_ok=True)
with results.open("a") as file:
    file.write(json.dumps(line) + "\\n")
"""
LINE = {
    **{"dataset": "digits", "hardware": "a CPU, 2 cores", "versions": {"torch": "2.15.0"}},
    **{"commit": "abc1234", "date": "2026-01-01T00:00:00+00:00", "metric": "accuracy"},
    **{"dense": 0.75, "params_removed": 0.882, "macs_removed": 0.881, "collapse_error": 2e-15},
    **{"train_macs": MACS, "dense_train_macs": 0},
}
SETTINGS = {
    "name": "small",
    "base": ["../base.yaml", "../data.yaml"],
    "rows": ["taken"],
    "variants": {"l1": {}, "more": {}},
    "seeds": [0, 1],
    "budgets": {"equal epochs": {"epochs": 6}, "equal compute": {"train_macs": 0.5}},
    "methods": {
        "L1 + fine-tuning": {"rows": ["l1"]},
        "ours": {"rows": ["shared", "more"], "seeds": [0, 1, 4], "budgets": ["equal compute"]},
    },
}
RUNS = [
    *("equal_epochs/L1_+_fine-tuning-0", "equal_compute/L1_+_fine-tuning-0"),
    *("equal_compute/ours-0", "equal_epochs/L1_+_fine-tuning-1"),
    *("equal_compute/L1_+_fine-tuning-1", "equal_compute/ours-1", "equal_compute/ours-4"),
]


class World:
    """A folder with configurations and results, and what the program did there."""

    def __init__(self, path):
        self.path, self.config = path, path / "compare" / "small.yaml"
        (path / "compare").mkdir()
        for name in ("base", "fast"):
            (path / f"{name}.yaml").write_text("{}")
        (path / "data.yaml").write_text("variants: {taken: {}, shared: {}, all: {}}")
        (path / "line.json").write_text(json.dumps(LINE))
        self.set()

    def set(self, **changes):
        settings = {key: value for key, value in (SETTINGS | changes).items() if value is not None}
        self.config.write_text(yaml.safe_dump(settings, sort_keys=False))

    def go(self, *options, **todo):
        """Compare; `todo` says what runs do, by name."""
        (self.path / "todo.json").write_text(json.dumps(todo.get("todo", {})))
        return main(["compare", "compare/small.yaml", "--results", "kept/r.jsonl", *options])

    def make(self, *options):
        """Make runs alone, without the table and the plots."""
        (self.path / "todo.json").write_text("{}")
        args = ["compare/small.yaml", "--results", "kept/r.jsonl", *options]
        assert not compare.compare(args, Console(quiet=True)).failed

    def rows(self):
        path = self.path / "log"
        return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []

    def names(self):
        return [row[0] for row in self.rows()]

    def args(self, name):
        return next(row[1] for row in self.rows() if row[0] == name)

    def write(self, scores, dense=None, **changes):
        """Write lines as runs leave them: (method, budget, seed, score)."""
        kept = self.path / "kept"
        kept.mkdir(exist_ok=True)
        lines = [
            LINE
            | {"experiment": "compare/small", "command": f"branchprune run --seed {seed}"}
            | {"method": method, "preset": budget, "seed": seed, "final": score}
            | changes
            for method, budget, seed, score in scores
        ]
        with (kept / "r.jsonl").open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        if dense is not None:
            (kept / "small.dense.json").write_text(json.dumps(dense))


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("WORLD", repr(str(tmp_path))).replace("MACS", str(MACS)))
    monkeypatch.setattr(compare, "COMMAND", [sys.executable, str(program)])
    return World(tmp_path)


def table(text):
    """Return the cells of a Markdown table by the name of their row."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_everything_is_made_in_order_and_once(world, capsys):
    assert world.go() == 0
    assert world.names() == ["dense", *RUNS]
    assert "7 runs are done, 0 missing" in capsys.readouterr().out
    written = {path.name for path in Path("runs/compare/small").iterdir() if path.is_file()}
    assert written >= {"table.md", "table.csv", "metric_vs_macs.png", "metric_vs_training.png"}
    assert "Missing" not in Path("runs/compare/small/table.md").read_text()
    assert world.go() == 0
    assert len(world.names()) == 8


def test_the_order_is_that_of_seeds_then_budgets_then_methods(world):
    world.set(methods={"b": {}, "a": {"seeds": [7, 0]}, "c": {"budgets": ["equal compute"]}})
    runs = [(run.seed, run.budget, run.method) for run in compare_config.read(world.config).runs()]
    both, early, late = ("equal epochs", "equal compute"), ("ba", "b", "a"), ("bac", "bc", "a")
    assert runs == [
        (seed, budget, method)
        for i, seed in enumerate((0, 1, 7))
        for budget, methods in zip(both, (early, late), strict=True)
        for method in methods[i]
    ]


def test_the_commands(world):
    inside, threads = ["--output", str(world.path / "out")], ["--threads", "3"]
    assert world.go("--overlay", "fast.yaml", "--variant", "all", *inside, *threads) == 0
    assert {row[2] for row in world.rows()} == {"3"}
    base = ["compare/small.yaml", "fast.yaml", "--variant", "all"]
    assert world.args("dense") == [
        *("dense", *base, "--seed", "0", "--output", "out/dense", "--resume")
    ]
    limits = {
        "equal_epochs/L1_+_fine-tuning-1": (["--prune.cost.epochs", "6"], ["l1"], 1),
        "equal_compute/ours-4": (
            *(["--prune.cost.train_macs", str(round(MACS / 2))], ["shared", "more"], 4),
        ),
    }
    for name, (limit, rows, seed) in limits.items():
        budget = name.split("/")[0].replace("_", " ")
        method = "ours" if "ours" in name else "L1 + fine-tuning"
        assert world.args(name) == [
            *("run", *base, *(part for row in rows for part in ("--variant", row))),
            *("--name", "compare/small+all", "--method", method, "--preset", budget, *limit),
            *("--seed", str(seed), "--output", f"out/{name}", "--results", "kept/r.jsonl"),
            *("--dense.epochs", "0", "--dense.checkpoint", "out/dense/dense.safetensors"),
            "--resume",
        ]
    stored = json.loads(Path("kept/small+all.dense.json").read_text())
    assert shlex.split(stored["command"]) == ["branchprune", *world.args("dense")]
    table = (world.path / "out/table.md").read_text()
    whole = "branchprune compare compare/small.yaml --variant all --overlay fast.yaml"
    assert f"\n{whole}\n" in table
    assert f"\n{whole} --only equal_compute/ours-0\n" in table
    assert stored["record"]["train_macs"] == MACS


def test_several_patterns_name_the_runs_of_any(world):
    world.make("--only", "*epochs/L1*-1", RUNS[0])
    assert world.names() == ["dense", RUNS[0], "equal_epochs/L1_+_fine-tuning-1"]


def test_an_overlay_may_change_the_metric(world):
    (world.path / "fast.yaml").write_text("metric: {label: loss}")
    assert compare_config.read(world.config, (), [world.path / "fast.yaml"]).metric.label == "loss"


@pytest.mark.parametrize("text", ["metric: [1]", "metric: loss", "metric: {lable: loss}"])
def test_a_wrong_metric_of_an_overlay_is_named(text, world):
    (world.path / "fast.yaml").write_text(text)
    with pytest.raises(PruneError, match=r"metric .*(mapping of|known are) val, test, label"):
        compare_config.read(world.config, (), [world.path / "fast.yaml"])


@pytest.mark.parametrize("key", ["seeds", "budgets", "methods", "reference"])
def test_an_overlay_that_is_a_comparison_is_refused(key, world):
    (world.path / "fast.yaml").write_text(yaml.safe_dump({key: SETTINGS.get(key)}))
    with pytest.raises(PruneError, match=rf"fast\.yaml'\) has {key}: leave it to .*small"):
        compare_config.read(world.config, (), [world.path / "fast.yaml"])


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_costs_no_table(score, world):
    (world.path / "data.yaml").write_text(
        "variants: {taken: {metric: {format: number}}, shared: {}}"
    )
    world.write([("ours", "equal compute", 0, score), ("ours", "equal compute", 1, 0.5)])
    world.write([("L1 + fine-tuning", "equal compute", 0, 0.25)])
    assert world.go("--table", "--output", "out") == 0
    rows = table(Path("out/table.md").read_text())
    assert [*rows][2:] == ["L1 + fine-tuning", "ours", "dense model"]
    assert rows["L1 + fine-tuning"][0] == "0.2500 (1)"


def test_under_a_variant_a_comparison_is_another(world):
    world.make("--only", RUNS[0])
    world.make("--only", RUNS[0], "--variant", "all")
    assert world.names() == ["dense", RUNS[0], "dense", RUNS[0]]
    assert {path.name for path in Path("runs/compare").iterdir()} == {"small", "small+all"}
    (world.path / "data.yaml").write_text(
        "variants: {taken: {}, shared: {}, all: {metric: {label: loss}}}"
    )
    read = compare_config.read(world.config, ["all"])
    assert (read.name, read.metric.label) == ("small+all", "loss")
    assert compare_config.read(world.config).metric.label == "accuracy"
    line = LINE | {"method": "m", "preset": "fewer", "seed": 4}
    command = compare_results.todays_command(read, line, world.path)
    assert command.startswith("branchprune compare compare/small.yaml --variant all --only fewer/")


def test_rows_of_a_budget_are_on_top_of_those_of_a_method(world):
    world.set(budgets={"fewer": {"rows": ["more"], "epochs": 3}}, methods={"a": {"rows": ["l1"]}})
    world.make("--only", "*-0", "--output", "out")
    args = world.args("fewer/a-0")
    assert args[2:6] == ["--variant", "l1", "--variant", "more"]
    assert args[args.index("--prune.cost.epochs") + 1] == "3"


def test_differences_are_paired_by_seed(world):
    scores = {"a": {0: 0.5, 1: 0.6, 2: 0.55}, "b": {0: 0.52, 1: 0.65, 2: 0.56}, "c": {2: 0.5}}
    budgets = {"one": {}, "two": {}}
    world.set(
        seeds=[0, 1, 2], reference="a", budgets=budgets, methods={name: {} for name in scores}
    )
    for method, found in scores.items():
        for seed, score in found.items():
            world.write([(method, "one", seed, 0.7)], val={"small": score})
    world.write([("b", "two", 0, 0.7)], val={"small": 0.4})
    assert world.go("--table") == 0
    rows = table(Path("runs/compare/small/table.md").read_text())
    assert rows["method"][1] == "one: validation against a"
    low, high = ttest_1samp([0.02, 0.05, 0.01], 0).confidence_interval(0.95)
    assert rows["b"][1] == f"+{50 * (low + high):.2f} ± {50 * (high - low):.2f}"
    assert rows["c"][1] == "−5.00"
    assert rows["a"][1] == rows["dense model"][1] == rows["b"][4] == rows["a"][4] == "–"


def test_a_run_understands_the_command(world):
    from branchprune.experiments.run.config import make_parser

    assert world.go("--seeds", "0") == 0
    digits = Path(__file__).parents[3] / "configs" / "digits_unet.yaml"
    for command in map(world.args, RUNS[:3]):
        options = command[command.index("--name") :]
        config = make_parser().parse_args(["--config", str(digits), *options])
        limit = (6, None) if config.preset == "equal epochs" else (None, round(MACS / 2))
        assert (config.prune.cost.epochs, config.prune.cost.train_macs) == limit
        assert config.name == "compare/small" and config.method in SETTINGS["methods"]
        assert (config.seed, config.resume, config.dense.epochs) == (0, True, 0)


def test_a_part_is_made(world):
    assert world.go("--seeds", "1", "4", "--only", "equal_compute/*") == 0
    made = [n for n in RUNS if n.startswith("equal_compute") and not n.endswith("-0")]
    assert world.names() == ["dense", *made]
    shown = Path("runs/compare/small/table.md").read_text()
    assert "Missing: equal epochs: all; equal compute, seeds 0: all." in shown
    assert world.go() == 0
    assert world.names()[len(made) + 1 :] == [name for name in RUNS if name not in made]


def test_a_run_that_fails_is_missing_and_the_others_go_on(world, capsys):
    bad = "equal_compute/ours-1"
    assert world.go("--jobs", "2", todo={bad: "fail"}) == 1
    assert {*world.names()} == {"dense", *RUNS}
    shown = capsys.readouterr().out
    assert f"{bad} FAILED" in shown and "6 runs are done, 1 missing" in shown
    log = Path(f"runs/compare/small/{bad}.log")
    assert "something is wrong" in log.read_text()
    assert (
        "Missing: equal compute, seeds 1: ours." in Path("runs/compare/small/table.md").read_text()
    )
    assert world.go() == 0
    assert world.names()[8:] == [bad]


def test_without_a_dense_model_nothing_runs(world, capsys):
    assert world.go("--jobs", "3", todo={"dense": "fail"}) == 1
    assert world.names() == ["dense"]
    shown = capsys.readouterr().out
    assert "dense FAILED" in shown and "0 runs are done, 7 missing" in shown
    assert "no results in kept/r.jsonl" in shown


def test_the_time_is_over_and_the_next_call_goes_on(world, monkeypatch, capsys):
    timer, hanging = [], RUNS[1]

    def sleep(seconds):
        timer.append(1e9 if hanging in world.names() else 0)

    from branchprune.experiments import jobs

    with monkeypatch.context() as patch:
        patch.setattr(jobs.time, "sleep", sleep)
        patch.setattr(jobs.time, "monotonic", lambda: sum(timer))
        assert world.go("--minutes", "5", todo={hanging: "hang"}) == 0
    assert "1 runs are done, 6 missing" in capsys.readouterr().out
    assert table(Path("runs/compare/small/table.md").read_text())["L1 + fine-tuning"][0] == (
        "50.00 (1)"
    )
    assert world.go() == 0
    assert world.names() == ["dense", *RUNS[:2], *RUNS[1:]]


def test_a_dense_model_is_not_trained_for_nothing(world):
    scores = [
        (m, b, s, 0.5)
        for m in ("L1 + fine-tuning", "ours")
        for b in ("equal compute",)
        for s in (0, 1, 4)
    ]
    world.write(scores)
    assert world.go("--only", "equal_compute/*") == 0
    assert world.names() == []


def test_runs_of_another_dense_model_are_not_mixed(world, capsys):
    other = {"record": {"train_macs": MACS, "epochs": 7}, "scores": {"val": 0.8, "test": 0.74}}
    world.write([("ours", "equal compute", 0, 0.5)], other)
    assert world.go() == 2
    assert "kept/r.jsonl holds runs of another dense model" in flat(capsys.readouterr().err)
    assert world.names() == ["dense"]
    assert json.loads(Path("kept/small.dense.json").read_text()) == other


def test_a_dense_model_of_which_no_runs_are_left_is_replaced(world):
    world.write([], {"record": {"train_macs": 1, "epochs": 1}, "scores": {"val": 0, "test": 0}})
    world.make("--only", RUNS[0])
    assert json.loads(Path("kept/small.dense.json").read_text())["record"]["train_macs"] == MACS


def test_the_dense_model_is_of_the_first_seed_and_made_again_where_its_weights_are_gone(world):
    world.set(seeds=[1, 0])
    (world.path / "fast.yaml").write_text("variants: {quick: {}}")
    fast = ["--overlay", "fast.yaml", "--variant", "quick"]
    world.make("--only", RUNS[0], *fast)
    command = world.args("dense")
    assert command[command.index("--seed") + 1] == "1"
    Path("runs/compare/small+quick/dense/dense.safetensors").unlink()
    world.make("--only", RUNS[1], *fast)
    assert world.names() == ["dense", RUNS[0], "dense", RUNS[1]]


def test_a_dense_model_from_a_checkpoint_has_no_compute(world, capsys):
    assert world.go(todo={"found": {"record": None}}) == 2
    assert "budgets.equal compute.train_macs (=0.5)" in flat(capsys.readouterr().err)


def test_the_table_agrees_with_the_lines(world, capsys):
    rng = np.random.default_rng(0)
    scores = {
        ("L1 + fine-tuning", "equal epochs"): rng.uniform(0.6, 0.7, 2),
        ("L1 + fine-tuning", "equal compute"): rng.uniform(0.7, 0.71, 2),
        ("ours", "equal compute"): rng.uniform(0.72, 0.73, 3),
    }
    dense = {"record": {"train_macs": 2 * MACS, "epochs": 9}, "scores": {}, "command": "the dense"}
    seeds = (0, 1, 4)
    world.write(
        [(*key, s, x) for key, xs in scores.items() for s, x in zip(seeds, xs, strict=False)], dense
    )
    assert world.go("--table", "--output", "out") == 0
    assert world.names() == []
    text = Path("out/table.md").read_text()
    rows = table(text)
    assert [*rows][2:] == ["ours", "L1 + fine-tuning", "dense model"]

    def cell(method, budget):
        values = 100 * scores[method, budget]
        return f"{values.mean():.2f} ± {values.std(ddof=1):.2f} ({len(values)})"

    both = [cell("L1 + fine-tuning", budget) for budget in ("equal epochs", "equal compute")]
    assert rows["L1 + fine-tuning"] == [both[0], "0.50×", both[1], "0.50×", "88.2 / 88.1"]
    assert rows["ours"] == ["–", "–", cell("ours", "equal compute"), "0.50×", "88.2 / 88.1"]
    assert rows["dense model"] == ["75.00", "1.00×", "75.00", "1.00×", "–"]
    assert rows["method"][0] == "equal epochs: accuracy, % (n)"
    assert "2.47e+11 in 9 epochs" in text and "Missing" not in text
    for part in (
        "a CPU, 2 cores",
        "torch 2.15.0",
        "abc1234",
        "2.0e-15",
        "# dense model; made by\n#   the dense\nbranchprune compare compare/small.yaml\n",
    ):
        assert part in text
    made = "# ours, equal compute, seed 0; made at commit abc1234 by\n#   branchprune run --seed 0"
    assert f"{made}\nbranchprune compare compare/small.yaml --only equal_compute/ours-0\n" in text
    found = {
        (row["method"], row["budget"]): row
        for row in csv.DictReader(Path("out/table.csv").read_text().splitlines())
    }
    for key, values in scores.items():
        row = found[key]
        assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-15)
        assert float(row["deviation"]) == pytest.approx(statistics.stdev(values), abs=1e-15)
        assert (row["n"], float(row["compute"])) == (str(len(values)), 0.5)
        others = ("train_macs", "params_removed", "macs_removed")
        assert [float(row[name]) for name in others] == pytest.approx([MACS, 0.882, 0.881])
    assert found["ours", "equal compute"]["seeds"] == "0 1 4"
    assert found["dense model", ""]["mean"] == "0.75"


def test_the_newest_line_of_a_run_counts_and_others_are_not_shown(world):
    world.write([("ours", "equal compute", 0, 0.9)], date="2026-02-01")
    world.write([("ours", "equal compute", 0, 0.1)], date="2026-01-01")
    world.write([("theirs", "equal compute", 0, 0.5), ("ours", "equal compute", 9, 0.5)])
    world.write([("ours", "equal compute", 1, 0.5)], experiment="compare/large")
    assert world.go("--table") == 0
    text = Path("runs/compare/small/table.md").read_text()
    rows = table(text)
    assert rows["ours"] == ["90.00 (1)", f"{MACS:.3g}", "88.2 / 88.1"]
    assert rows["dense model"] == ["75.00", "–", "–"]
    assert "theirs" not in rows and "2 more lines are of runs" in text
    assert not Path("runs/compare/small/metric_vs_training.png").exists()


@pytest.mark.parametrize(("mode", "first"), [("max", "ours"), ("min", "L1 + fine-tuning")])
def test_the_direction_and_the_format_are_those_of_the_metric(world, mode, first):
    (world.path / "data.yaml").write_text(
        f"metric: {{label: loss in nats, mode: {mode}, format: number}}\n"
        "variants: {taken: {}, shared: {}}"
    )
    budget = "equal compute"
    scores = [("L1 + fine-tuning", budget, s, x) for s, x in enumerate((0.0312, 0.0316))]
    world.write([*scores, ("ours", budget, 0, 0.0412)], metric="loss in nats")
    assert world.go("--table") == 0
    rows = table(Path("runs/compare/small/table.md").read_text())
    assert [*rows][2] == first
    spread = statistics.stdev((0.0312, 0.0316))
    assert rows["L1 + fine-tuning"][0] == f"0.03140 ± {spread:.5f} (2)"
    assert rows["method"][0] == "equal compute: loss in nats (n)"


def test_a_method_without_the_last_budget_stands_behind(world):
    world.write([("L1 + fine-tuning", "equal epochs", 0, 0.99), ("ours", "equal compute", 0, 0.1)])
    assert world.go("--table") == 0
    assert [*table(Path("runs/compare/small/table.md").read_text())][2:4] == [
        *("ours", "L1 + fine-tuning")
    ]


def test_what_budgets_removed_is_told_apart_where_it_differs(world):
    world.write([("L1 + fine-tuning", "equal epochs", 0, 0.5)], params_removed=0.5)
    world.write([("L1 + fine-tuning", "equal compute", 0, 0.5)])
    assert world.go("--table") == 0
    rows = table(Path("runs/compare/small/table.md").read_text())
    assert rows["L1 + fine-tuning"][-1] == "50.0 / 88.1; 88.2 / 88.1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "letters"}, "mixes the data sets digits and letters"),
        ({"metric": "PSNR in dB"}, "has the metric 'PSNR in dB', and the file names 'accuracy'"),
    ],
)
def test_what_may_not_be_mixed(world, capsys, changes, message):
    world.write([("ours", "equal compute", 0, 0.5)])
    world.write([("ours", "equal compute", 1, 0.5)], **changes)
    assert world.go("--table") == 2
    assert message in flat(capsys.readouterr().err)


def flat(text):
    return " ".join(text.split())


WRONG = {
    "no name": ({"name": None}, "name is missing"),
    "name": ({"name": "a/b"}, "name (='a/b') must be"),
    "unknown key": ({"seedz": [0]}, "has the key 'seedz'; known are name, seeds, budgets, methods"),
    "key that no file has": ({"prune_task": {}}, "has the key 'prune_task'; known are name"),
    "base that is missing": ({"base": ["none.yaml"]}, "base (='none.yaml') does not exist in"),
    "seeds": ({"seeds": [0, 0]}, "seeds (=[0, 0]) must be a list of distinct whole numbers"),
    "seed below 0": ({"seeds": [-1]}, "seeds (=[-1]) must be"),
    "seeds of text": ({"seeds": ["a"]}, "seeds (=['a']) must be"),
    "truth as seed": ({"seeds": [True]}, "seeds (=[True]) must be"),
    "no budgets": ({"budgets": {}}, "budgets (={}) must be"),
    "rows of a budget": ({"budgets": {"b": {"rows": ["mor"]}}}, "budgets.b.rows (='mor')"),
    "reference": ({"reference": "theirs"}, "reference (='theirs') must be one of L1 + fine-tuning"),
    "both": ({"budgets": {"b": {"epochs": 1, "train_macs": 1}}}, "either epochs or train_macs"),
    "budget": ({"budgets": {"b": {"hours": 1}}}, "budgets.b has the key 'hours'; known are epochs"),
    "epochs": ({"budgets": {"b": {"epochs": 0}}}, "budgets.b.epochs (=0) must be a positive whole"),
    "truth as epochs": ({"budgets": {"b": {"epochs": True}}}, "budgets.b.epochs (=True) must be"),
    "half epochs": ({"budgets": {"b": {"epochs": 1.5}}}, "budgets.b.epochs (=1.5) must be"),
    "macs": ({"budgets": {"b": {"train_macs": 0}}}, "budgets.b.train_macs (=0) must be a positive"),
    "infinite": ({"budgets": {"b": {"train_macs": float("inf")}}}, "train_macs (=inf) must be"),
    "no methods": ({"methods": []}, "methods (=[]) must be"),
    "method": ({"methods": {"m": "x.yaml"}}, "methods.m (='x.yaml') must be a mapping of rows"),
    "method's key": ({"methods": {"m": {"files": []}}}, "methods.m has the key 'files'"),
    "method's row": (
        {"methods": {"m": {"rows": ["share"]}}},
        "methods.m.rows (='share') is no variant, perhaps 'shared'; known are taken, shared, all",
    ),
    "method's rows": ({"methods": {"m": {"rows": "l1"}}}, "methods.m.rows (='l1') must be a list"),
    "method's seeds": ({"methods": {"m": {"seeds": 1}}}, "methods.m.seeds (=1) must be"),
    "method's budget": (
        {"methods": {"m": {"budgets": ["equal"]}}},
        "methods.m.budgets (=['equal']) must be a list of equal epochs, equal compute",
    ),
    "no budget at all": (
        {"methods": {"m": {"budgets": []}}},
        "methods.m.budgets (=[]) must be a list of equal epochs, equal compute",
    ),
    "no letter": ({"methods": {"**": {}}}, "methods has the name '**', which must be text with a"),
    "number as name": ({"methods": {1: {}}}, "methods has the name 1, which must be text"),
    "option as name": ({"methods": {"--seed": {}}}, "methods has the name '--seed'"),
    "one folder": ({"methods": {"a b": {}, "a/b": {}}}, "have one folder, equal_epochs/a_b-0"),
    "dense": ({"budgets": {"dense": {"epochs": 1}}}, "budgets has the name 'dense'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_the_configuration_is_named(case, world):
    changes, message = WRONG[case]
    if "budgets" in changes:
        changes = changes | {"methods": {"m": {}}}
    world.set(**changes)
    with pytest.raises(PruneError, match=re.escape(message)) as error:
        compare_config.read(world.config)
    assert str(error.value).startswith(f"{world.config}: ")


def test_the_metric_is_put_together_as_a_run_does_it(world):
    (world.path / "base.yaml").write_text("metric: {label: loss, format: percent}")
    (world.path / "data.yaml").write_text(
        "variants: {taken: {metric: {format: number}}, shared: {}}\nmetric: {mode: min}"
    )
    metric = compare_config.read(world.config).metric
    assert (metric.label, metric.mode, metric.format) == ("loss", "min", "number")
    assert metric.val == "metric/val_acc"


def test_the_metric_of_base_is_checked(world):
    (world.path / "base.yaml").write_text("metric: {lable: loss}")
    with pytest.raises(PruneError, match=r"metric .*'lable'"):
        compare_config.read(world.config)


OPTIONS = {
    "no configuration": (["none.yaml"], "config (='none.yaml') cannot be read"),
    "unknown seed": (["--seeds", "0", "3"], "seeds (=[0, 3]): 3 is not in the configuration"),
    "pattern": (
        ["--only", "equal*", "theirs*"],
        "only (='theirs*') is none of the 7 runs, such as",
    ),
    "overlay": (["--overlay", "none.yaml"], "overlay (='none.yaml') cannot be read"),
    "variant": (["--variant", "al"], "variant (='al') is no variant, perhaps 'all'"),
    "record": (["--record"], "record needs scripts/results/: run the command in the root of"),
    "record and results": (
        ["--record", "--results", "r.jsonl"],
        "record and results (=r.jsonl) exclude each other",
    ),
    "jobs": (["--jobs", "0"], "jobs"),
    "minutes": (["--minutes", "soon"], "minutes"),
    "unknown option": (["--job", "2"], "job"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_wrong_option_is_named(case, world, capsys):
    args, message = OPTIONS[case]
    config = [] if args[0] == "none.yaml" else ["compare/small.yaml"]
    assert main(["compare", *config, *args]) == 2
    assert message in flat(capsys.readouterr().err)
    assert world.names() == []


def test_results_are_recorded_when_asked_for_and_else_in_the_output(world):
    Path("scripts/results/compare").mkdir(parents=True)
    (world.path / "todo.json").write_text("{}")
    only = ("--only", "equal_epochs/*-0")
    assert main(["compare", "compare/small.yaml", *only]) == 0
    lines = Path("runs/compare/small/small.jsonl")
    assert len(lines.read_text().splitlines()) == 1
    assert [*Path("scripts/results/compare").iterdir()] == []
    assert main(["compare", "compare/small.yaml", "--record", *only]) == 0
    recorded = {path.name for path in Path("scripts/results/compare").iterdir()}
    assert recorded == {"small.jsonl", "small.dense.json"}
    assert len(lines.read_text().splitlines()) == 1


def test_todays_command_makes_the_run_of_a_line(world):
    comparison = compare_config.read(world.config)
    line = {"method": "L1 + fine-tuning", "preset": "equal epochs", "seed": 1}
    command = compare_results.todays_command(comparison, line, world.path)
    expected = "branchprune compare compare/small.yaml --only equal_epochs/L1_+_fine-tuning-1"
    assert command == expected
    (world.path / "todo.json").write_text("{}")
    assert main(shlex.split(command)[1:]) == 0
    assert world.names() == ["dense", "equal_epochs/L1_+_fine-tuning-1"]


def test_an_output_that_cannot_be_written(world, capsys):
    world.write([("ours", "equal compute", 0, 0.5)])
    Path("file").write_text("")
    assert world.go("--table", "--output", "file/out") == 2
    assert "file/out cannot be written" in flat(capsys.readouterr().err)


def test_plots_show_every_mark(world):
    """The marks in the figure are the means, at the MACs that are left."""
    scores = [("L1 + fine-tuning", "equal epochs", 0, 0.5), ("ours", "equal compute", 0, 0.6)]
    world.write([scores[0]], macs_removed=0.75)
    world.write([scores[1]], macs_removed=0.5)
    results = compare_results.read(compare_config.read(world.config), Path("kept/r.jsonl"))
    places = {
        (each.method, each.budget): 1 - each.average("macs_removed") for each in results.outcomes()
    }
    axes = comparison_plots._figure(results, places, "MACs left", percent=True).axes[0]
    marks = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.get_lines()
        if line.get_marker() in comparison_plots.MARKERS
    }
    assert marks == {(0.25, 0.5), (0.5, 0.6)}
    assert {text.get_text() for text in axes.texts} == {"L1 + fine-tuning", "ours"}
