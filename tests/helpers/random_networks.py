"""Random networks of one, two and three dimensions, made of all operations that are supported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import random_attention  # noqa: F401  (it fills KINDS)
import random_parts  # noqa: F401  (so does it)
import torch
from hypothesis import event, reject
from hypothesis import strategies as st
from models import scramble
from random_layers import CHANGE_SIZE, GROWS, KINDS, ONLY_2D, SHRINKS, Step, of
from torch import Tensor, nn

import branchprune as bp

SIZES = {1: (11,), 2: (6, 5), 3: (5, 5, 6)}
NORMS = "batch group instance tracked layer frozen none none".split()
ACTIVATIONS = "relu inplace prelu slope gelu hardswish tanh none".split()


def steps(kinds: list[str], inner: st.SearchStrategy[Step | None]) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        st.sampled_from(kinds),
        width=st.sampled_from([4, 8, 12]),
        kernel=st.sampled_from([1, 3]),
        stride=st.sampled_from([1, 2]),
        groups=st.sampled_from([1, 1, 2]),
        bias=st.booleans(),
        norm=st.sampled_from(NORMS),
        activation=st.sampled_from(ACTIVATIONS),
        inner=inner,
    )


INNER = [k for k in KINDS if k not in CHANGE_SIZE]
STEPS = steps(list(KINDS), st.none() | steps(INNER, st.none()))

Keep = float | dict[str, float]


class RandomNet(nn.Module):
    """A stem, random steps, and a classifier on the flattened or averaged features.

    Behind each step an identity marks the stream, for the tests to see what is known of it.
    """

    def __init__(self, dims: int, steps: list[Step], flatten: bool = False) -> None:
        super().__init__()
        self.stem = of("Conv", dims)(2, 8, 3, padding=1)
        width = 8
        self.parts, self.marks = nn.Sequential(), nn.Sequential()
        for step in steps:
            part, width = KINDS[step.kind](step, width, dims)
            self.parts.append(part)
            self.marks.append(nn.Identity())
        self.kinds = [step.kind for step in steps]
        self.pool = of("AdaptiveAvgPool", dims)(2 if flatten else 1)
        self.head = nn.Linear(width * (2**dims if flatten else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part, mark in zip(self.parts, self.marks, strict=True):
            x = mark(part(x))
        return self.head(self.pool(x).flatten(1))


class Case:
    """A random network with numbers in it, and an input."""

    def __init__(self, model: nn.Module, x: Tensor, keep: Keep = 0.5) -> None:
        self.model, self.x, self.keep = model, x, keep

    def __repr__(self) -> str:
        kinds = getattr(self.model, "kinds", None)
        return f"{kinds} {self.model}\nkeep={self.keep}, input {tuple(self.x.shape)}"

    def double(self) -> Case:
        self.model.double()
        self.x = self.x.double()
        return self


def limited(steps: list[Step], dims: int) -> list[Step]:
    """Change what would leave too little or too much of an image, or does not exist."""
    shrunk = grown = False
    result = []
    for step in steps:
        only_2d = step.kind in ONLY_2D and dims != 2
        if only_2d or (step.kind in SHRINKS and shrunk) or (step.kind in GROWS and grown):
            step = replace(step, kind="conv")
        step = replace(step, stride=1 if shrunk else step.stride)
        strided = step.kind in ("conv", "depthwise") and step.stride == 2
        shrunk = shrunk or step.kind in SHRINKS or strided
        grown = grown or step.kind in GROWS
        result.append(step)
    return result


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    drawn = draw(st.lists(STEPS, min_size=1, max_size=5))
    model = RandomNet(dims, limited(drawn, dims), draw(st.booleans()))
    scramble(model, seed=draw(st.integers(0, 1000)))
    return Case(model, image(dims), draw(st.sampled_from([0.25, 0.5, 0.75])))


def image(dims: int, batch: int = 3, seed: int = 7) -> Tensor:
    return torch.randn(batch, 2, *SIZES[dims], generator=torch.Generator().manual_seed(seed))


def streams(plan: bp.Plan, kinds: list[str]) -> dict[int, str]:
    """Return what becomes of the stream behind each step: pruned, in part, or why not."""
    found = {}
    for i in range(len(kinds)):
        tensor = plan.structure.tensors[False].get(f"marks_{i}")
        groups = [plan.groups[p.group] for p in tensor.pieces] if tensor else []
        pruned = [group.pruned for group in groups]
        found[i] = "pruned" if groups and all(pruned) else "pruned in part" if any(pruned) else ""
        if not any(pruned):
            found[i] = str(groups[0].reason) if groups else "not known"
    return found


def planned(case: Case) -> bp.Plan:
    try:
        plan = bp.plan(case.model, case.x, keep=case.keep)
    except bp.PruneError as error:
        if "nothing in the model can be pruned" not in str(error):
            raise
        event("nothing to prune")
        reject()
    kinds: list[str] = getattr(case.model, "kinds", [])
    for i, fate in streams(plan, kinds).items():
        event(f"{kinds[i]}: {fate.split(' (')[0][:40]}")
    for group in plan.groups:
        event("pruned" if group.pruned else str(group.reason).split(" (")[0][:40])
    return plan


def attached(case: Case, **options: Any) -> bp.Blended:
    return bp.attach(case.model, planned(case), **options)


def seeded(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    torch.manual_seed(11)
    return model(x)


def single(kind: str, dims: int = 2, **changes: Any) -> Case:
    """Return a network with one step between its stem and its classifier."""
    step = Step(kind, 8, 3, 1, 1, True, "batch", "relu", None)
    model = RandomNet(dims, [replace(step, **changes)])
    return Case(scramble(model), image(dims))
