"""What a run writes about itself, and what a kill in the midst of it leaves."""

import json
import resource
import subprocess

import pytest
import torch

import branchprune as bp
from branchprune.experiments import environment
from branchprune.experiments.files import append_line, read_lines, read_object, write_whole
from branchprune.experiments.run.folder import check_folder, make_folder


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_whole(path, '{"a": 1}')
    assert read_object(path) == {"a": 1} and [*tmp_path.iterdir()] == [path]

    def killed(part, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, '{"a": 2}')
    assert read_object(path) == {"a": 1}
    write_whole(path, '{"a": 3}')
    assert read_object(path) == {"a": 3} and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("text", ["", "{", '{"a": "b', "[1]", "1"])
def test_what_is_no_object_is_none(text, tmp_path):
    (tmp_path / "torn.json").write_text(text)
    assert read_object(tmp_path / "torn.json") is None
    assert read_object(tmp_path / "missing.json") is None


LINE = {"seed": 1, "curve": [{"val": 0.5}, {"val": 0.25}], "metric": "PSNR in dB"}


def test_a_line_that_breaks_off_anywhere_is_left_out(tmp_path):
    text = json.dumps(LINE)
    for end in range(1, len(text)):
        path = tmp_path / f"{end}.jsonl"
        path.write_text(f"{text}\n{text[:end]}")
        assert read_lines(path) == [LINE]
        append_line(path, {"seed": 2})
        append_line(path, {"seed": 3})
        assert read_lines(path) == [LINE, {"seed": 2}, {"seed": 3}]


def test_lines_are_added_to_what_is_there(tmp_path):
    path = tmp_path / "lines.jsonl"
    for seed in range(3):
        append_line(path, {"seed": seed})
    assert path.read_text() == '{"seed": 0}\n{"seed": 1}\n{"seed": 2}\n'
    path.write_text(json.dumps(LINE))  # whole, but for the end of the line
    append_line(path, {"seed": 0})
    assert read_lines(path) == [LINE, {"seed": 0}]


def test_a_line_for_which_the_disk_has_no_room_is_an_error(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"seed": 0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OSError, match=r"No space left on device.*lines\.jsonl"):
            append_line(path, {"seed": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_line(path, {"seed": 1})
    assert read_lines(path) == [{"seed": 0}, {"seed": 1}]


@pytest.mark.parametrize("text", ["seed,final", "[1]", "3"])
def test_a_file_of_something_else_is_refused(text, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{text}\n")
    with pytest.raises(bp.PruneError, match=r"lines.jsonl, line 2"):
        read_lines(path)


@pytest.mark.parametrize("file", ["result.json", "small.safetensors", "thesis.tex"])
def test_a_folder_without_configuration_but_with_content_is_no_start(file, tmp_path):
    check_folder(tmp_path, overwrite=False, resumed="seed: 0")
    (tmp_path / file).write_text("")
    with pytest.raises(bp.PruneError, match="no run that could be resumed"):
        check_folder(tmp_path, overwrite=False, resumed="seed: 0")


def test_a_half_written_file_does_not_hinder_overwriting(tmp_path):
    for name in ("config.yaml.part", "result.json.part", "report.html.part"):
        (tmp_path / name).write_text("{")
    check_folder(tmp_path, overwrite=True)


LEFT_BY_KILLS = (
    *("config.yaml.part", ".small.safetensors.0123abcd.part", "tmpab_c1234/dense.safetensors"),
    *("dense/part.ckpt", "dense/metrics.csv.kept.part", "round_01_prune/finished.json.part"),
    *("prune/.small.safetensors.0123abcd.part", "prune/tmpab_c1234/small.safetensors"),
)


def test_what_a_kill_leaves_hinders_nobody(tmp_path):
    for name in LEFT_BY_KILLS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{")
    check_folder(tmp_path, overwrite=True)
    (tmp_path / "config.yaml").write_text("seed: 0")
    check_folder(tmp_path, overwrite=False, resumed="seed: 0")
    (tmp_path / "my.part").write_text("not of a run")
    make_folder(tmp_path, resume=True)
    assert [path.name for path in tmp_path.rglob("*.part")] == ["my.part"]


@pytest.mark.parametrize(
    "name", ["dense/notes.txt", "prune/branch_alone/a/b", "round_table/a", "tmp/a", "small"]
)
def test_what_a_run_did_not_make_is_never_replaced(name, tmp_path):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("years of work")
    first = name.split("/")[0] if name.startswith(("round", "tmp")) else name.removesuffix("/b")
    with pytest.raises(bp.PruneError, match=rf"is not a run alone: it holds {first}"):
        check_folder(tmp_path / "run", overwrite=True)


def test_a_run_may_go_on_under_another_path(tmp_path):
    (tmp_path / "config.yaml").write_text("{output: a, results: r.jsonl, seed: 0}")
    check_folder(tmp_path, overwrite=False, resumed="{output: b, results: null, seed: 0}")
    with pytest.raises(bp.PruneError, match="seed was 0 and is 1"):
        check_folder(tmp_path, overwrite=False, resumed="{output: a, results: r.jsonl, seed: 1}")


def test_a_folder_beside_it_that_is_no_run_is_not_replaced(tmp_path):
    for name, file in (("run", "result.json"), ("run.previous", "thesis.tex")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("years of work")
    with pytest.raises(bp.PruneError, match=r"run\.previous is not a run alone: .* thesis\.tex"):
        make_folder(tmp_path / "run")
    assert (tmp_path / "run.previous" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "run" / "result.json").exists()


def git(folder, *args):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *identity, *args]
    subprocess.run(command, check=True, capture_output=True)


def test_a_commit_with_changes_is_called_dirty(tmp_path):
    package, results = tmp_path / "package", tmp_path / "scripts" / "results"
    files = [package / "code.py", results / "a.jsonl", tmp_path / "README.md"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    assert environment.commit(package) is None
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = environment.commit(package)
    assert clean is not None and clean.isalnum()
    for file in (*files[1:], package / "untracked.py"):  # what runs write, and what git ignores
        file.write_text("after")
    assert environment.commit(package) == clean
    files[0].write_text("after")
    assert environment.commit(package) == f"{clean}-dirty"


@pytest.mark.parametrize("there", [True, False])
def test_hardware_is_that_of_the_accelerator(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    for accelerator in ("auto", "gpu", "cuda", "cpu"):
        used = there and accelerator != "cpu"
        assert environment.device_of(accelerator).type == ("cuda" if used else "cpu")
        assert ("NVIDIA H200" in environment.hardware(accelerator)) == used
    assert ("NVIDIA H200" in environment.hardware()) == there


@pytest.mark.parametrize("fast", ["true", "false"])
def test_a_dry_run_in_the_way_is_called_so(fast, tmp_path):
    (tmp_path / "config.yaml").write_text(f"name: x\nfast: {fast}\n")
    with pytest.raises(bp.PruneError) as error:
        check_folder(tmp_path, False)
    assert (" exists (a dry run); give another, or --overw" in str(error.value)) == (fast == "true")
    assert ("--resume" in str(error.value)) == (fast == "false")
