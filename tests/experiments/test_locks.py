"""Two processes at one file or folder: lines are whole, and one of two runs is refused."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from branchprune.errors import PruneError
from branchprune.experiments.files import append_line, read_lines
from branchprune.experiments.locks import locked
from branchprune.experiments.run.results_file import add_line

HOLD = """
import sys, time
from pathlib import Path
from branchprune.experiments.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
FORK = multiprocessing.get_context("fork")


def write(path, start, number):
    start.wait()
    for i in range(40):
        append_line(path, {"process": number, "line": i, "text": "x" * 3000})


def write_one(path, start, _):
    start.wait()
    from branchprune.experiments.run import results_file

    results_file.make_line = lambda result: dict(result)
    add_line(path, {"seed": 0, "text": "x" * 30000})


def together(target, path, count):
    start = FORK.Event()
    processes = [FORK.Process(target=target, args=(path, start, n)) for n in range(count)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_lines_of_several_processes_are_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"torn": ')
    together(write, path, 4)
    found = {(line["process"], line["line"]) for line in read_lines(path)}
    assert found == {(n, i) for n in range(4) for i in range(40)}
    assert len(path.read_text().splitlines()) == 161


def test_one_result_has_one_line_whoever_writes_it(tmp_path):
    for attempt in range(5):
        path = tmp_path / f"{attempt}.jsonl"
        together(write_one, path, 4)
        assert len(read_lines(path)) == 1


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "runs" / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_which_one_holds_a_folder(holder, tmp_path):
    folder = tmp_path / "runs" / "run"
    host, year = os.uname().nodename, time.strftime("%Y", time.gmtime())
    with (
        pytest.raises(
            PruneError,
            match=rf"runs/run is written by process {holder.pid} on {host}, since {year}",
        ),
        locked(folder),
    ):
        pass
    with locked(tmp_path / "runs" / "other"):
        pass
    assert [path.name for path in folder.parent.iterdir()] == [".run.lock"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(folder):  # the file of a killed process hinders nobody
        assert json.loads((folder.parent / ".run.lock").read_text())["pid"] == os.getpid()
    assert not [*folder.parent.iterdir()]


def test_a_process_is_kept_from_itself_and_leaves_nothing(tmp_path):
    folder = tmp_path / "new" / "runs" / "run"
    with (
        locked(folder),
        pytest.raises(PruneError, match=f"process {os.getpid()} on"),
        locked(folder),
    ):
        pass
    assert not [*tmp_path.iterdir()]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PruneError, match=r"file/run cannot be written: "),
        locked(tmp_path / "file" / "run"),
    ):
        pass


def race(folder, start, number):
    inside = folder.with_name("inside")
    start.wait()
    for _ in range(500):
        with suppress(PruneError), locked(folder):
            inside.touch(exist_ok=False)
            time.sleep(0.0002)
            inside.unlink()


def test_never_two_hold_a_folder(tmp_path):
    """Also not where the one deletes the lock file that the other has just opened."""
    together(race, tmp_path / "run", 5)
    assert not [p for p in Path(tmp_path).iterdir()]
