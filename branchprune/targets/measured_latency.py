"""The latency of a model in a runtime: times of its layers, and of whole models."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError, first_line
from branchprune.graph.random_generators import own_generators
from branchprune.planning.cost_model import params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.traced import Traced
from branchprune.runtimes.processor import processor
from branchprune.runtimes.runtime import Runtime, Step
from branchprune.targets.choices import Choices
from branchprune.targets.latency_model import LatencyModel
from branchprune.targets.layer_times import (
    LayerCall,
    LayerTimes,
    in_blocks,
    layer_calls,
    name_of,
    sized_like,
    spread_of,
    timed,
)

P = ParamSpec("P")
R = TypeVar("R")
MULTIPLES = (1, 4, 8, 16)
"""Of which widths may be multiples."""
HEAVIEST = 3
"""So many layers tell which multiple pays."""
ENOUGH = 1.05
"""Times the least time for a multiply-add, at which a smaller multiple is taken."""
PROFILED = (1.0, 0.75, 0.5, 0.35, 0.2)
"""Shares of all channels at which whole models are timed, the dense one first."""
DRAWN = 3
"""Models of widths drawn at random that are timed beside them."""
SECONDS = 1.0
"""How long whole models are timed, after the least number of turns."""
NOISY = 0.1
"""Spread of times, and error of predicted ones, from which on it is spoken of."""


def _drawing_nothing(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method leave the random generators as they were."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_generators([]):
            return method(*args, **kwargs)

    return call


class MeasuredLatency:
    """How long a model takes in a runtime; measured once for several targets.

    Args:
        runtime: Where.
        file: Keeps the times of layers as JSON, and is read where it exists; None: none is kept.

    Attributes:
        dense_ms: The time of the dense model, once `cost` has been called.

    Raises:
        PruneError: The file cannot be read, or is of another runtime or machine.
    """

    def __init__(self, runtime: Runtime, file: Path | None = None) -> None:
        if file is not None and not file.parent.is_dir():
            raise PruneError(f"latency_table (={str(file)!r}): there is no folder {file.parent}")
        self.runtime, self.file = runtime, file
        self.dense_ms = 0.0
        self._table = {} if file is None or not file.exists() else self._read(file)
        self._dense: Step | None = None
        self._cost: LatencyModel | None = None
        self._multiple: int | None = None
        self._notes: dict[str, None] = {}
        self._overhead = self._nothing()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the measurements."""
        return tuple(self._notes)

    @_drawing_nothing
    def _nothing(self) -> float:
        """Return the seconds of a run of next to nothing."""
        step = self.runtime.prepared(nn.Linear(1, 1), torch.zeros(1, 1))
        (times,) = in_blocks([step])
        return min(times)

    def multiple(self, traced: Traced) -> int:
        """Return the number of which widths should be multiples: the least that wastes no time.

        Args:
            traced: The model, of all calls the same.
        """
        if self._multiple is None:
            self._multiple = self._least_multiple(traced)
        return self._multiple

    @_drawing_nothing
    def _least_multiple(self, traced: Traced) -> int:
        model = traced.model
        found = {name_of(model.get_submodule(c.layer), c): c for c in self._calls(traced)}
        heavy = sorted(found.values(), key=lambda each: each.macs, reverse=True)[:HEAVIEST]
        costs = torch.zeros(len(MULTIPLES), dtype=torch.double)
        for each in heavy:
            layer = model.get_submodule(each.layer)
            pairs = [sized_like(layer, each, multiple) for multiple in MULTIPLES]
            steps = [self.runtime.prepared(*small) for _, small in pairs]
            blocks = in_blocks(steps, SECONDS)  # longer than layers are: all widths depend on it
            self._note_spread("layers", max(map(spread_of, blocks)))
            times = [*map(min, blocks)]
            each_cost = torch.tensor(
                [s / macs for s, (macs, _) in zip(times, pairs, strict=True)], dtype=torch.double
            )
            costs += each_cost / each_cost.min()
        least = float(costs.min())
        return next(m for m, c in zip(MULTIPLES, costs, strict=True) if c <= ENOUGH * least)

    @_drawing_nothing
    def dense_alone(self, traced: Traced) -> float:
        """Return how long the dense model takes, timed alone, in ms.

        Args:
            traced: The model, of all calls the same.
        """
        (times,) = in_blocks([self._dense_step(traced)])
        return 1000 * min(times)

    @_drawing_nothing
    def cost(self, traced: Traced, choices: Choices, multiple: int) -> LatencyModel:
        """Return the latency over the widths, in ms.

        Args:
            traced: The model, of all calls the same.
            choices: The widths that each group may take.
            multiple: Of what they are multiples.
        """
        if self._cost is None:
            calls = self._calls(traced)
            times = [self._times(traced, each, multiple) for each in calls]
            self._write()
            weights, _ = params_and_macs(amounts(traced.model, traced.structure), len(choices.rows))
            self._cost = self._scaled(LatencyModel.of(calls, times, weights), traced, choices)
        return self._cost

    @_drawing_nothing
    def measured_ms(self, traced: Traced, kept: Tensor) -> float:
        """Return how long a model of some widths takes, timed in turns with the dense one.

        Args:
            traced: The model.
            kept: The widths, float64, shape (G,).

        Returns:
            Milliseconds: the share of the time of the dense model, times `dense_ms`.
        """
        small = self._step(traced, kept)
        before, after = in_blocks([self._dense_step(traced), small], SECONDS)
        self._note_spread("models", max(map(spread_of, (before, after))))
        return self.dense_ms * min(after) / min(before)

    def _calls(self, traced: Traced) -> list[LayerCall]:
        return layer_calls(traced.model, traced.structure, traced.example)

    def _times(self, traced: Traced, called: LayerCall, multiple: int) -> LayerTimes:
        layer = traced.model.get_submodule(called.layer)
        name = f"{name_of(layer, called)} in multiples of {multiple}"
        if name not in self._table:
            self._table[name] = timed(self.runtime, layer, called, multiple, self._overhead)
        self._note_spread("layers", self._table[name].spread)
        return self._table[name]

    def _scaled(self, model: LatencyModel, traced: Traced, choices: Choices) -> LatencyModel:
        """Return a model with the factors by which it fits the times of whole models."""
        draw = Random(0)
        count = len(choices.rows)
        shares = [[share] * count for share in PROFILED]
        shares += [[draw.random() for _ in range(count)] for _ in range(DRAWN)]
        widths = [choices.nearest(each) for each in shares]
        steps = [self._dense_step(traced), *(self._step(traced, each) for each in widths[1:])]
        times = [1000 * min(each) for each in in_blocks(steps, SECONDS)]
        self.dense_ms = times[0]
        fitted = model.scaled(widths, times)
        errors = [abs(fitted.total(w) / t - 1) for w, t in zip(widths, times, strict=True)]
        if max(errors) > NOISY:
            said = f"predicted latency is up to {max(errors):.0%} off where whole models were timed"
            self._notes |= {said: None}
        return fitted

    def _step(self, traced: Traced, kept: Tensor) -> Step:
        small = traced.narrowed([int(width) for width in kept])
        return self.runtime.prepared(small, traced.example)

    def _dense_step(self, traced: Traced) -> Step:
        if self._dense is None:
            widths = [group.width for group in traced.structure.groups]
            self._dense = self._step(traced, torch.tensor(widths, dtype=torch.double))
        return self._dense

    def _note_spread(self, what: str, spread: float) -> None:
        if spread > NOISY:
            self._notes[
                f"times of {what} vary by more than {NOISY:.0%}: others use the machine"
            ] = None

    def _header(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime.name,
            "version": self.runtime.version(),
            "threads": self.runtime.threads,
            "processor": processor(),
        }

    def _read(self, file: Path) -> dict[str, LayerTimes]:
        try:
            found = json.loads(file.read_text())
            layers = {name: LayerTimes.of_dict(each) for name, each in found["layers"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PruneError(
                f"latency_table (={str(file)!r}) cannot be read: {first_line(error)}"
            ) from error
        for key, value in self._header().items():
            if found.get(key) != value:
                raise PruneError(
                    f"latency_table (={str(file)!r}) is of {key} {found.get(key)!r}, and this is "
                    f"{value!r}: give another file"
                )
        return layers

    def _write(self) -> None:
        if self.file is None:
            return
        layers = {name: each.as_dict() for name, each in self._table.items()}
        part = self.file.with_name(f"{self.file.name}.part")
        try:
            part.write_text(json.dumps({**self._header(), "layers": layers}, indent=1) + "\n")
            part.replace(self.file)
        except OSError as error:
            raise PruneError(
                f"latency_table (={str(self.file)!r}) cannot be written: {first_line(error)}"
            ) from error
