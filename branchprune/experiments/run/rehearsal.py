"""A run in small before the run: whatever can fail at its end is tried at its beginning."""

from __future__ import annotations

import gc
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor

from branchprune.criteria.named import CLASSED
from branchprune.errors import PruneError
from branchprune.experiments.files import nearest_existing
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.depth import AUTO
from branchprune.experiments.run.prune_config import PruneConfig
from branchprune.graph.inputs import copied

BATCHES = 2
"""Training batches that each stage, each criterion and each fit sees."""
NOT_COPIED = (type, ModuleType, FunctionType, Trainer, str, int, float)
"""What a deep copy leaves as it is, and what no copy of data needs."""


@contextmanager
def rehearsal(config: RunConfig) -> Iterator[RunConfig]:
    """Give a configuration in small, whose folder is removed behind a `with` block.

    It trains a copy of the model for two batches a stage, and its tasks and data are copies, so
    nothing of the run itself is changed but the state of torch's and Python's random generators.

    Args:
        config: That of the run, whose output folder is not there yet.

    Raises:
        PruneError: The folder cannot be written, or what the run writes, such as its checkpoints,
            is more than is free there.
    """
    place = nearest_existing(config.output.absolute().parent)
    try:
        folder = tempfile.TemporaryDirectory(dir=place, prefix=f".{config.output.name}.rehearsal-")
    except OSError as error:
        raise PruneError(
            f"output folder {config.output} cannot be written: {error.strerror}"
        ) from error
    with folder as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run gives them again
        yield _in_small(config, Path(name))
        _check_space(config.output, Path(name))


def _in_small(config: RunConfig, output: Path) -> RunConfig:
    """Return the configuration of a run of few batches, with copies of all that is trained."""
    return replace(
        config,
        output=output,
        results=None,
        fast=True,
        compile=False,
        model=copied(config.model),
        data=copied_data(config.data),
        task=deepcopy(config.task),
        prune_task=deepcopy(config.prune_task),
        prune=pruning_in_small(config.prune),
    )


def copied_data(data: LightningDataModule) -> LightningDataModule:
    """Return a copy of a data module that shares its tensors and arrays, or itself.

    A loader that counts, draws from a generator of its own or can be read once would begin
    elsewhere in the run. What cannot be copied, such as open files, is used as it is.
    """
    memo: dict[int, Any] = {id(held): held for held in (*_arrays_in(data), data.trainer)}
    try:
        return deepcopy(data, memo)
    except Exception:
        return data


def _arrays_in(root: object) -> list[Any]:
    """Return the tensors and arrays that an object refers to, however deeply."""
    seen: dict[int, Any] = {}
    found, rest = [], [root]
    while rest:
        each = rest.pop()
        if id(each) in seen or isinstance(each, NOT_COPIED):
            continue
        seen[id(each)] = each
        if isinstance(each, Tensor) or hasattr(type(each), "__array_interface__"):
            found.append(each)
        else:
            rest += gc.get_referents(each)
    return found


def pruning_in_small(prune: PruneConfig) -> PruneConfig:
    """Return a pruning in which little is looked at or tried, and no round loses too much."""
    criterion, rounds, depth = prune.criterion, prune.rounds, prune.depth
    if criterion is not None:
        batches = {name: min(BATCHES, getattr(criterion, name)) for name in ("calibration", "fit")}
        if criterion.name in CLASSED:
            batches["calibration"] = criterion.calibration  # two batches may be of one class
        criterion = replace(criterion, **batches)
    if rounds is not None:
        rounds = replace(rounds, max_drop=None)
    if depth is not None:
        few = 1 if depth.blocks == AUTO else depth.blocks
        depth = replace(depth, blocks=few, calibration=min(BATCHES, depth.calibration))
    return replace(prune, criterion=criterion, rounds=rounds, depth=depth)


def _check_space(output: Path, rehearsed: Path) -> None:
    """Raise if what a rehearsal has written is more than is left for the run."""
    needed = sum(path.stat().st_size for path in rehearsed.rglob("*") if path.is_file())
    free = shutil.disk_usage(rehearsed).free + needed
    if free < 2 * needed:  # a checkpoint is written beside the one before
        raise PruneError(
            f"output folder {output}: the run writes {2 * needed / 1e6:,.1f} MB, and "
            f"{free / 1e6:,.1f} MB are free there"
        )
