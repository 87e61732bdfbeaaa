"""Jobs side by side: order, budget of time, what failed, and what ends with the caller."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from branchprune.experiments import jobs
from branchprune.experiments.jobs import Job, JobRunner, shown

FORK = multiprocessing.get_context("fork")
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
folder, name, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def note(what):
    row = [what, name, time.monotonic(), os.environ["OMP_NUM_THREADS"], os.getcwd()]
    row += [os.environ["BRANCHPRUNE_IMAGE_CACHE"]]
    with (folder / "log").open("a") as file:
        file.write(json.dumps(row) + "\\n")
signal.signal(signal.SIGTERM, lambda *_: (note("terminated"), sys.exit(143)))
note("begins")
print("this is", name)
if how == "hang":
    time.sleep(60)
if how == "slow":
    time.sleep(0.4)
if how == "fail":
    sys.exit(3)
if how != "silent":
    (folder / f"{name}.done").touch()
note("ends")
if how == "fail late":
    sys.exit(3)
"""


class World:
    """A folder, and jobs that note there what they do."""

    def __init__(self, path):
        self.path, self.said = path, []
        (path / "program.py").write_text(PROGRAM)

    def job(self, name, how="ok", **settings):
        command = [sys.executable, str(self.path / "program.py"), str(self.path), name, how]
        done = self.path / f"{name}.done"
        return Job(name, **{"command": lambda: command, "done": done.exists, **settings})

    def runner(self, side_by_side=1, threads=1, minutes=1e6):
        logs = self.path / "logs"
        return JobRunner(logs, side_by_side, threads, minutes, self.path, self.said.append)

    def rows(self, what="begins"):
        path = self.path / "log"
        rows = [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if row[0] == what]

    def names(self, what="begins"):
        return [row[1] for row in self.rows(what)]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_jobs_run_in_order_and_what_is_done_is_not_run_again(world):
    (world.path / "b.done").touch()
    runner = world.runner(threads=3)
    assert runner.run([world.job(name) for name in "cba"]) == []
    assert world.names() == ["c", "a"]
    assert [row[3:5] for row in world.rows()] == [["3", str(world.path)]] * 2
    assert world.said == ["c begins", "c is done", "a begins", "a is done"]
    assert (world.path / "logs" / "c.log").read_text() == "this is c\n"
    assert runner.failed == set()


@pytest.mark.parametrize("side_by_side", [1, 2, 3])
def test_no_more_side_by_side_than_allowed(world, side_by_side):
    assert world.runner(side_by_side).run([world.job(name, "slow") for name in "abcd"]) == []
    changes = [(row[2], 1) for row in world.rows()] + [(row[2], -1) for row in world.rows("ends")]
    running, most = 0, 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    assert most == side_by_side


def test_a_job_that_is_to_stop_ends_and_has_not_failed(world):
    runner, ended = world.runner(), []
    bad = world.job("bad", "hang", stop=lambda: world.names() == ["bad"], ended=ended.append)
    assert runner.run([bad, world.job("good", ended=ended.append)]) == []
    assert world.names("terminated") == ["bad"] and world.names() == ["bad", "good"]
    assert world.said[:3] == ["bad begins", "bad is stopped", "good begins"]
    assert (runner.failed, ended) == (set(), [0])


def test_it_is_told_how_a_job_has_ended(world):
    ended, kill = [], ["sh", "-c", "kill -9 $$"]
    killed = world.job("killed", command=lambda: kill, ended=ended.append)
    world.runner().run([killed, world.job("bad", "fail", ended=ended.append)])
    assert ended == [-9, 3]


@pytest.mark.parametrize("how", ["fail", "silent"])
def test_a_job_that_fails_is_named_and_the_others_go_on(world, how):
    runner, bad = world.runner(), world.job("bad", how)
    assert runner.run([bad, world.job("good")]) == [bad]
    assert runner.failed == {"bad"}
    assert world.names() == ["bad", "good"]
    assert "bad FAILED, see its log" in world.said and "good is done" in world.said


def test_a_job_that_fails_after_all_is_done_has_failed(world):
    runner = world.runner()
    assert runner.run([world.job("bad", "fail late")]) == []
    assert runner.failed == {"bad"} and world.said[1] == "bad FAILED, see its log"


def test_the_log_of_an_earlier_call_is_kept(world):
    for _ in range(2):
        world.runner().run([world.job("a", "silent")])
    assert (world.path / "logs" / "a.log").read_text() == 2 * "this is a\n"


def test_a_job_waits_until_it_is_ready_and_its_command_is_made_then(world):
    made = []

    def command():
        made.append((world.path / "first.done").exists())
        return ["true"]

    late = Job("late", command, lambda: bool(made), (world.path / "first.done").exists)
    assert world.runner(2).run([late, world.job("first", "slow")]) == []
    assert made == [True]


def test_a_job_that_never_becomes_ready_does_not_hold_up_the_end(world):
    first = world.job("first", "fail")
    child = world.job("child", ready=(world.path / "first.done").exists)
    runner = world.runner(2)
    assert runner.run([first, child]) == [first, child]
    assert runner.failed == {"first"} and world.names() == ["first"]


def test_a_job_that_is_done_is_asked_once(world):
    asked = []

    def done():
        asked.append(1)
        return True

    jobs_ = [Job("a", list, done), world.job("b", "slow"), world.job("c", "slow")]
    assert world.runner().run(jobs_) == []
    assert len(asked) == 1


def test_the_time_is_over(world, monkeypatch):
    timer = []

    def sleep(seconds):  # the time is over as soon as the job runs
        timer.append(1e9 if world.names() else 0)

    monkeypatch.setattr(jobs.time, "sleep", sleep)
    monkeypatch.setattr(jobs.time, "monotonic", lambda: sum(timer))
    runner, hanging = world.runner(minutes=5), world.job("a", "hang")
    assert runner.run([hanging, world.job("b")])[0] == hanging
    assert world.names("terminated") == ["a"] and world.names() == ["a"]
    assert runner.failed == set()


def test_a_job_that_does_not_end_is_killed():
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on'); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"on\n"
    process.terminate()
    begun, wait = time.monotonic(), process.wait
    process.wait = lambda timeout=None: wait(0.2 if timeout else None)
    jobs._end(process)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL and time.monotonic() - begun < 20


def test_a_caller_that_is_terminated_ends_its_jobs(world):
    runner, hanging = world.runner(), world.job("a", "hang")
    caller = FORK.Process(target=runner.run, args=([hanging],), daemon=True)
    caller.start()  # a copy of this process, which has imported all
    end = time.monotonic() + 60
    while not world.names() and time.monotonic() < end:
        time.sleep(0.05)
    caller.terminate()
    caller.join(30)
    assert caller.exitcode == 143
    assert world.names("terminated") == ["a"]


def test_the_callers_own_signal_handler_comes_back(world):
    before = signal.getsignal(signal.SIGTERM)
    world.runner().run([world.job("a")])
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_that_the_caller_has_stays_while_jobs_run(world):
    seen = []

    def command():
        seen.append(signal.getsignal(signal.SIGTERM))
        return ["true"]

    def own(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    try:
        world.runner().run([Job("a", command, lambda: bool(seen))])
        assert seen == [own] and signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_in_a_command_ends_the_others(world):
    def command():
        while not world.names():
            time.sleep(0.02)
        raise RuntimeError("no command")

    runner = world.runner(2)
    with pytest.raises(RuntimeError, match="no command"):
        runner.run([world.job("a", "hang"), Job("b", command, lambda: False)])
    assert world.names("terminated") == ["a"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.yaml", "a/b.yaml"),
        ("/home/me/a/../b.yaml", "b.yaml"),
        ("/home/me/../you/b.yaml", "/home/you/b.yaml"),
        ("../you", "/home/you"),
        ("/home/mean/b", "/home/mean/b"),
    ],
)
def test_paths_are_shown_relative_where_they_are_inside(path, expected):
    assert shown(Path(path), Path("/home/me")) == expected


def test_jobs_share_a_folder_of_decoded_images(tmp_path, monkeypatch):
    monkeypatch.delenv("BRANCHPRUNE_IMAGE_CACHE", raising=False)
    world = World(tmp_path)
    world.runner().run([world.job("a"), world.job("b")])
    [folder] = {Path(row[-1]) for row in world.rows()}
    assert folder.parent == tmp_path / "logs" and not folder.exists()
    monkeypatch.setenv("BRANCHPRUNE_IMAGE_CACHE", str(tmp_path / "mine"))
    world.runner().run([world.job("c")])
    assert world.rows()[-1][-1] == str(tmp_path / "mine")
