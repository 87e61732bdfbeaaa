"""scripts/reproduce.py, with a small program in place of `branchprune`."""

import importlib
import json
import shlex
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from branchprune.errors import PruneError
from branchprune.experiments import jobs
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.files import read_lines
from branchprune.experiments.run.config import make_parser

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))
reproduce = importlib.import_module("reproduce")
sys.path.pop()

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
import yaml
args = sys.argv[1:]
at = {name: args[args.index(name) + 1] for name in ("--output", "--results", "--seed")}
output, results, world = Path(at["--output"]), Path(at["--results"]), Path(WORLD)
name = "/".join(output.parts[-2:])
todo = json.loads((world / "todo.json").read_text())
how = todo.get(name, todo.get("*", "ok"))
def note(what):
    row = [what, name, args, time.monotonic(), os.environ["OMP_NUM_THREADS"]]
    with (world / "log").open("a") as file:
        file.write(json.dumps(row) + "\\n")
def stop(*_):
    note("terminated")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
note("begins")
output.mkdir(parents=True, exist_ok=True)
if how == "fail":
    print("something is wrong")
    sys.exit(2)
def merged(a, b):
    if not isinstance(b, dict):
        return b
    return (a or {}) | {key: merged((a or {}).get(key), value) for key, value in b.items()}
file, *rows = args[1:args.index("--seed")]
assert {*rows[::2]} <= {"--variant"}, rows
own = yaml.safe_load(Path(file).read_text())
base = yaml.safe_load((Path(file).parent / own["base"]).read_text()) if "base" in own else {}
variants = [x.pop("variants", {}) for x in (base, own)]
settings = merged(base, own)
settings.pop("base", None)
for change in [x[row] for row in rows[1::2] for x in variants if row in x]:
    settings = merged(settings, change)
if how == "downloads":  # and is slower than the other experiment is to begin
    for wait in (0.5, *[0.05] * 400):
        time.sleep(wait)
        rows = map(json.loads, (world / "log").read_text().splitlines())
        if len({row[1].split("/")[0] for row in rows}) == 2:
            break
note("has data")
part = output / "config.yaml.part"
part.write_text(yaml.safe_dump(settings))
part.replace(output / "config.yaml")
(output / "dense.safetensors").write_text("weights")
if how == "slow":
    time.sleep(0.5)
if how == "hang":
    time.sleep(60)
line = {"experiment": settings["name"], "method": settings["method"], "preset": settings["preset"]}
line["dataset"] = settings["data"]["init_args"].get("name", "CIFAR-10")
results.parent.mkdir(parents=True, exist_ok=True)
if how != "silent":
    with results.open("a") as file:
        file.write(json.dumps(line | {"seed": int(at["--seed"])}) + "\\n")
note("ends")
"""


LINE = {
    "experiment": "vgg16_cifar10",
    "method": "blended",
    "preset": "cpu",
    "seed": 0,
    "dataset": "CIFAR-10",
}


class World:
    """A folder of runs and results, and what the program did there."""

    def __init__(self, path):
        self.path = path

    def go(self, *options, **todo):
        """Reproduce; `todo` says what runs do, by name ("*": all others)."""
        (self.path / "todo.json").write_text(json.dumps(todo.get("todo", {})))
        folders = ["--runs", str(self.path / "runs"), "--results", str(self.path / "results")]
        return reproduce.main([*folders, *options])

    def log(self, what="begins"):
        path = self.path / "log"
        rows = [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if row[0] == what]

    def names(self, what="begins"):
        return [row[1] for row in self.log(what)]


@pytest.fixture
def world(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("WORLD", repr(str(tmp_path))))
    monkeypatch.setattr(reproduce, "COMMAND", [sys.executable, str(program)])
    return World(tmp_path)


def quicker(monkeypatch, *variants):
    """Leave out variants and most headlines: each run starts a Python."""
    monkeypatch.setattr(reproduce, "VARIANTS", variants)
    monkeypatch.setattr(reproduce, "HEADLINES", ((reproduce.VGG, ""), (reproduce.VGG, "ours")))


def test_headlines_of_every_seed_come_first():
    names = [job.name for job in reproduce.all_runs(2)]
    headlines = [
        *("vgg16_cifar10/paper", "autoencoder_carla/paper", "vgg16_cifar10/three_stage"),
        *("vgg16_cifar10/ours", "autoencoder_carla/at_once"),
    ]
    assert names[:10] == [f"{name}-{seed}" for seed in (0, 1) for name in headlines]
    assert len(names) == len(set(names)) == 10 + len(reproduce.VARIANTS)
    assert all(name.endswith("-0") for name in names[10:])


def test_runs_are_made_in_order_and_once(world, monkeypatch, capsys):
    quicker(monkeypatch, "frozen")
    vgg, only = "vgg16_cifar10", ("--seeds", "1", "--only", "vgg16_cifar10/*")
    expected = [f"{vgg}/paper-0", f"{vgg}/ours-0", f"{vgg}/frozen-0"]
    assert world.go(*only, "--threads", "3") == 0
    assert world.names() == expected
    assert {row[4] for row in world.log()} == {"3"}
    assert "3 lines of results, 0 runs missing" in capsys.readouterr().out
    assert world.go(*only) == 0
    assert world.names() == expected
    for _, name, args, *_ in world.log():
        dense = world.path / "runs" / "cpu" / vgg / "paper-0" / "dense.safetensors"
        shared = ["--dense.epochs", "0", "--dense.checkpoint", str(dense)]
        assert (args[-4:] == shared) == (name in (f"{vgg}/ours-0", f"{vgg}/frozen-0")), name
        assert "--resume" in args and args[0] == "run"


def test_what_a_line_is_known_by(world, monkeypatch):
    quicker(monkeypatch)
    only = ("--seeds", "2", "--only", "vgg16_cifar10/paper*")
    results = world.path / "results" / "vgg16_cifar10.jsonl"
    results.parent.mkdir()
    results.write_text(json.dumps(LINE | {"preset": "paper"}) + "\n" + json.dumps(LINE) + "\n")
    assert world.go(*only) == 0
    assert world.names() == ["vgg16_cifar10/paper-1"]


def test_a_line_of_other_data_is_another_run(world, monkeypatch):
    quicker(monkeypatch)
    only = ("--seeds", "1", "--only", "vgg16_cifar10/paper*")
    jpeg = ("--jpeg",)
    results = world.path / "results" / "vgg16_cifar10.jsonl"
    results.parent.mkdir()
    results.write_text(json.dumps(LINE | {"dataset": "CIFAR-10 (JPEG)"}) + "\n")
    assert world.go(*only, *jpeg) == 0
    assert world.names() == []
    assert world.go(*only) == 0
    assert world.names() == ["vgg16_cifar10/paper-0"]
    found = [json.loads(text)["dataset"] for text in results.read_text().splitlines()]
    assert found == ["CIFAR-10 (JPEG)", "CIFAR-10"]


def test_the_frames_are_those_of_the_option(world, monkeypatch):
    quicker(monkeypatch)
    monkeypatch.setattr(reproduce, "HEADLINES", ((reproduce.VGG, ""), (reproduce.AUTOENCODER, "")))
    assert world.go("--seeds", "1", "--frames", str(world.path / "frames")) == 0
    frames = ["--data.init_args.root", str(world.path / "frames")]
    given = {name: args[args.index("--resume") + 3 :] for _, name, args, *_ in world.log()}
    assert given["vgg16_cifar10/paper-0"] == []
    assert given["autoencoder_carla/paper-0"] == frames
    assert given["autoencoder_carla/at_once-0"][:2] == frames
    file = str(reproduce.CONFIGS / "autoencoder_carla.yaml")
    given = files_as_options([file, "--output", "unused", *frames])
    config = make_parser().parse_args(given)
    assert config.data.init_args.root == frames[1]


def test_torn_files_cost_a_run_and_no_more(world, monkeypatch):
    quicker(monkeypatch)
    results = world.path / "results" / "vgg16_cifar10.jsonl"
    results.parent.mkdir()
    torn = json.dumps(LINE | {"seed": 1})[:-9]
    results.write_text(f"{torn}\n{torn}\n")
    assert world.go("--seeds", "1", "--only", "vgg16_cifar10/*") == 0
    assert world.names() == ["vgg16_cifar10/paper-0", "vgg16_cifar10/ours-0"]
    results.write_text(f"{json.dumps(LINE)}\n{torn}\n")
    for text in ("", "name: vgg16_cifar10"):
        (world.path / "runs/cpu/vgg16_cifar10/paper-0/config.yaml").write_text(text)
        reproduce._described.cache_clear()
        assert world.go("--seeds", "1", "--only", "vgg16_cifar10/*") == 1
    assert len(world.names()) == 2


def test_variants_wait_for_the_dense_model_of_their_seed(world, monkeypatch, capsys):
    quicker(monkeypatch)
    todo = {"vgg16_cifar10/paper-0": "fail", "vgg16_cifar10/paper-1": "slow"}
    only = ("--seeds", "2", "--jobs", "4", "--only", "vgg*")
    assert world.go(*only, todo=todo) == 1
    begun = {row[1]: row for row in world.log()}
    assert begun["vgg16_cifar10/ours-1"][3] > begun["vgg16_cifar10/paper-1"][3]
    assert "--dense.checkpoint" in begun["vgg16_cifar10/ours-1"][2]
    assert "vgg16_cifar10/ours-0" not in begun
    assert refusals(capsys) == {"vgg16_cifar10/ours-0": "vgg16_cifar10/paper-0 failed"}


def refusals(capsys):
    """Return what was said of the runs that were refused, behind the folder."""
    lines = capsys.readouterr().out.splitlines()
    parts = [line.split(" is refused: ") for line in lines if " is refused: " in line]
    return {name: reason.split(", and ")[1] for name, reason in parts}


def test_a_variant_is_refused_where_the_dense_model_is_gone(world, monkeypatch, capsys):
    """As in a fresh clone with the results of others: it would train one with its own settings."""
    quicker(monkeypatch, "noise")
    only = ("--seeds", "1", "--only", "vgg16_cifar10/*")
    results = world.path / "results" / "vgg16_cifar10.jsonl"
    results.parent.mkdir()
    results.write_text(json.dumps(LINE) + "\n")
    assert world.go(*only) == 1
    assert world.names() == []
    expected = "vgg16_cifar10/paper-0 has its line already: give another folder to --results"
    found = refusals(capsys)
    assert {*found} == {"vgg16_cifar10/ours-0", "vgg16_cifar10/noise-0"}
    assert all(reason.startswith(expected) for reason in found.values())


def test_a_variant_alone_is_refused_until_its_parent_has_run(world, capsys):
    only = ("--only", "vgg16_cifar10/frozen-0")
    assert world.go(*only) == 1
    assert world.names() == []
    reason = "vgg16_cifar10/paper-0 is left out by --only: run it first"
    assert refusals(capsys) == {"vgg16_cifar10/frozen-0": reason}
    assert world.go("--seeds", "1", "--only", "vgg16_cifar10/paper-0") == 0
    assert world.go(*only) == 0
    assert world.names() == ["vgg16_cifar10/paper-0", "vgg16_cifar10/frozen-0"]


def test_a_variant_does_not_begin_with_a_dense_model_of_other_data(world, monkeypatch, capsys):
    quicker(monkeypatch)
    only = ("--seeds", "1", "--only", "vgg16_cifar10/*")
    jpeg = ("--jpeg",)
    assert world.go("--seeds", "1", "--only", "vgg16_cifar10/paper-0", *jpeg) == 0
    assert world.go(*only, todo={"vgg16_cifar10/paper-0": "fail"}) == 1
    assert world.names() == 2 * ["vgg16_cifar10/paper-0"]
    assert "ours-0 is refused: no dense model of CIFAR-10 in" in capsys.readouterr().out


def test_data_are_downloaded_once(world, monkeypatch):
    """A second run of an experiment waits until the first has its data; others do not."""
    quicker(monkeypatch)
    only = ("--seeds", "2", "--jobs", "3", "--only", "*paper-*")
    monkeypatch.setattr(reproduce, "HEADLINES", ((reproduce.VGG, ""), (reproduce.AUTOENCODER, "")))
    assert world.go(*only, todo={"*": "downloads"}) == 0
    begins = {row[1]: row[3] for row in world.log()}
    data = {row[1]: row[3] for row in world.log("has data")}
    assert len(begins) == 4
    for experiment in (reproduce.VGG, reproduce.AUTOENCODER):
        assert data[f"{experiment}/paper-0"] < begins[f"{experiment}/paper-1"]
    assert begins["autoencoder_carla/paper-0"] < data["vgg16_cifar10/paper-0"]


def test_no_more_than_jobs_side_by_side(world, monkeypatch):
    quicker(monkeypatch)
    only = ("--seeds", "4", "--jobs", "2", "--only", "*paper-*")
    assert world.go(*only, todo={"*": "slow"}) == 0
    changes = [(row[3], 1) for row in world.log()] + [(row[3], -1) for row in world.log("ends")]
    running, most = 0, 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    assert len(world.names()) == 4 and most == 2


def test_the_time_is_over_and_the_next_call_goes_on(world, monkeypatch, capsys):
    quicker(monkeypatch)
    only, hanging = ("--seeds", "2", "--only", "vgg16_cifar10/paper*"), "vgg16_cifar10/paper-1"
    timer = []

    def sleep(seconds):  # the time is over as soon as the second run hangs
        threading.Event().wait(0.05)
        if hanging in world.names():
            timer.append(1e9)

    monkeypatch.setattr(jobs.time, "sleep", sleep)
    monkeypatch.setattr(jobs.time, "monotonic", lambda: sum(timer))
    assert world.go(*only, "--minutes", "5", todo={hanging: "hang"}) == 0
    assert world.names("terminated") == [hanging]
    assert "1 lines of results, 1 runs missing" in capsys.readouterr().out
    timer.clear()
    monkeypatch.undo()
    program = [sys.executable, str(world.path / "program.py")]
    monkeypatch.setattr(reproduce, "COMMAND", program)
    assert world.go(*only) == 0
    assert world.names() == ["vgg16_cifar10/paper-0", hanging, hanging]
    first, second = (row[2] for row in world.log() if row[1] == hanging)
    assert first == second and "--resume" in first


def test_no_time_runs_nothing(world):
    assert world.go("--minutes", "0") == 0
    assert world.names() == []


@pytest.mark.parametrize("how", ["fail", "silent"])
def test_failures_are_reported(how, world, monkeypatch, capsys):
    quicker(monkeypatch)
    only = ("--seeds", "2", "--only", "vgg16_cifar10/paper*")
    assert world.go(*only, todo={"vgg16_cifar10/paper-0": how}) == 1
    shown = capsys.readouterr().out
    assert "vgg16_cifar10/paper-0 FAILED" in shown and "vgg16_cifar10/paper-1 is done" in shown
    log = world.path / "runs" / "cpu" / "vgg16_cifar10" / "paper-0.log"
    assert log.exists() and (how != "fail" or "something is wrong" in log.read_text())
    assert world.names() == ["vgg16_cifar10/paper-0", "vgg16_cifar10/paper-1"]
    assert world.go(*only) == 0
    assert world.names()[2:] == ["vgg16_cifar10/paper-0"]


@pytest.mark.parametrize("preset", ["cpu", "paper"])
@pytest.mark.parametrize("job", reproduce.all_runs(1), ids=lambda job: job.name)
def test_the_configuration_of_every_job_parses(job, preset):
    config = configuration(job, preset)
    dataset = "CIFAR-10" if job.experiment == reproduce.VGG else "CARLA frames"
    known = (config.name, config.method, config.preset, dataset, config.seed)
    assert known == job.key(preset)
    assert config.preset == preset and config.name == job.experiment
    assert config.method == job.method(preset)


def configuration(job, preset, *options):
    """Parse the configuration of a job."""
    given = files_as_options([*job.options(preset), *options, "--seed", str(job.seed)])
    return make_parser().parse_args([*given, "--output", "unused"])


@pytest.mark.parametrize(
    ("options", "dataset"),
    [({"overlays": ["gpu.yaml"]}, "CIFAR-10"), ({"jpeg": True}, "CIFAR-10 (JPEG)")],
    ids=["gpu", "jpeg"],
)
def test_overlays_change_nothing_but_the_data_of_what_a_line_is_known_by(options, dataset):
    job = reproduce.Run(reproduce.VGG, "ours", 0)
    options = {
        key: [reproduce.CONFIGS / file for file in value] if key == "overlays" else value
        for key, value in options.items()
    }
    assert job.key("cpu", **options) == ("vgg16_cifar10", "ours", "cpu", dataset, 0)


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_no_two_jobs_have_the_same_line(preset):
    keys = [job.key(preset) for job in reproduce.all_runs(2)]
    assert len(keys) == len(set(keys))
    assert all(a.seed <= b.seed for a, b in pairwise(reproduce.all_runs(2)[:10]))


def test_the_settings_that_variants_change_arrive():
    """A dictionary of a later file is merged with that of an earlier one, or replaces it."""

    def prune(variant, preset):
        return configuration(reproduce.Run(reproduce.VGG, variant, 0), preset).prune

    assert prune("frozen", "cpu").blend.thaw_at is None
    assert prune("frozen_until_small", "paper").blend.thaw_at == 0.2
    assert prune("larger_steps", "cpu").blend.levels == {"steps": 0.25}
    assert prune("multiplicative", "paper").blend.levels == {"multiplicative": 0.05}
    assert prune("multiplicative", "cpu").blend.hold == 1
    assert prune("early_stopping", "cpu").blend.hold.max_epochs == 6
    assert prune("three_stage", "cpu").finetune.epochs == 4
    assert prune("three_stage", "paper").finetune.epochs == 10
    blended = prune("", "cpu")
    assert (blended.blend.levels, blended.finetune) == ({"steps": 0.1}, None)
    assert blended.criterion.name == "random" and blended.blend.hold.max_epochs == 3
    ours = prune("ours", "cpu")
    assert (ours.blend, ours.finetune.epochs, ours.criterion.name) == (None, 80, "reconstruction")
    assert prune("ours", "paper").finetune.epochs == 400
    task = prune("ours", "paper").task
    assert (task["optimizer"], task["remember"]) == ("muon", 8)
    task = prune("regression", "paper").task
    assert task["teacher_weight"] == 1.0 and task["temperature"] is None


def test_lines_are_recorded_when_asked_for_and_else_beside_the_runs(world, monkeypatch):
    quicker(monkeypatch)
    monkeypatch.setattr(reproduce, "RECORDED", world.path / "recorded")
    (world.path / "todo.json").write_text("{}")
    only = ["--runs", str(world.path / "runs"), "--seeds", "1", "--only", "vgg16_cifar10/paper*"]
    assert reproduce.main(only) == 0
    assert (world.path / "runs" / "cpu" / "results" / "vgg16_cifar10.jsonl").exists()
    assert not (world.path / "recorded").exists()
    assert reproduce.main([*only, "--record"]) == 0
    assert (world.path / "recorded" / "vgg16_cifar10.jsonl").exists()
    with pytest.raises(SystemExit):
        reproduce.main([*only, "--record", "--results", "elsewhere"])


def committed_lines():
    files = [f"{name}.jsonl" for name in (reproduce.VGG, reproduce.AUTOENCODER)]
    return [line for file in files for line in read_lines(ROOT / "scripts" / "results" / file)]


def test_todays_commands_make_the_runs_of_the_committed_lines(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = committed_lines()
    commands = [shlex.split(reproduce.todays_command(line)) for line in lines]
    assert len({*map(tuple, commands)}) == len(lines)
    parser = make_parser()
    for line, command in zip(lines, commands, strict=True):
        assert command[:2] == ["branchprune", "run"]
        config = parser.parse_args(files_as_options(command[2:]))
        known = (config.name, config.method, config.preset, config.seed)
        assert known == tuple(line[key] for key in ("experiment", "method", "preset", "seed"))
        assert ("--variant jpeg" in " ".join(command)) == (line["dataset"] == "CIFAR-10 (JPEG)")
        assert (config.dense.epochs == 0) == (line["method"] == "noise")


@pytest.mark.parametrize("change", [{"method": "theirs"}, {"preset": "gpu"}, {"dataset": "MNIST"}])
def test_a_line_of_no_run_has_no_command(change):
    with pytest.raises(PruneError, match="is no run of vgg16_cifar10 or autoencoder_carla"):
        reproduce.todays_command(LINE | change)
