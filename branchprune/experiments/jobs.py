"""Commands that run side by side within a time budget, the most important first.

A job says itself whether it is done, so what was broken off goes on with the next call.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from branchprune.data.image_cache import VARIABLE


def _always() -> bool:
    return True


def _never() -> bool:
    return False


def _ignored(status: int) -> None:
    return None


@dataclass(frozen=True)
class Job:
    """A command that is run until it is done.

    Args:
        name: Its log is NAME.log in the folder of the runner.
        command: Returns the command; called when the job starts.
        done: Returns whether nothing is left to do.
        ready: Returns whether it can start now.
        stop: Asked while it runs: whether to end it now; then nothing is left to do.
        ended: Called with the exit status where it has ended by itself; below 0: by that signal.
    """

    name: str
    command: Callable[[], Sequence[str]]
    done: Callable[[], bool]
    ready: Callable[[], bool] = _always
    stop: Callable[[], bool] = _never
    ended: Callable[[int], object] = _ignored


class JobRunner:
    """Starts jobs and stops them.

    Args:
        folder: Folder of the logs.
        side_by_side: Jobs that run at a time.
        threads: Threads of each.
        minutes: Time budget; jobs take up to 20 seconds more to end.
        cwd: Folder in which the commands run.
        say: Called with each line of progress.

    Attributes:
        failed: Names of the jobs that ended with an error, or without being done.
    """

    def __init__(
        self,
        folder: Path,
        side_by_side: int,
        threads: int,
        minutes: float,
        cwd: Path,
        say: Callable[[str], object],
    ) -> None:
        self.folder, self.cwd, self.say = folder, cwd, say
        self.side_by_side, self.threads, self.minutes = side_by_side, threads, minutes
        self.failed: set[str] = set()
        self._done: set[str] = set()
        self._running: dict[Job, subprocess.Popen[bytes]] = {}
        self._shared: dict[str, str] = {}

    @property
    def running(self) -> list[str]:
        """Names of the jobs that run now."""
        return [job.name for job in self._running]

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Run until all is done, nothing more can start, or the time is over.

        Args:
            jobs: The most important first. Names are distinct.

        Returns:
            The jobs that are not done.
        """
        end = time.monotonic() + 60 * self.minutes
        before = signal.getsignal(signal.SIGTERM)
        if before == signal.SIG_DFL:  # it would end this process, and jobs would go on alone
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        self.folder.mkdir(parents=True, exist_ok=True)
        images = TemporaryDirectory(prefix=".images-", dir=self.folder)
        self._shared = {VARIABLE: str(Path(images.name).absolute())}
        try:
            while time.monotonic() < end:
                self._collect()
                while len(self._running) < self.side_by_side and (job := self._next(jobs)):
                    self._start(job)
                if not self._running:
                    break
                time.sleep(0.2)
        finally:
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                _end(process)
            self._running.clear()
            images.cleanup()
            signal.signal(signal.SIGTERM, before)
        return [job for job in jobs if not self._is_done(job)]

    def _is_done(self, job: Job) -> bool:
        """Ask a job, until it says yes: what it reads may be long."""
        if job.name not in self._done and job.done():
            self._done.add(job.name)
        return job.name in self._done

    def _next(self, jobs: Sequence[Job]) -> Job | None:
        """Return the first job that can run now."""
        for job in jobs:
            if job in self._running or job.name in self.failed | self._done:
                continue
            if job.ready() and not self._is_done(job):
                return job
        return None

    def _start(self, job: Job) -> None:
        command, log = job.command(), self.folder / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = self._shared | os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with log.open("ab") as file:
            self._running[job] = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, cwd=self.cwd
            )
        self.say(f"{job.name} begins")

    def _collect(self) -> None:
        for job, process in [*self._running.items()]:
            if process.poll() is None:
                if job.stop():
                    self._stop(job, process)
                continue
            del self._running[job]
            job.ended(process.returncode)
            failed = process.returncode != 0 or not self._is_done(job)
            self.failed |= {job.name} if failed else set()
            self.say(f"{job.name} {'FAILED, see its log' if failed else 'is done'}")

    def _stop(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        _end(process)
        del self._running[job]
        self._done.add(job.name)
        self.say(f"{job.name} is stopped")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was told to end, and end it if it does not."""
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def shown(path: Path, folder: Path) -> str:
    """Return a path relative to the folder in which a command runs, where it is inside."""
    path = Path(os.path.normpath(folder / path))
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
