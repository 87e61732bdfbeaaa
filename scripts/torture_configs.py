"""Configurations with a mistake in them, and what `branchprune run` makes of each."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torture_trial import Trial, is_clear

COMMON = """
name: torture
model: {class_path: branchprune.models.VGG, init_args: {stages: [[4], [8]], classes: 10,
  in_channels: 1}}
data: {class_path: branchprune.data.Digits, init_args: {batch_size: 256}}
task: {class_path: branchprune.lightning.ClassificationTask, init_args: {optimizer: sgd,
  learning_rate: 0.05, schedule: cosine}}
metric: {val: metric/val_acc, test: metric/test_acc, label: accuracy, mode: max, format: percent}
dense: {epochs: 1}
seed: 0
accelerator: cpu
precision: 32-true
"""
PRUNE = (
    "{widths: {keep: 0.5, multiple_of: 2}, criterion: {name: l1}, blend: {levels: [0.5, 0.0], "
    "hold: 1, monitor: metric/val_acc_branch, mixing: sample, recalibrate: 1, average: 0.5}}",
    "{widths: {keep: {'': 0.5, features.0: 0.5}, exclude: [classifier]}, criterion: {name: taylor, "
    "calibration: 1, fit: 1}, cut: {}, finetune: {epochs: 1, average: 0.9}, "
    "task: {learning_rate: 0.01, teacher_weight: 0.5, temperature: 2.0}}",
    "{widths: {keep: 0.7}, cut: {}, sparsify: {epochs: 1, penalty: bn_scale, weight: 0.0001}, "
    "finetune: {epochs: 1}, rounds: {max_drop: null, count: 2, gradual: true}, cost: {epochs: 9}}",
    "{widths: {keep: 0.5}, blend: {levels: {linear: 2}, hold: {class_path: "
    "branchprune.blending.schedules.Plateau, init_args: {max_epochs: 1, patience: 1}}, "
    "restarts: [0.01], learning_rate: restart, thaw_at: 0.5, matching: 0.1}}",
)
"""Sections `prune` of configurations that run, of every algorithm and stage."""
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 10**30, 0.5, -0.5, 1.5, float("nan"), float("inf")),
    *("", "text", "nan", "1e400", "a.b.c", "os.getcwd", "torch.nn.ReLU", "math.pi", "/dev/null/x"),
    *("√\u0000", "--seed", "2020-13-45", b"bytes"),
    *([], [None], [1, 2], [[]], ["text"], {}, {"a": 1}, {"": None}, {1: 2}, {"class_path": 3}),
    *({"class_path": "torch.nn.Conv2d"}, {"class_path": "x.Y", "init_args": []}),
)
BOMB = "bomb: &a0 [x, x]\n" + "".join(f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
AS_TRIAL = {"ran": "survived", "stopped": "survived", "refused": "refused"}
LONGEST, WAITING = 30, 900
"""Seconds of a processor, and of any clock, after which a run is ended."""
MEMORY = 12 * 2**30
"""Bytes of addresses that a run may have."""


@dataclass(frozen=True)
class Mutant:
    """A configuration with a mistake.

    Attributes:
        what: The mistake.
        text: The file.
    """

    what: str
    text: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        end: "ran", "refused", "refused late" (it had begun to train), "traceback", or "stopped"
            (it still trained when its time was over).
        said: What it wrote to standard error.
    """

    end: str
    said: str


def mutants(count: int, seed: int) -> Iterator[Mutant]:
    """Yield configurations with a mistake each; equal seeds give equal ones."""
    chance = random.Random(seed)
    for _ in range(count):
        settings = yaml.safe_load(COMMON) | {"prune": yaml.safe_load(chance.choice(PRUNE))}
        change = chance.choice((*[_set] * 6, _delete, _misspell, _move, _swap, *[_write] * 2))
        yield change(settings, chance)


def _paths(value: Any, within: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value that is nested in another."""
    items = [*value.items()] if isinstance(value, dict) else []
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield (*within, key)
        yield from _paths(inner, (*within, key))


def _around(settings: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        settings = settings[key]
    return settings


def _dumped(what: str, settings: Any) -> Mutant:
    return Mutant(what, yaml.safe_dump(settings, allow_unicode=True, sort_keys=False).encode())


def _set(settings: Any, chance: random.Random) -> Mutant:
    path, odd = chance.choice([*_paths(settings)]), deepcopy(chance.choice(ODD))
    _around(settings, path)[path[-1]] = odd
    return _dumped(f"{'.'.join(map(str, path))} = {odd!r}", settings)


def _delete(settings: Any, chance: random.Random) -> Mutant:
    path = chance.choice([*_paths(settings)])
    del _around(settings, path)[path[-1]]
    return _dumped(f"without {'.'.join(map(str, path))}", settings)


def _misspell(settings: Any, chance: random.Random) -> Mutant:
    path = chance.choice([path for path in _paths(settings) if isinstance(path[-1], str)])
    around = _around(settings, path)
    value, name = around.pop(path[-1]), f"{path[-1]}x"
    around[name] = value
    return _dumped(f"{'.'.join(map(str, path))} as {name}", settings)


def _move(settings: Any, chance: random.Random) -> Mutant:
    paths = [*_paths(settings)]
    path = chance.choice(paths)
    value = _around(settings, path)
    moved = value.pop(path[-1])
    into = chance.choice([p for p in _paths(settings) if isinstance(_inner(settings, p), dict)])
    _inner(settings, into)[str(path[-1])] = moved
    return _dumped(f"{'.'.join(map(str, path))} in {'.'.join(map(str, into))}", settings)


def _inner(settings: Any, path: tuple[Any, ...]) -> Any:
    return _around(settings, path)[path[-1]]


def _swap(settings: Any, chance: random.Random) -> Mutant:
    leaves = [p for p in _paths(settings) if not isinstance(_inner(settings, p), dict | list)]
    one, other = chance.sample(leaves, 2)
    values = _inner(settings, one), _inner(settings, other)
    for path, value in zip((other, one), values, strict=True):
        _around(settings, path)[path[-1]] = value
    return _dumped(f"{'.'.join(map(str, one))} for {'.'.join(map(str, other))}", settings)


def _write(settings: Any, chance: random.Random) -> Mutant:
    """Change the text instead of what it says."""
    text = yaml.safe_dump(settings, sort_keys=False).encode()
    place, line = chance.randrange(len(text)), b"\n" + chance.choice(text.splitlines()) + b"\n"
    changed: dict[str, Callable[[], bytes]] = {
        "cut off": lambda: text[:place],
        "a line twice": lambda: text + line,
        "a line less": lambda: text.replace(line, b"\n", 1),
        "a byte": lambda: text[:place] + bytes([chance.randrange(256)]) + text[place + 1 :],
        "a tab": lambda: text[:place] + b"\t" + text[place:],
        "a tag": lambda: text.replace(b": ", b": !!python/object/apply:os.getcwd ", 1),
        "an alias bomb": lambda: text + BOMB.encode(),
        "an endless alias": lambda: text + b"name: &a [*a]\n",
        "deep brackets": lambda: text + b"extra: " + b"[" * 5000,
        "two documents": lambda: text + b"---\n" + text,
    }
    what = chance.choice([*changed])
    return Mutant(f"{what} at {place}", changed[what]())


def outcome(mutant: Mutant, folder: Path) -> Outcome:
    """Run a mutant in a process of its own.

    Args:
        mutant: The configuration.
        folder: An empty folder.
    """
    (folder / "mutant.yaml").write_bytes(mutant.text)
    process = os.fork()
    if not process:
        _child(folder)
    _, status = os.waitpid(process, 0)
    said = (folder / "stderr").read_text(errors="replace")
    trained = (folder / "run").exists()
    if os.WIFSIGNALED(status):
        stopped = os.WTERMSIG(status) == signal.SIGPROF and trained
        return Outcome("stopped" if stopped else "traceback", f"{said}\nsignal {status}")
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return Outcome("ran", said)
    last = said.rstrip().rpartition("\n")[2]
    if code != 2 or not is_clear(last) or "Traceback" in said:
        return Outcome("traceback", said)
    return Outcome("refused late" if trained else "refused", last)


def _stream(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)


def _child(folder: Path) -> None:
    code = 70
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
        sys.stdout, sys.stderr = map(_stream, (1, 2))
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        signal.alarm(WAITING)
        from branchprune.cli import main as command

        code = command(["run", "mutant.yaml", "--output", "run"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def attack(count: int, seed: int) -> Iterator[Trial]:
    """Run configurations with a mistake: each must run, or be refused before anything is trained.

    Args:
        count: How many.
        seed: Which.
    """
    for mutant in mutants(count, seed):
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(mutant, Path(folder))
        said = f"{mutant.what}: {found.end}: {found.said.strip()}"
        yield Trial(AS_TRIAL.get(found.end, "wrong"), said)
