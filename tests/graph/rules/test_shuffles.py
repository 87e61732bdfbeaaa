"""Channel shuffles: the branch starts from the channels that the narrow tensors really hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import Net, matrix, relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp
from branchprune.criteria.selection import select
from branchprune.graph.provenance import Cut, Interleaved, Joined, Origin, Own, Repeated, index_of

Tree = tuple[Origin, Tensor, Tensor]
"""A recipe, and the labels of the wide and of the narrow entries that it makes."""


@st.composite
def leaves(draw: st.DrawFn) -> Tree:
    width = draw(st.integers(1, 12))
    chosen = draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=width, unique=True))
    start = draw(st.integers(0, 10**6)) * 100
    labels = torch.arange(start, start + width, dtype=torch.float64)[:, None]
    return Own((tuple(sorted(chosen)), width)), labels, labels[sorted(chosen)]


@st.composite
def larger(draw: st.DrawFn, trees: st.SearchStrategy[Tree]) -> Tree:
    kind = draw(st.sampled_from(["joined", "cut", "interleaved", "repeated"]))
    if kind == "joined":
        parts = draw(st.lists(trees, min_size=1, max_size=3))
        numbered = [
            [torch.cat([torch.full_like(t[:, :1], i), t], 1) for t in labels]
            for i, (_, *labels) in enumerate(parts)
        ]
        depth = max(wide.shape[1] for wide, _ in numbered)
        both = [[F.pad(t, (0, depth - t.shape[1])) for t in pair] for pair in numbered]
        wide, narrow = (torch.cat(column) for column in zip(*both, strict=True))
        return Joined(tuple(part for part, *_ in parts)), wide, narrow
    origin, wide, narrow = draw(trees)
    count = draw(st.integers(1, 4))
    if kind == "repeated":
        wide, narrow = (
            torch.cat([t.repeat_interleave(count, 0), torch.arange(len(t) * count)[:, None]], 1)
            for t in (wide, narrow)
        )
        wide[:, -1] %= count
        narrow[:, -1] %= count
        return Repeated(origin, count), wide, narrow
    assume(len(wide) % count == 0 and len(narrow) % count == 0)
    if kind == "cut":
        number = draw(st.integers(0, count - 1))
        return Cut(origin, number, count), wide.chunk(count)[number], narrow.chunk(count)[number]
    wide, narrow = (F.channel_shuffle(t[None, ..., None], count)[0, ..., 0] for t in (wide, narrow))
    return Interleaved(origin, count), wide, narrow


def own_index(of: tuple[tuple[int, ...], int]) -> tuple[Tensor, int]:
    chosen, width = of
    return torch.tensor(chosen), width


@settings(max_examples=150)
@given(st.recursive(leaves(), larger, max_leaves=5))
def test_recipes_are_what_happens_to_labels(tree: Tree) -> None:
    origin, wide, narrow = tree
    places = {tuple(label.tolist()): place for place, label in enumerate(wide)}
    assert len(places) == len(wide)
    expected = [places.get(tuple(label.tolist()), -1) for label in narrow]
    index, size = index_of(origin, own_index)
    assert index.tolist() == expected and size == len(wide)


def naive_choice(scores: list[float], kept: int, blocks: int, strata: int) -> list[int]:
    chosen = []
    length, share = len(scores) // blocks, kept // blocks
    for block in range(blocks):
        for i in range(strata):
            places = range(length * i // strata, length * (i + 1) // strata)
            quota = share * (i + 1) // strata - share * i // strata
            best = sorted(places, key=lambda p: -scores[block * length + p])[:quota]
            chosen += [block * length + p for p in sorted(best)]
    return chosen


@settings(max_examples=150)
@given(st.data())
def test_choice_with_strata(data: st.DataObject) -> None:
    blocks, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 20))
    share, strata = data.draw(st.integers(1, length)), data.draw(st.sampled_from([1, 2, 4]))
    scores = data.draw(st.permutations(range(blocks * length)))
    found = select(torch.tensor(scores).double(), blocks * share, blocks, strata).tolist()
    assert len(found) == blocks * share and found == sorted(set(found))
    assert found == naive_choice(scores, blocks * share, blocks, strata)
    for parts in {1, 2, strata}:
        counts = [
            sum(b * length + length * i // parts <= c < b * length + length * (i + 1) // parts
                for c in found)
            for b in range(blocks)
            for i in range(parts)
        ]  # fmt: skip
        if length % parts == 0 and strata >= parts:
            assert max(counts) - min(counts) <= 1


def shuffle_by_view(x: Tensor, groups: int = 2) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


def shuffle_by_function(x: Tensor, groups: int = 2) -> Tensor:
    return F.channel_shuffle(x, groups)


class Unit(nn.Module):
    """Half of the channels pass, the other half is convolved; then both are shuffled."""

    def __init__(self, width: int, shuffle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        half = width // 2
        self.a = nn.Conv2d(half, half, 1, bias=False)
        self.depthwise = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.b = nn.Conv2d(half, half, 1, bias=False)
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        second = self.b(self.depthwise(self.a(second).relu()))
        return self.shuffle(torch.cat([first, second.relu()], 1))


class Down(nn.Module):
    """Both branches read all channels, one of them channel by channel."""

    def __init__(self, width: int, shuffle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False)
        self.a = nn.Conv2d(width, width, 1, bias=False)
        self.b = nn.Conv2d(width, width, 3, 2, 1, bias=False)
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(torch.cat([self.a(self.depthwise(x)).relu(), self.b(x).relu()], 1))


SHUFFLES: dict[str, Callable[..., Any]] = {
    "view": shuffle_by_view,
    "function": shuffle_by_function,
    "module": nn.ChannelShuffle(2),
}


def shufflenet(units: int = 2, width: int = 16, down: bool = False, how: str = "view") -> Any:
    """A small ShuffleNet without biases and norms, so that channels of zeros stay zeros."""
    shuffle = copy.deepcopy(SHUFFLES[how])
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    layers += [Unit(width, shuffle) for _ in range(units)]
    if down:
        layers += [Down(width, shuffle), Unit(2 * width, shuffle)]
        width *= 2
    layers.append(nn.Conv2d(width, 4, 1, bias=False))
    return scramble(nn.Sequential(*layers).double().eval())


IMAGE = (2, 3, 6, 6)


def image(seed: int = 0) -> Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_scores(seed: int) -> Callable[[bp.GroupWeights], Tensor]:
    """Return a criterion that is as good as random, but the same for a group at every call."""

    def scores(group: bp.GroupWeights) -> Tensor:
        generator = torch.Generator().manual_seed(seed + sum(map(ord, group.name)))
        return torch.rand(group.width, generator=generator)

    return scores


def chosen_rows(blended: bp.Blended, name: str) -> Tensor | None:
    """Return the output channels of a layer that its linear end selects; None for all."""
    ends = dict(blended.reduce.named_modules())
    if name not in ends:
        return None
    selection = matrix(ends[name])
    assert bool((selection.sum(1) == 1).all()) and selection.unique().tolist() == [0, 1]
    return selection.argmax(1)


def masked(blended: bp.Blended) -> nn.Module:
    """Return the wide model in which each channel that is not selected is multiplied by 0."""
    model = copy.deepcopy(blended.model)
    for name in blended.plan.structure.linears:
        rows = chosen_rows(blended, name)
        layer = model.get_submodule(name)
        if rows is not None:
            gone = torch.ones(len(layer.weight), dtype=torch.bool)
            gone[rows] = False
            with torch.no_grad():
                layer.weight[gone] = 0
    return model


def one_of_each_pair(number: int) -> Callable[[bp.GroupWeights], Tensor]:
    """Return a criterion that chooses the first or second of each pair of channels."""
    bits = [number >> i & 1 for i in range(4)]

    def scores(group: bp.GroupWeights) -> Tensor:
        chosen = torch.tensor(bits).repeat(group.width)[: group.width // 2]
        return torch.stack([1 - chosen, chosen], 1).flatten().double()

    return scores


@pytest.mark.parametrize(("units", "how"), [(1, "module"), (2, "view"), (2, "function")])
@pytest.mark.parametrize("number", range(16))
def test_the_start_is_the_wide_model_with_channels_of_zeros(
    number: int, units: int, how: str
) -> None:
    """Channels are chosen from all quarters, so behind two cuts they are where they should be."""
    model = shufflenet(units, 16, how=how)
    blended = bp.attach(model, bp.plan(model, image()), init=one_of_each_pair(number))
    blended.alpha = 0
    rows = chosen_rows(blended, "1.b")
    assert rows is not None and rows.tolist() == [2 * i + (number >> i & 1) for i in range(4)]
    with torch.no_grad():
        expected = masked(blended)(image(1))
        assert relative(expected, blended(image(1))) < 1e-12
        assert relative(expected, bp.collapse(blended)(image(1))) < 1e-12
        assert relative(expected, model(image(1))) > 1e-3


def test_a_shuffle_is_the_same_however_it_is_written() -> None:
    outputs, state = [], shufflenet(2, 16).state_dict()
    for how in SHUFFLES:
        model = shufflenet(2, 16, how=how)
        model.load_state_dict(state)
        blended = bp.attach(model, bp.plan(model, image()), init=one_of_each_pair(5))
        blended.alpha = 0
        outputs.append(blended(image(1)))
    for other in outputs[1:]:
        assert relative(outputs[0], other) < 1e-12


class Labels:
    """Follows which channel of which layer each entry is, through a wide or a narrow model."""

    def __init__(self, model: nn.Module, widths: dict[str, Tensor | None]) -> None:
        self.inputs: dict[str, list[int]] = {}
        model = copy.deepcopy(model)
        for number, (name, layer) in enumerate(list(model.named_modules())):
            if isinstance(layer, nn.Conv2d):
                model.set_submodule(name, _Names(self, name, number, layer, widths.get(name)))
        # ReLU leaves labels as they are, since they are positive.
        model(torch.zeros(1, 3, 1, 1))


class _Names(nn.Module):
    def __init__(
        self, labels: Labels, name: str, number: int, layer: nn.Conv2d, rows: Tensor | None
    ) -> None:
        super().__init__()
        self.depthwise = layer.groups > 1
        rows = torch.arange(layer.out_channels) if rows is None else rows
        self.outputs = (1000 * (number + 1) + rows).double().view(1, -1, 1, 1)
        self.note: Callable[[list[int]], None] = lambda seen: labels.inputs.update({name: seen})

    def forward(self, x: Tensor) -> Tensor:
        self.note(x.flatten().long().tolist())
        return x if self.depthwise else self.outputs


def started(blended: bp.Blended) -> nn.Module:
    """Return the small model that the start stands for, worked out from labels alone."""
    rows = {name: chosen_rows(blended, name) for name in blended.plan.structure.linears}
    wide = Labels(blended.model, {}).inputs
    narrow = Labels(blended.model, rows).inputs
    small = copy.deepcopy(blended.model)
    for name, layer in list(small.named_modules()):
        if not isinstance(layer, nn.Conv2d) or name == "0":
            if name == "0":
                layer.weight = nn.Parameter(layer.weight[rows["0"]])
            continue
        places = [wide[name].index(n) if n in wide[name] else -1 for n in narrow[name]]
        if layer.groups == 1:
            # A linear end maps each run of channels to itself, whatever moved between them.
            runs = blended.expand.get_submodule(name).pieces
            kept = [i for i, run in enumerate(runs) for _ in range(run.kept)]
            ends = [i for i, run in enumerate(runs) for _ in range(run.wide)]
            pairs = zip(places, kept, strict=True)
            places = [p if p >= 0 and ends[p] == run else -1 for p, run in pairs]
        known = torch.tensor([place >= 0 for place in places])
        if layer.groups > 1:
            weight = layer.weight[places] * known.view(-1, 1, 1, 1)
            layer.groups = len(places)
        else:
            chosen = rows[name]
            weight = layer.weight if chosen is None else layer.weight[chosen]
            weight = weight[:, places] * known.view(1, -1, 1, 1)
        layer.weight = nn.Parameter(weight.detach())
    return small


@pytest.mark.parametrize(
    ("units", "width", "down", "how"),
    [
        *((1, 8, False, "view"), (1, 8, False, "module"), (1, 16, False, "view")),
        *((2, 16, False, "function"), (4, 16, False, "module"), (2, 16, True, "function")),
        *((2, 16, False, "view"), (4, 16, False, "view"), (2, 16, True, "view")),
    ],
)
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
def test_the_start_is_what_labels_say(
    units: int, width: int, down: bool, keep: float, how: str
) -> None:
    """At any depth, also where a narrow part holds channels that the wide part does not."""
    model = shufflenet(units, width, down, how)
    for seed in range(3):
        blended = bp.attach(model, bp.plan(model, image(), keep), init=random_scores(seed))
        blended.alpha = 0
        with torch.no_grad():
            expected = started(blended)(image(1))
            assert relative(expected, blended(image(1))) < 1e-12


@pytest.mark.parametrize("init", ["l1", "random", random_scores(5), random_scores(6)])
@pytest.mark.parametrize("how", SHUFFLES)
def test_collapse_is_exact_whatever_the_start(how: str, init: Any) -> None:
    model = shufflenet(3, 16, True, how)
    blended = bp.attach(model, bp.plan(model, image(), 0.5), init=init)
    for scrambled in (False, True):
        if scrambled:
            scramble(blended, seed=2)
        blended.alpha = 0
        small = bp.collapse(blended)
        with torch.no_grad():
            expected = spelled_out(blended)(image(1))
            assert relative(expected, small(image(1))) < 1e-10
            assert relative(expected, blended(image(1))) < 1e-10
        assert [m.weight.shape[0] for m in small.modules() if hasattr(m, "weight")] == [
            m.weight.shape[0] // (2 if m is not model[-1] else 1)
            for m in model.modules()
            if hasattr(m, "weight")
        ]


def test_groups_of_a_shuffle_net() -> None:
    plan = bp.plan(shufflenet(2, 16), image())
    pruned = {group.name: (group.layers, group.width) for group in plan.groups if group.pruned}
    assert pruned == {
        "0": (("0", "1.b", "2.b"), 8),
        "1.a": (("1.a",), 8),
        "2.a": (("2.a",), 8),
    }


class Halves(nn.Module):
    """Channels are shuffled, and each half of them has a norm and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shuffle = nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.b, self.c = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.shuffle(self.a(x)).chunk(2, 1)
        return self.b(self.first(first)), self.c(self.second(second))


def test_a_norm_of_channels_of_the_other_half_starts_from_a_chosen_one() -> None:
    """Of 3 out of 4 pairs, the first half holds one that the wide half does not."""
    model = scramble(Halves())
    plan = bp.plan(model, torch.randn(IMAGE), keep=0.75)
    blended = bp.attach(model, plan, init=lambda group: -torch.eye(group.width)[0])
    chosen, labels = [1, 2, 3], torch.arange(8)
    wide = F.channel_shuffle(labels.view(1, 8, 1, 1), 2).flatten()[:4].tolist()
    kept = torch.tensor([*chosen, *(c + 4 for c in chosen)])
    narrow = F.channel_shuffle(kept.view(1, 6, 1, 1), 2).flatten()[:3].tolist()
    places = [wide.index(c) if c in wide else chosen[i] for i, c in enumerate(narrow)]
    assert [c in wide for c in narrow] == [True, True, False]
    assert torch.equal(blended.twin.first.weight, model.first.weight[places])


@pytest.mark.parametrize("first", ["plain", "shuffled"])
def test_channels_tied_to_shuffled_ones_are_chosen_from_all_quarters(first: str) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        plain, shuffled = m.a(x), F.channel_shuffle(m.b(x), 2)
        return m.c((plain + shuffled if first == "plain" else shuffled + plain).relu())

    model = Net(run, a=nn.Conv2d(3, 16, 1), b=nn.Conv2d(3, 16, 1), c=nn.Conv2d(16, 2, 1))
    plan = bp.plan(model, torch.randn(IMAGE), keep=0.5)
    blended = bp.attach(model, plan, init=lambda group: -torch.arange(float(group.width)))
    width, kept = plan.groups[0].width, plan.groups[0].kept
    chosen = chosen_rows(blended, "a")
    assert chosen is not None and len(chosen) == 8
    quarters = (chosen % width) // (width // 4)
    assert quarters.bincount().tolist() == [8 * kept // (4 * kept)] * 4


def in_halves(m: Any, x: Tensor) -> Tensor:
    """See shuffled channels as two halves for a while."""
    y = F.channel_shuffle(m.a(x), 2)
    halves = y.view(y.shape[0], 2, y.shape[1] // 2, *IMAGE[2:])
    return m.b(halves.relu().flatten(1, 2).flatten(1))


def by_position(m: Any, x: Tensor) -> Tensor:
    """Lay the shuffled channels of one position behind those of another."""
    return m.b(F.channel_shuffle(m.a(x), 2).permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize("run", [in_halves, by_position])
@pytest.mark.parametrize("number", [0, 6, 15])
def test_the_start_behind_shuffled_channels_that_are_regrouped(
    run: Callable[..., Tensor], number: int
) -> None:
    layers = {"a": nn.Conv2d(3, 16, 1, bias=False), "b": nn.Linear(16 * 6 * 6, 2)}
    model = Net(run, **layers).double()
    blended = bp.attach(model, bp.plan(model, image()), init=one_of_each_pair(number))
    blended.alpha = 0
    rows = chosen_rows(blended, "a")
    assert rows is not None and len(rows) == 8
    with torch.no_grad():
        assert relative(masked(blended)(image(1)), blended(image(1))) < 1e-12
