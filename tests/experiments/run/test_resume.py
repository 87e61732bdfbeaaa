"""A run that is killed continues, and ends as if nothing had happened."""

import errno
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from killed_runs import CONFIG, Data, Kill, Killed, Net, check_same, go, rows, same_weights
from pytorch_lightning import Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from branchprune.cli import main
from branchprune.experiments import environment
from branchprune.experiments.run.callbacks.epoch_checkpoint import find_checkpoint
from branchprune.experiments.run.callbacks.training_cost import TrainingCost
from branchprune.experiments.run.results_file import read_lines
from branchprune.lightning import ClassificationTask

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

ROUNDS = """
prune:
  widths: {keep: 0.75}
  blend: null
  cut: {}
  finetune: {epochs: 2}
  rounds: {count: 3, max_drop: 1.0}
"""

BEFORE_THE_CUT = """
model: {class_path: test_resume.Residual}
prune:
  widths: {keep: 0.5}
  blend: null
  depth: {blocks: 1, levels: [0.5, 0.0]}
  sparsify: {epochs: 3, weight: 1.0, penalty: PENALTY}
  cut: {}
  finetune: {epochs: 2}
"""


class Block(nn.Module):
    """Adds what two layers make."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.layers = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.layers(x)).relu()


class Residual(nn.Sequential):
    """Two blocks that could be left out, and dropout."""

    def __init__(self) -> None:
        stem, head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(128, 3)
        super().__init__(stem, Block(), Block(), nn.Dropout(0.3), nn.Flatten(), head)


class Two(nn.Sequential):
    """A narrow and a wide layer."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
            nn.Linear(1024, 3),
        )


class OneName(Killed):
    """Logs validation and test under one name."""

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", 0.25)

    def test_step(self, batch, batch_idx):
        self.log("accuracy", 0.75)


@pytest.fixture
def run(tmp_path):
    return partial(go, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("whole"), "whole")


@pytest.fixture(scope="module")
def whole_rounds(tmp_path_factory):
    return go(tmp_path_factory.mktemp("rounds"), "whole", more=ROUNDS)


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory):
    return go(tmp_path_factory.mktemp("killed"), "killed", kill=23)


@pytest.fixture
def killed(killed_once, tmp_path):
    """A copy of a run that was killed in the third epoch of its blending."""
    shutil.copytree(killed_once.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "killed"


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of a run that is done, with its line."""
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "whole"


DENSE, PRUNE = "dense from epoch 2 of 2", "dense is done; prune from"


# 5 steps an epoch; the dense stage has 10, a level of the blending at most 10.
@pytest.mark.parametrize(
    "kills",
    [
        [(1, None), (3, None), (6, DENSE), (4, DENSE), (7, f"{PRUNE} the start")],
        [
            (18, f"{PRUNE} epoch 2 of 8"),
            (10, f"{PRUNE} epoch 3 of 8"),
            (5, f"{PRUNE} epoch 3 of 8"),
            (3, f"{PRUNE} epoch 3 of 8"),
            (13, f"{PRUNE} epoch 5 of 8"),
            (18, f"{PRUNE} epoch 8 of 8"),
        ],
    ],
)
def test_a_run_killed_anywhere_ends_with_the_same_weights(kills, whole, run, capsys):
    """Killed before a step of each attempt; each says where it goes on."""
    steps, places = zip(*kills, strict=True)
    run("killed", kill=steps[0])
    for kill, place in zip([*steps[1:], -1], places, strict=True):
        capsys.readouterr()
        resumed = run("killed", "--resume", kill=kill)
        lines = capsys.readouterr().out.splitlines()
        told = [line for line in lines if line.startswith("goes on")]
        assert told == ([f"goes on: {place}"] if place else [])
    check_same(whole, resumed, ["dense", "prune"])


def test_the_runs_of_this_file_use_what_could_differ(whole, run):
    """If these did not hold, the comparison above would compare little."""
    metrics = rows(whole / "prune" / "metrics.csv")
    rates = [row["lr"] for row in metrics if "lr" in row]
    assert len(set(rates)) > 2 and 8 >= len(rates) > 4
    other = run("other", "--seed", "4")
    assert not same_weights(whole / "small.safetensors", other / "small.safetensors")


def test_rounds_continue(whole_rounds, run, capsys):
    """Killed in the first, twice in the second, and twice in the third round."""
    whole = whole_rounds
    run("killed", kill=14, more=ROUNDS)
    for kill in (16, 3, 12, 2):
        run("killed", "--resume", kill=kill, more=ROUNDS)
    capsys.readouterr()
    resumed = run("killed", "--resume", more=ROUNDS)
    done = "dense, round_01, round_02 are done; round_03 from epoch 2 of 2"
    assert f"goes on: {done}" in capsys.readouterr().out
    check_same(whole, resumed, ["dense", "round_01", "round_02", "round_03"])
    result = json.loads((whole / "result.json").read_text())
    assert [each["widths"]["0"] for each in result["rounds"]] == [6, 4, 3]
    assert result["plan"]["groups"][0]["kept"] == 3
    assert load_file(whole / "small.safetensors")["0.weight"].shape[0] == 3


@pytest.mark.parametrize("penalty", ["growing", "soft"])
def test_what_comes_before_the_cut_continues(penalty, run, capsys):
    """Killed while a block fades out, twice under the penalty, and in the last training."""
    more = BEFORE_THE_CUT.replace("PENALTY", penalty)
    whole = run("whole", more=more)
    run("killed", kill=17, more=more)
    places = ["depth from epoch 2 of 2", "sparsify from epoch 2 of 3", "sparsify from epoch 2 of 3"]
    for kill, place in zip((12, 3, 12, -1), [*places, "finetune from the start"], strict=True):
        capsys.readouterr()
        resumed = run("killed", "--resume", kill=kill, more=more)
        assert place in capsys.readouterr().out
    check_same(whole, resumed, ["dense", "depth", "sparsify", "finetune"])
    left = [json.loads((each / "result.json").read_text())["left_out"] for each in (whole, resumed)]
    assert left[0] == left[1] and len(left[0]) == 1


def test_a_process_that_is_killed(whole, run, tmp_path):
    """The same with the real signal, which leaves no time to write anything."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "branchprune", "run", str(tmp_path / "config.yaml")]
    command += ["--output", str(tmp_path / "killed"), "--resume"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    last = tmp_path / "killed" / "prune" / "last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    check_same(whole, run("killed", "--resume"), ["dense", "prune"])


def test_a_second_kill_before_the_training_goes_on(whole, killed, run, monkeypatch):
    def setup(self, stage):
        if stage == "fit":
            raise Kill

    monkeypatch.setattr("pytorch_lightning.loggers.CSVLogger.finalize", lambda *_: None)
    monkeypatch.setattr(Killed, "setup", setup)
    run("killed", "--resume", kill=1)
    assert rows(killed / "prune" / "metrics.csv")
    monkeypatch.undo()
    check_same(whole, run("killed", "--resume"), ["dense", "prune"])


def kill_when_renamed(name: str, patch: pytest.MonkeyPatch) -> None:
    """Kill before a file takes another name."""
    replace = Path.replace

    def killed(path, target):
        if path.name == name:
            raise Kill
        return replace(path, target)

    patch.setattr(Path, "replace", killed)


def kill_when_deleted(name: str, patch: pytest.MonkeyPatch) -> None:
    """Kill behind the deletion of a file by Lightning."""
    rm_file = LocalFileSystem.rm_file

    def killed(files, path):
        rm_file(files, path)
        if Path(path).name == name:
            raise Kill

    patch.setattr(LocalFileSystem, "rm_file", killed)


RENAMED_AND_DELETED = [
    (kill_when_renamed, "metrics.csv.kept.part"),
    (kill_when_deleted, "metrics.csv"),
    (kill_when_renamed, "metrics.csv.kept"),
]


@pytest.mark.parametrize(("kind", "name"), RENAMED_AND_DELETED)
def test_a_second_kill_while_the_table_is_written_anew(kind, name, whole, killed, run, monkeypatch):
    for _ in range(2):
        with monkeypatch.context() as patch:
            kind(name, patch)
            run("killed", "--resume", kill=1)
    resumed = run("killed", "--resume")
    check_same(whole, resumed, ["dense", "prune"])
    assert not [*resumed.rglob("*.kept*")]


def test_rows_of_a_training_that_began_anew_are_not_mixed_with_earlier_ones(
    whole, killed, run, monkeypatch
):
    with monkeypatch.context() as patch:
        kill_when_deleted("metrics.csv", patch)
        run("killed", "--resume", kill=1)
    for name in ("last.ckpt", "previous.ckpt"):
        tear(killed / "prune" / name, "cut")
    run("killed", "--resume", kill=18)
    check_same(whole, run("killed", "--resume"), ["dense", "prune"])


def test_a_torn_row_of_the_table_is_left_out(whole, run):
    """A full disk leaves a part of a row, whose epoch may seem to be an earlier one."""
    killed = run("killed", kill=33)
    table = killed / "prune" / "metrics.csv"
    names = table.read_text().splitlines()[0].split(",")
    with table.open("a") as file:
        file.write("," * names.index("epoch") + "0")
    assert len(rows(table)) > 1 and rows(table)[-1] == {"epoch": "0"}
    check_same(whole, run("killed", "--resume"), ["dense", "prune"])


def tear(path: Path, how: str) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:half],
            "empty": b"",
            "zeros": content[:half] + bytes(300) + content[half + 300 :],
        }[how]
    )


@pytest.mark.parametrize("how", ["cut", "empty", "zeros"])
def test_a_torn_checkpoint_is_not_the_one_to_go_on_from(how, killed):
    tear(killed / "prune" / "last.ckpt", how)
    found, said = find_checkpoint(killed / "prune")
    assert found == killed / "prune" / "previous.ckpt"
    assert f"{killed / 'prune' / 'last.ckpt'} is torn" in said


def test_a_torn_checkpoint_costs_an_epoch_and_is_named(whole, killed, run, capsys):
    tear(killed / "prune" / "last.ckpt", "zeros")
    resumed = run("killed", "--resume")
    assert f"{killed / 'prune' / 'last.ckpt'} is torn" in capsys.readouterr().out
    check_same(whole, resumed, ["dense", "prune"])


def test_two_torn_checkpoints_start_the_stage_again(whole, killed, run):
    for name in ("last.ckpt", "previous.ckpt"):
        tear(killed / "prune" / name, "cut")
    check_same(whole, run("killed", "--resume"), ["dense", "prune"])


def test_a_full_disk_is_named_and_costs_no_more_than_an_epoch(
    whole, run, tmp_path, monkeypatch, capsys
):
    save, saved = Trainer.save_checkpoint, []

    def full(trainer, path, **options):
        saved.append(path)
        if len(saved) == 5:
            Path(path).write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, path, **options)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "killed")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "--resume" in error
    folder = tmp_path / "killed" / "prune"
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["last.ckpt", "previous.ckpt"]
    check_same(whole, run("killed", "--resume"), ["dense", "prune"])


@pytest.mark.parametrize(
    ("name", "kill", "left"),
    [
        ("config.yaml.part", -1, None),
        ("dense/finished.json.part", -1, "dense from epoch 2 of 2"),
        ("prune/metrics.csv.kept.part", 23, "dense is done; prune from epoch 3 of 8"),
        ("result.json.part", -1, "dense, prune are done; no training is left"),
        ("report.html.part", -1, "all is done, and shown again"),
    ],
)
def test_a_full_disk_between_the_trainings_is_named(
    name, kill, left, whole, run, tmp_path, monkeypatch, capsys, request
):
    write = Path.write_text

    def full(path, text, **options):
        if path == tmp_path / "killed" / name:
            write(path, text[: len(text) // 2], **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text, **options)

    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "killed")]
    if kill > 0:
        request.getfixturevalue("killed")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        patch.setattr(Killed, "at", -1)
        assert main([*arguments, *(["--resume"] if kill > 0 else [])]) == 1
    error = capsys.readouterr().err
    assert "killed cannot be written: No space left on device; " in error
    assert error.endswith("(--resume continues)\n")
    resumed = run("killed", "--resume")
    check_same(whole, resumed, ["dense", "prune"])
    assert (resumed / "report.html").read_text().rstrip().endswith("</html>")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("goes on")]
    assert told == ([f"goes on: {left}"] if left else [])


def test_a_full_disk_is_named_where_the_weights_are_written(tmp_path, monkeypatch, capsys):
    """The library that writes them has an error of its own."""

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("branchprune.artifacts.serialization.save_file", full)
    monkeypatch.setattr(Killed, "at", -1)
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "killed")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "killed/dense.safetensors: I/O error: No space left on device" in error
    assert "(--resume continues)" in error


def test_an_error_that_is_not_one_of_writing_is_not_called_so(tmp_path, monkeypatch, capsys):
    def missing(self):
        raise FileNotFoundError(errno.ENOENT, "No such file", "image.png")

    monkeypatch.setattr(Data, "test_dataloader", missing)
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert main(["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "killed")]) == 2
    said = capsys.readouterr().err
    assert "FileNotFoundError: [Errno 2] No such file: 'image.png'" in said
    assert "written" not in said


def test_other_settings_are_refused(killed, capsys):
    arguments = ["run", str(killed.parent / "config.yaml"), "--output", str(killed), "--resume"]
    assert main([*arguments, "--prune.widths.keep", "0.25"]) == 2
    assert "prune.widths.keep was None and is 0.25" in capsys.readouterr().err
    assert main([*arguments, "--seed", "4"]) == 2
    assert "seed was 3 and is 4" in capsys.readouterr().err


def test_a_dense_training_alone_may_be_pruned_otherwise_later(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Killed, "steps", 0)
    monkeypatch.setattr(Killed, "at", 7)
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ["dense", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "dense")]
    with pytest.raises(Kill):
        main(arguments)
    again = [*arguments, "--prune.widths.keep", "0.25", "--resume"]
    assert main([*again, "--seed", "4"]) == 2
    assert "seed was 3 and is 4" in capsys.readouterr().err
    monkeypatch.setattr(Killed, "at", -1)
    assert main(again) == 0
    assert DENSE in capsys.readouterr().out


def test_a_dense_training_in_a_run_that_has_pruned_is_refused(killed, capsys):
    arguments = ["dense", str(killed.parent / "config.yaml"), "--output", str(killed), "--resume"]
    assert main([*arguments, "--prune.widths.keep", "0.25"]) == 2
    assert "prune.widths.keep was None and is 0.25" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(run, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    arguments = ["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "mine")]
    assert main([*arguments, "--resume"]) == 2
    assert "no run that could be resumed" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("left", [[], ["config.yaml.part"], ["config.yaml"]])
def test_a_folder_in_which_nothing_was_written_yet_is_a_start(left, run, tmp_path, capsys):
    """What a kill leaves behind `mkdir`, or in the midst of writing the configuration."""
    (tmp_path / "killed").mkdir()
    for name in left:
        (tmp_path / "killed" / name).write_text("")
    run("killed", "--resume", kill=1)
    assert "goes on" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", '{"scores": {"dense": {"v'])
def test_torn_files_count_as_not_finished(text, whole, finished, run):
    for name in ("dense/finished.json", "result.json"):
        (finished / name).write_text(text)
    check_same(whole, run("whole", "--resume"), ["dense", "prune"])


def test_a_finished_run_with_other_settings_is_refused(finished, capsys):
    whole = finished
    lines = whole.parent / "results" / "killed.jsonl"
    before = lines.read_text()
    arguments = ["run", str(whole.parent / "config.yaml"), "--output", str(whole), "--resume"]
    assert main([*arguments, "--prune.widths.keep", "0.25", "--name", "other"]) == 2
    assert "name was 'killed' and is 'other'" in capsys.readouterr().err
    assert main([*arguments, "--prune.widths.keep", "0.25"]) == 2
    said, _, command = capsys.readouterr().err.partition("; to go on with its own: branchprune ")
    assert said.endswith("prune.widths.keep was None and is 0.25")
    assert main(shlex.split(command)) == 0
    assert lines.read_text() == before and len([*lines.parent.iterdir()]) == 1


def test_a_kill_before_the_report_leaves_it_to_the_next_call(finished, run):
    report = finished / "report.html"
    text = report.read_text()
    report.unlink()
    run("whole", "--resume")
    assert report.read_text() == text


def test_rounds_end_with_a_plan_of_all_groups_that_shrank(run):
    """The narrow layer is stuck at 3 of 8 channels long before the wide one is."""
    more = ROUNDS.replace("0.75", "0.85").replace("count: 3", "count: 7")
    more = more.replace("epochs: 2", "epochs: 1")
    more += "model: {class_path: test_resume.Two}"
    folder = run("two", more=more)
    result = json.loads((folder / "result.json").read_text())
    assert "0" not in result["rounds"][-1]["widths"] and "3" in result["rounds"][-1]["widths"]
    state = load_file(folder / "small.safetensors")
    kept = {group["name"]: group["kept"] for group in result["plan"]["groups"]}
    assert kept["0"] == len(state["0.weight"]) and kept["3"] == len(state["3.weight"])
    sizes = [t.numel() for name, t in state.items() if name.endswith((".weight", ".bias"))]
    assert result["plan"]["after"]["params"] == sum(sizes) == result["cost"]["small"]["params"]
    assert all(each["kept"] for each in result["rounds"])


def test_rounds_end_where_nothing_can_shrink(run):
    more = ROUNDS.replace("0.75", "0.6").replace("count: 3", "count: 9")
    more = more.replace("epochs: 2", "epochs: 1")
    result = json.loads((run("all", more=more) / "result.json").read_text())
    assert [each["widths"]["0"] for each in result["rounds"]] == [5, 3, 2, 1]


def test_a_plan_that_is_not_that_of_the_small_model_is_refused(run, monkeypatch, capsys, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.setattr("branchprune.experiments.run.result.count_params", lambda model: 7)
    monkeypatch.setattr(Killed, "at", -1)
    assert main(["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert "the small model has 7 parameters, and its plan says 243" in capsys.readouterr().err


def test_the_same_name_in_validation_and_test_keeps_the_scores_apart(run):
    more = "task: {class_path: test_resume.OneName}\nmetric: {val: accuracy, test: accuracy}\n"
    result = json.loads((run("same", more=more) / "result.json").read_text())
    for score in result["scores"].values():
        assert score["val"] == 0.25 and score.get("test", 0.75) == 0.75


def test_a_finished_run_has_one_line_however_often_it_is_resumed(finished, run, tmp_path):
    whole = finished
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    run("whole", "--resume")
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    [line] = read_lines(tmp_path / "results" / "killed.jsonl")
    result = json.loads((whole / "result.json").read_text())
    assert line["final"] == result["scores"]["small"]["test"]
    assert line["test"] == result["test"] and line["test"].keys() == {"dense", "small"}
    assert line["seed"] == 3 and line["dataset"] == "Data" and line["experiment"] == "killed"
    dense, small = load_file(whole / "dense.safetensors"), load_file(whole / "small.safetensors")
    # Parameters are all but the three entries of BatchNorm's running statistics.
    sizes = [
        sum(t.numel() for k, t in f.items() if k[:2] != "1." or k[2:] in ("weight", "bias"))
        for f in (dense, small)
    ]
    assert line["params_removed"] == pytest.approx(1 - sizes[1] / sizes[0])
    assert line["channels_removed"] == pytest.approx(4 / 11)
    # 16 positions of 3x3 and 128 inputs of 3 classes, and half of both.
    assert line["macs_removed"] == pytest.approx(0.5)
    run("again")
    assert len(read_lines(tmp_path / "results" / "killed.jsonl")) == 2


def test_a_dense_model_whose_test_was_not_stored_whole_lacks_it(run):
    """Folders of earlier versions hold the scores alone."""
    killed = run("killed", kill=12)
    path = killed / "dense" / "finished.json"
    found = json.loads(path.read_text())
    del found["test"], found["crc32"]
    path.write_text(json.dumps(found))
    result = json.loads((run("killed", "--resume") / "result.json").read_text())
    assert result["test"].keys() == {"small"}
    assert result["scores"]["dense"] == found["scores"]


def test_the_commit_is_that_of_the_start(run, monkeypatch):
    """Files that are edited while a run goes on are not what it ran."""
    monkeypatch.setattr(environment, "commit", lambda: "later" if Killed.steps else "start")
    result = json.loads((run("whole") / "result.json").read_text())
    assert Killed.steps and result["commit"] == "start"


def test_macs_of_a_training_step_are_those_of_forward_and_backward():
    """Forward, weight gradients, and input gradients of all but the first layer."""
    cost = TrainingCost()
    task = ClassificationTask(Net(), learning_rate=0.01)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[cost],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, Data())
    convolution, head = 8 * 9 * 16, 128 * 3
    assert cost.macs == 2 * 40 * (2 * convolution + 3 * head)
    assert 0 < cost.waited < cost.seconds
