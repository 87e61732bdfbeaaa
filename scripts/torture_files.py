"""Files with a flipped bit or a part missing: read as they were, refused, or quietly wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torture_runs import Net
from torture_trial import Trial

import branchprune as bp
from branchprune.experiments.files import (
    alone_with,
    read_lines,
    read_object,
    sealed,
    write_line,
    write_whole,
)
from branchprune.experiments.run.load_weights import load_weights

Read = Callable[[Path], Any]
LINES = [{"seed": i, "final": 0.1 * i, "curve": [{"val": i / 7}], "metric": "a"} for i in range(3)]


def attack(path: Path, read: Read, same: Callable[[Any, Any], bool], count: int) -> Iterator[Trial]:
    """Damage a file in many ways, and read it.

    Args:
        path: The file.
        read: Reads it.
        same: Whether what was read is as it was, or lacks no more than what is told.
        count: How often a bit is flipped, and how often the end is cut off.
    """
    content, right, chance = path.read_bytes(), read(path), random.Random(0)
    for i in range(2 * count):
        damaged = bytearray(content)
        if i % 2:
            at, bit = chance.randrange(len(content)), chance.randrange(8)
            damaged[at] ^= 1 << bit
            what = f"{path.name}: bit {bit} of byte {at} flipped"
        else:
            del damaged[chance.randrange(len(content)) :]
            what = f"{path.name}: {len(damaged)} bytes left"
        path.write_bytes(damaged)
        try:
            found = read(path)
        except bp.PruneError as error:
            clear = str(path) in str(error) and "\n" not in str(error)
            yield Trial("refused" if clear else "wrong", f"{what}: {error}")
        except Exception as error:
            yield Trial("wrong", f"{what}: {type(error).__name__}: {error}")
        else:
            yield Trial("survived" if same(found, right) else "wrong", what)
    path.write_bytes(content)


def attacks(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], Iterator[Trial]]]]:
    """Yield what is attacked, and what makes the trials: models, checkpoints, lines, records.

    Args:
        folder: Where to work.
        count: How often a bit of each is flipped, and how often the end is cut off.
    """
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = Net().eval()
    bp.save(model, saved := folder / "small.safetensors")
    torch.save({"state_dict": model.state_dict()}, checkpoint := folder / "model.ckpt")
    with alone_with(lines := folder / "results.jsonl") as file:
        for line in LINES:
            write_line(file, sealed(line))
    write_whole(record := folder / "finished.json", json.dumps(sealed(LINES[1]), indent=1))
    kinds: dict[str, tuple[Path, Read, Callable[[Any, Any], bool]]] = {
        "models of `bp.save`": (saved, lambda path: bp.load(Net(), path), _same_weights),
        "checkpoints of `torch.save`": (checkpoint, _with_weights, _same_weights),
        "lines of results": (lines, read_lines, _lacks_lines_at_most),
        "records of stages": (record, read_object, _same_or_none),
    }
    for name, (path, read, same) in kinds.items():
        yield name, partial(attack, path, read, same, count)


def _with_weights(path: Path) -> nn.Module:
    model = Net()
    load_weights(model, path)
    return model


def _same_weights(found: nn.Module, right: nn.Module) -> bool:
    expected = right.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


def _lacks_lines_at_most(found: list[Any], right: list[Any]) -> bool:
    """Return whether each line is as it was; one that broke off is missing, and run anew."""
    return all(any(_holds(line, each) for each in right) for line in found)


def _same_or_none(found: Any, right: Any) -> bool:
    """Return whether a record is as it was; without it a stage begins anew."""
    return found is None or _holds(found, right)


def _holds(found: Any, right: Any) -> bool:
    """Return whether everything is there, beside what is left of the name of a checksum."""
    return all(key in found and found[key] == value for key, value in right.items())
