"""What the widths of a run are to reach, and how they are chosen for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from branchprune.errors import PruneError
from branchprune.planning.costs import Cost
from branchprune.runtimes.named import runtime_of
from branchprune.targets.allocations import ALLOCATIONS
from branchprune.targets.chooser import Chooser
from branchprune.targets.error_curves import Init, MeasuredErrors
from branchprune.targets.goal import COSTS, as_amounts, check_target
from branchprune.targets.measured_latency import MeasuredLatency
from branchprune.targets.plan import FLOOR, measuring


@dataclass
class TargetConfig:
    """Widths for a target: each is the share that is kept, below 1, or a number.

    Args:
        macs: Multiply-adds of one example.
        params: Parameters.
        memory: Bytes of parameters, buffers and live tensors, for one example.
        latency: Share of the time of one example in `runtime`.
        latency_ms: That time in milliseconds.
        floor: The least share of a group's channels.
        runtime: Where the latency is measured: pytorch, torch-compile, onnxruntime, openvino or
            executorch.
        threads: Its threads; null: one a core.
        latency_table: JSON file that keeps the times of layers.
        cache: Folder that keeps how the output changes with single groups.
        allocation: How the widths are chosen: "selected", as `plan` does, or otherwise, to compare;
            see `branchprune.targets.allocations`.
    """

    macs: float | None = None
    params: float | None = None
    memory: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    floor: float = FLOOR
    runtime: str | None = None
    threads: int | None = None
    latency_table: Path | None = None
    cache: Path | None = None
    allocation: str = "selected"

    def __post_init__(self) -> None:
        if self.allocation not in ALLOCATIONS:
            known = ", ".join(ALLOCATIONS)
            raise PruneError(f"target.allocation (={self.allocation!r}) must be one of {known}")
        if not self.asked:
            raise PruneError(f"target must say what to reach: one of {', '.join(COSTS)}")

    @property
    def asked(self) -> dict[str, float]:
        """What is to be reached, by its key."""
        found = {what: getattr(self, what) for what in COSTS}
        return {what: value for what, value in found.items() if value is not None}

    def of_dense(self, before: Cost) -> TargetConfig:
        """Return it with amounts in place of shares; see `as_amounts`."""
        amounts: dict[str, Any] = {**as_amounts(check_target(self.asked), before)}
        return replace(self, **amounts)

    def chooser(
        self,
        keep: float | Mapping[str, float] | None,
        exclude: Sequence[str],
        multiple_of: int | Literal["auto"],
        batches: Sequence[Tensor] | None,
        criterion: Init,
        seed: int,
    ) -> Chooser:
        """Return what chooses the widths.

        Args:
            keep: Layers and modules that keep a share; see `plan`.
            exclude: Layers whose channels stay.
            multiple_of: Of what the widths are multiples; see `plan`.
            batches: Inputs on which errors are measured; None: the widths are one share of all.
            criterion: By which channels are chosen there.
            seed: Of what an allocation draws.
        """
        latency = self._latency(multiple_of)
        errors = None if batches is None else MeasuredErrors.on(batches, criterion, self.cache)
        return Chooser(
            self.asked,
            keep,
            self.floor,
            exclude,
            multiple_of,
            errors=errors,
            latency=latency,
            allocation=ALLOCATIONS[self.allocation],
            seed=seed,
        )

    def _latency(self, multiple_of: int | Literal["auto"]) -> MeasuredLatency | None:
        """Return what measures the latency, the same in all calls: it does not know of weights."""
        if "latency" not in self._measuring:
            runtime = runtime_of(self.runtime, self.threads)
            found = measuring(self.asked, multiple_of, runtime, self.latency_table)
            self._measuring["latency"] = found
        return self._measuring["latency"]

    @cached_property
    def _measuring(self) -> dict[str, MeasuredLatency | None]:
        return {}
