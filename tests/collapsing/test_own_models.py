"""Own models from plan to collapse: trained in a plain loop while α moves, and exact at the end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import own_models as own
import pytest
import torch
from models import relative, scramble, spelled_out
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import branchprune as bp
from branchprune.models import DCGAN, Discriminator, Generator, ResNet, UNet

EXACT = 1e-10
OUTPUT = "it is an output of the model"
PADS = "`pad` (in {}): it pads the channels"
Alpha = float | Mapping[str, float]


@dataclass
class Case:
    """An own model.

    Args:
        make: Makes it.
        shapes: Shapes of the arguments of its forward.
        pruned: Names of the groups that shrink; None: whichever, it is exact all the same.
        frozen: Why the others do not.
        moves: α over the training.
    """

    make: Callable[[], nn.Module]
    shapes: Sequence[tuple[int, ...]]
    pruned: str | None = None
    frozen: Mapping[str, str] | None = None
    moves: Sequence[Alpha] = (1.0, 0.5, 0.0)

    def example(self, more: int = 0) -> tuple[Tensor, ...]:
        """Return arguments of the forward, `more` in each batch than by default."""
        return tuple(torch.randn(n + more, *s, dtype=torch.float64) for n, *s in self.shapes)


def gan() -> nn.Module:
    return DCGAN(6, (12, 8), (8, 12))


GENERATOR = "generator.layers.0 generator.layers.3"
DISCRIMINATOR = "discriminator.layers.0 discriminator.layers.2"
GAN: dict[str, Any] = {
    "make": gan,
    "shapes": [(3, 1, 16, 16), (5, 6, 1, 1)],
    "pruned": f"{GENERATOR} {DISCRIMINATOR}",
    "frozen": {
        "generator.layers.6": "no layer makes the argument images",
        "discriminator.layers.5": OUTPUT,
    },
}
INNER = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
ODD = "front.0 back.1"
IMAGE = [(2, 3, 8, 8)]

CASES = {
    "resnet": Case(
        lambda: ResNet(8, (6, 8, 12)),
        [(2, 3, 8, 8)],
        "conv stages.0.0.conv1 stages.1.0.conv1 stages.1.0.conv2 stages.2.0.conv1 stages.2.0.conv2",
        {"classifier": OUTPUT},
    ),
    "u-net": Case(
        lambda: UNet((8, 12, 6)),
        [(2, 1, 8, 8)],
        "down.0.0 down.0.3 down.1.0 down.1.3 down.2.0 down.2.3 up.0 join.0.0 join.0.3 "
        "up.1 join.1.0 join.1.3",
        {"head": OUTPUT},
    ),
    "generator": Case(
        lambda: Generator(6, (12, 8), 3), [(3, 6, 1, 1)], "layers.0 layers.3", {"layers.6": OUTPUT}
    ),
    "discriminator": Case(
        lambda: Discriminator((8, 12), 3),
        [(3, 3, 16, 16)],
        "layers.0 layers.2",
        {"layers.5": OUTPUT},
    ),
    "dcgan, at once": Case(**GAN),
    "dcgan, one after the other": Case(
        **GAN,
        moves=(
            *({"generator": 0.5}, {"generator": 0.0}),
            *({"discriminator": 0.5}, {"discriminator": 0.0}),
        ),
    ),
    "resnet-20, shortcut A": Case(
        lambda: own.ResNet20("A"),
        [(2, 3, 16, 16)],
        " ".join(INNER),
        {
            "conv1": f"read by {PADS.format('layer2.0')}",
            "layer2.0.conv2": (
                "tied by `add` (in layer2.0) to the output of `pad` (in layer2.0), whose width "
                f"stays ({PADS.format('layer2.0')})"
            ),
            "layer3.0.conv2": (
                "tied by `add` (in layer3.0) to the output of `pad` (in layer3.0), whose width "
                f"stays ({PADS.format('layer3.0')})"
            ),
            "linear": OUTPUT,
        },
    ),
    "resnet-20, shortcut B": Case(
        lambda: own.ResNet20("B"),
        [(2, 3, 16, 16)],
        " ".join(["conv1", *INNER, "layer2.0.conv2", "layer3.0.conv2"]),
        {"linear": OUTPUT},
    ),
    "wavenet": Case(
        lambda: own.WaveNet(chunk=False),
        [(2, 1, 20)],
        "front blocks.0.filter blocks.0.skip blocks.1.filter blocks.2.filter end1",
        {"end2": OUTPUT},
    ),
    "wavenet, one convolution and chunk": Case(lambda: own.WaveNet(chunk=True), [(2, 1, 20)]),
    "convolutions that pad by themselves": Case(own.Causal, [(2, 1, 20)]),
    "mlp": Case(own.MLP, [(4, 9)], "body.0 body.4", {"head": OUTPUT}),
    "image and vector in, dictionary out": Case(
        own.Conditioned,
        [(2, 3, 8, 8), (2, 5)],
        "image.0 feature",
        {"mask": OUTPUT, "label": OUTPUT},
    ),
    "list of features out": Case(
        own.Pyramid, IMAGE, "stem.0 inner.0", {"first.0": OUTPUT, "second": OUTPUT}
    ),
    "scales by a written width": Case(own.ScalesByWidth, IMAGE, f"{ODD} a b", {"back.3": OUTPUT}),
    "weight norm": Case(
        own.WeightNorm,
        IMAGE,
        ODD,
        {"a": "b is parametrised", "b": "b is parametrised", "back.3": OUTPUT},
    ),
    "spectral norm": Case(
        own.SpectralNorm,
        IMAGE,
        ODD,
        {"a": "b is parametrised", "b": "b is parametrised", "back.3": OUTPUT},
    ),
    "shared layer": Case(own.Shared, IMAGE, f"{ODD} a", {"back.3": OUTPUT}),
    "recurrent layer": Case(own.Recurrent, IMAGE, f"{ODD} a", {"back.3": OUTPUT}),
    "names its width": Case(own.NamesWidth, IMAGE),
    "splits by number": Case(own.SplitsByNumber, IMAGE),
    "buffers of the width": Case(own.Standardised, IMAGE),
    "parameter of the width": Case(own.LearnedScale, IMAGE),
}


def outputs(model: nn.Module, example: tuple[Tensor, ...], training: bool) -> list[Tensor]:
    """Return all output tensors; dropout is the same in every call, statistics stay."""
    torch.manual_seed(7)
    with torch.no_grad():
        found = copy.deepcopy(model).train(training)(*(x.clone() for x in example))
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def pairs(
    a: nn.Module, b: nn.Module, example: tuple[Tensor, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    for training in (False, True):
        yield from zip(outputs(a, example, training), outputs(b, example, training), strict=True)


def train(blended: bp.Blended, example: tuple[Tensor, ...], moves: Sequence[Alpha]) -> None:
    """The loop as a user writes it."""
    optimizer = torch.optim.Adam(blended.parameters(), 0.02)
    blended.train()
    for blended.alpha in moves:
        for _ in range(2):
            optimizer.zero_grad()
            found = tree_leaves(blended(*example))
            torch.stack([(y - 1).square().mean() for y in found]).sum().backward()
            optimizer.step()


def branched(case: Case) -> tuple[nn.Module, bp.Blended]:
    model = scramble(case.make().double())
    return model, bp.attach(model, bp.plan(model, case.example(), keep=0.5))


@pytest.mark.parametrize("name", CASES)
def test_own_model(name: str) -> None:
    case = CASES[name]
    model, blended = branched(case)
    groups = blended.plan.groups
    if case.pruned is not None:
        assert {g.name for g in groups if g.pruned} == set(case.pruned.split())
        assert {g.name: g.reason for g in groups if not g.pruned} == case.frozen
    other = case.example(more=1)
    assert all(torch.equal(a, b) for a, b in pairs(model, blended, other))
    train(blended, case.example(), case.moves)
    assert not any(blended.alpha.values())
    small = bp.collapse(blended)
    for expected, found in pairs(spelled_out(blended), small, other):
        assert relative(expected, found) < EXACT
        assert expected.isfinite().all()
    assert any(relative(a, b) > 1e-3 for a, b in pairs(model, small, other))
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())
    assert count(small) == blended.plan.after.params < count(model)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["wavenet", "resnet-20, shortcut B", "u-net"])
def test_groups_are_tied_over_all_blocks(name: str) -> None:
    _, blended = branched(CASES[name])
    layers = {g.name: g.layers for g in blended.plan.groups}
    if name == "wavenet":
        assert layers["front"] == ("front", *(f"blocks.{i}.residual" for i in range(3)))
        assert layers["blocks.0.skip"] == tuple(f"blocks.{i}.skip" for i in range(3))
        assert layers["blocks.1.filter"] == ("blocks.1.filter", "blocks.1.gate")
    elif name == "u-net":
        assert all(len(makers) == 1 for makers in layers.values())
    else:
        second = ("layer2.0.conv2", "layer2.0.shortcut.0", "layer2.1.conv2", "layer2.2.conv2")
        assert layers["layer2.0.conv2"] == second


def test_chunk_leaves_the_residual_stream_free() -> None:
    _, blended = branched(CASES["wavenet, one convolution and chunk"])
    assert {"front", "blocks.0.skip", "end1"} <= set(blended.alpha)


def test_dcgan_collapsed_after_each_part() -> None:
    """First the generator is pruned and collapsed, then the discriminator of what came out."""
    model, example = scramble(gan().double()), Case(**GAN).example()
    for part, inner in (("generator", GENERATOR), ("discriminator", DISCRIMINATOR)):
        plan = bp.plan(model, example, keep={part: 0.5})
        assert {g.name for g in plan.groups if g.pruned} == set(inner.split())
        blended = bp.attach(model, plan)
        train(blended, example, (0.5, 0.0))
        model = bp.collapse(blended)
        for expected, found in pairs(spelled_out(blended), model, example):
            assert relative(expected, found) < EXACT
    fresh = DCGAN(6, (6, 4), (4, 6))
    assert [p.shape for p in model.parameters()] == [p.shape for p in fresh.parameters()]


@pytest.mark.parametrize("depth", [7, 2, 21])
def test_a_depth_that_makes_no_equal_stages_is_refused(depth: int) -> None:
    with pytest.raises(bp.PruneError, match=rf"depth \(={depth}\) must be 2 and 6 for each block"):
        ResNet(depth)
