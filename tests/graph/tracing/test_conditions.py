"""Conditions on shapes in forward: followed for the example, refused where they come out else."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp

DOUBLE = {"dtype": torch.float64}
ELSEWHERE = "forward takes another branch than for the plan's example at"
ALPHAS = [1, 0.5, 0]


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def attached(model: nn.Module, example: Any) -> bp.Blended:
    return bp.attach(model, bp.plan(model, example))


def check_exact(model: nn.Module, example: tuple[Any, ...]) -> bp.Blended:
    """Collapse and compare with the branch by other means, on other inputs; return the blended."""
    blended = attached(model, example)
    other = tuple(2 * torch.randn_like(a) if isinstance(a, Tensor) else a for a in example)
    assert torch.equal(blended(*other), model(*other))
    scramble(blended, seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        expected = spelled_out(blended)(*other)
        assert relative(expected, small(*other)) < 1e-10
        assert relative(expected, blended(*other)) < 1e-10
        assert relative(expected, model(*other)) > 1e-3
    assert type(small) is type(model)
    return blended


def make(kind: Callable[..., nn.Module], *args: Any) -> nn.Module:
    return scramble(kind(*args).double().eval())


class UNet(nn.Module):
    """Pads or resizes what comes up where an image has odd sizes."""

    def __init__(self, how: str = "interpolate") -> None:
        super().__init__()
        self.how = how
        self.down1 = nn.Conv2d(3, 8, 3, padding=1)
        self.down2 = nn.Conv2d(8, 12, 3, 2, 1)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.end = nn.Conv2d(14, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down1(x).relu()
        deep = self.up(self.down2(wide).relu())
        if deep.shape[2:] != wide.shape[2:]:
            if self.how == "pad":
                rows, columns = (wide.size(d) - deep.size(d) for d in (2, 3))
                deep = F.pad(deep, [0, columns, 0, rows])
            elif self.how == "crop":
                deep = deep[:, :, : wide.shape[2], : wide.shape[3]]
            else:
                deep = F.interpolate(deep, size=wide.shape[2:], mode="nearest")
        return self.end(torch.cat([wide, deep], 1))


@pytest.mark.parametrize("how", ["interpolate", "pad", "crop"])
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_u_nets(how: str, size: tuple[int, int]) -> None:
    blended = check_exact(make(UNet, how), (image(2, 3, *size),))
    model = blended.model
    other = image(1, 3, *[s + 2 for s in size])
    blended.alpha = 1
    assert torch.equal(blended(other), model(other))


def test_u_net_that_pads() -> None:
    class Larger(UNet):
        def forward(self, x: Tensor) -> Tensor:
            wide = self.down1(x).relu()
            deep = self.up(self.down2(wide).relu())[:, :, 1:]
            if deep.size(2) < wide.size(2):
                deep = F.pad(deep, [0, 0, 0, wide.size(2) - deep.size(2)])
            return self.end(torch.cat([wide, deep], 1))

    blended = check_exact(make(Larger), (image(2, 3, 8, 8),))
    blended.alpha = 1
    assert torch.equal(blended(image(1, 3, 6, 4)), blended.model(image(1, 3, 6, 4)))
    with pytest.raises(bp.PruneError, match=ELSEWHERE):
        blended(image(1, 3, 7, 8))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_another_branch_is_refused(size: tuple[int, int], training: bool, alpha: float) -> None:
    blended = attached(make(UNet), image(2, 3, *size)).train(training)
    blended.alpha = alpha
    with pytest.raises(bp.PruneError) as error:
        blended(image(2, 3, *[s + 1 for s in size]))
    message = str(error.value)
    assert message.startswith(f"{ELSEWHERE} `if deep.shape[2:] != wide.shape[2:]:` ({__file__}:")
    blended(image(3, 3, *size))


def test_another_branch_is_refused_in_a_copy_and_by_the_branch_alone() -> None:
    blended = attached(make(UNet), image(2, 3, 8, 6))
    for other in (copy.deepcopy(blended), pickle.loads(pickle.dumps(blended))):
        with pytest.raises(bp.PruneError, match=ELSEWHERE):
            other(image(2, 3, 7, 6))
    with pytest.raises(bp.PruneError, match=ELSEWHERE), blended.branch_only():
        blended(image(2, 3, 7, 6))
    assert set(blended.alpha.values()) == {1.0}


def test_the_collapsed_model_takes_any_branch() -> None:
    model = make(UNet)
    blended = scramble(attached(model, image(2, 3, 8, 6)), seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    other = image(2, 3, 7, 5)
    with torch.no_grad():
        assert relative(spelled_out(blended)(other), small(other)) < 1e-10


class Shapes(nn.Module):
    """Asks for sizes in many ways."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            x = x[None]
        if x.ndim != 4 or x.numel() == 0:
            raise ValueError("four dimensions")
        if x.size(1) != self.width:
            x = x[:, : self.width]
        assert x.size(1) == self.width, "width"
        y = self.a(x).relu()
        if y.shape[-1] % 2:
            y = F.pad(y, (0, 1))
        if y.size(2) > 6 and not y.size(3) > 8:
            y = F.avg_pool2d(y, 2)
        while y.shape[2] > 5:
            y = F.max_pool2d(y, 2)
        return self.b(y)


@pytest.mark.parametrize(
    ("shape", "others"),
    [
        ((2, 3, 8, 8), [(2, 3, 8, 7), (2, 3, 8, 10), (2, 5, 8, 8), (3, 8, 8), (2, 3, 6, 6)]),
        ((2, 5, 8, 7), [(2, 3, 8, 7), (2, 5, 8, 8)]),
        ((3, 6, 6), [(1, 3, 6, 6), (3, 6, 5)]),
    ],
)
def test_sizes_of_all_kinds(shape: tuple[int, ...], others: list[tuple[int, ...]]) -> None:
    model = make(Shapes)
    blended = check_exact(model, (image(*shape),))
    for alpha in ALPHAS:
        blended.alpha = alpha
        for other in others:
            expected = model(image(*other))
            with pytest.raises(bp.PruneError, match=ELSEWHERE):
                assert torch.equal(blended(image(*other)), expected)


def test_a_failing_check_of_forward_is_refused_while_planning() -> None:
    with pytest.raises(bp.PruneError):
        bp.plan(make(Shapes), image(2, 2, 8, 8))
    blended = attached(make(Shapes), image(2, 3, 8, 8))
    with pytest.raises(bp.PruneError, match=ELSEWHERE):
        blended(image(2, 2, 8, 8))


class Flags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, o, 1) for i, o in ((3, 8), (8, 4), (8, 6)))

    def forward(self, x: Tensor, head: str = "b", scale: float = 1.0, twice: bool = False) -> Any:
        y = self.a(x).relu()
        if twice:
            y = y + y
        if scale > 1:
            y = y * scale
        return self.b(y) if head == "b" else self.c(y).tanh()


@pytest.mark.parametrize(
    ("given", "other"),
    [
        (("b", 1.0, False), ("c", 1.0, False)),
        (("c", 1.0, False), ("b", 1.0, False)),
        (("c", 2.0, True), ("c", 2.0, False)),
        (("b", 2.0, True), ("b", 0.5, True)),
    ],
)
def test_flags_and_strings(given: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    model, x = make(Flags), image(2, 3, 4, 4)
    blended = check_exact(model, (x, *given))
    for alpha in ALPHAS:
        blended.alpha = alpha
        with pytest.raises(bp.PruneError, match=ELSEWHERE):
            blended(x, *other)
        blended(x, *given)
    assert not torch.allclose(model(x, *given).sum(), model(x, *other).sum())


def test_a_number_on_the_same_side_is_used() -> None:
    model, x = make(Flags), image(2, 3, 4, 4)
    blended = attached(model, (x, "b", 2.0))
    assert torch.equal(blended(x, "b", 3.5), model(x, "b", 3.5))
    assert not torch.equal(blended(x, "b", 3.5), blended(x, "b", 2.0))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_number_of_arguments_is_that_of_the_example(alpha: float) -> None:
    model, x = make(Flags), image(2, 3, 4, 4)
    blended = attached(model, (x, "b"))
    blended.alpha = alpha
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x,), {}),
        ((x, "b", 2.0), {}),
        ((), {}),
        ((x, "b"), {"twice": True}),
        ((), {"x": x}),
    ]
    for args, kwargs in wrong:
        count = len(args) + len(kwargs)
        with pytest.raises(bp.PruneError, match=rf"given {count} arguments, .* example had 2"):
            blended(*args, **kwargs)
    assert torch.equal(blended(x, head="b"), blended(x, "b"))
    assert torch.equal(blended(head="b", x=x), blended(x, "b"))


class OnBuffers(nn.Module):
    """Asks for the shape of a buffer, and for another's number."""

    def __init__(self, by_value: bool = False) -> None:
        super().__init__()
        self.by_value = by_value
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("shift", torch.randn(1, 3, 4, 4))
        self.register_buffer("ready", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.shift.shape[2:] == x.shape[2:]:
            x = x + self.shift
        if self.by_value and self.ready > 0:
            x = 2 * x
        return self.b(self.a(x).relu())


@pytest.mark.parametrize(("size", "other"), [(4, 5), (5, 4)])
def test_shapes_of_buffers(size: int, other: int) -> None:
    blended = check_exact(make(OnBuffers), (image(2, 3, size, size),))
    for alpha in ALPHAS:
        blended.alpha = alpha
        with pytest.raises(bp.PruneError, match=r"at `if self\.shift\.shape\[2:\] == x"):
            blended(image(2, 3, other, other))


def on_values(x: Tensor) -> Tensor:
    return -x if x.sum() > 0 else x


def on_largest(x: Tensor) -> Tensor:
    if x.argmax() == 3:
        return -x
    return x


def on_item(x: Tensor) -> Tensor:
    return x * 2 if x.max().item() > 1 else x


def on_count(x: Tensor) -> Tensor:
    return x if x.nonzero().shape[0] > 3 else -x


def on_truth(x: Tensor) -> Tensor:
    return x if torch.isfinite(x).all() else x.nan_to_num()


class OnValues(nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run, self.a, self.b = run, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.run(self.a(x).relu()))


@pytest.mark.parametrize("run", [on_values, on_largest, on_item, on_count, on_truth])
def test_conditions_on_values_are_refused(run: Callable[[Tensor], Tensor]) -> None:
    model = make(OnValues, run)
    with pytest.raises(bp.PruneError, match=r"the model cannot be traced .*out of forward"):
        bp.plan(model, image(2, 3, 4, 4))
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(image(1, 3, 4, 4)), model(image(1, 3, 4, 4)))


def test_the_value_of_a_buffer_is_refused() -> None:
    with pytest.raises(bp.PruneError, match=r"cannot be traced in OnBuffers at `if self.by_value"):
        bp.plan(make(OnBuffers, True), image(2, 3, 4, 4))


class OnWidth(nn.Module):
    """Asks for a width that is to shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.shape[1] >= 6:
            y = y.relu()
        return self.c(self.b(y).relu())


def test_a_width_that_a_condition_asks_for_stays() -> None:
    model, x = make(OnWidth), image(2, 3, 4, 4)
    reasons = {group.name: group.reason for group in bp.plan(model, x).groups}
    assert reasons["a"] == "forward asks for its width at `if y.shape[1] >= 6:`"
    assert reasons["b"] is None
    check_exact(model, (x,))


class Numbers(nn.Module):
    """Turns sizes into plain numbers, as many tutorials do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu()).relu()
        if self.how == "int":
            y = F.interpolate(y, size=(int(x.shape[2] * 1.5), int(x.shape[3] / 2)))
        elif self.how == "range":
            y = torch.stack([y[i] * (i + 1) for i in range(x.size(0))])
        elif self.how == "float":
            y = y * float(x.shape[2])
        else:
            y = torch.cat([y[:, int(y.size(1) / 2) :], y[:, : int(y.size(1) / 2)]], 1)
        return self.c(y)


@pytest.mark.parametrize("how", ["int", "range", "float", "width"])
def test_numbers_made_of_sizes(how: str) -> None:
    model, x = make(Numbers, how), image(2, 3, 4, 4)
    blended = bp.attach(model, plan := bp.plan(model, x))
    reasons = {group.name: group.reason or "" for group in plan.groups}
    assert not reasons["a"]
    assert ("forward asks for its width at `y = torch.cat" in reasons["b"]) == (how == "width")
    other = image(3, 3, 6, 4)
    if how == "width":
        assert torch.equal(blended(other), model(other))
    for blended.alpha in () if how == "width" else (1.0, 0.5, 0.0):
        with pytest.raises(bp.PruneError, match=r"forward computes .* which was .* at `"):
            blended(other)
    check_exact(model, (x,))


def test_conditions_inside_a_part() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = UNet()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * (2 if float(x.sum()) > 0 else 1)

    model, x = make(Whole), image(2, 3, 7, 6)
    blended = scramble(bp.attach(model, bp.plan(model, x, inside="net")), seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        assert relative(spelled_out(blended)(2 * x), small(2 * x)) < 1e-10
    with pytest.raises(bp.PruneError, match=ELSEWHERE):
        blended(image(2, 3, 8, 6))
    assert "forward" not in vars(blended.model.net)


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_planning_leaves_statistics_as_they_were(size: tuple[int, int]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), UNet(), nn.BatchNorm2d(4)).double().train()
    model[1].up = nn.Sequential(model[1].up, nn.BatchNorm2d(6)).double()
    state = copy.deepcopy(model.state_dict())
    x = image(2, 3, *size)
    bp.attach(model, bp.plan(model, x))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("example", [(None,), (None, True)])
def test_an_argument_that_is_none(example: tuple[Any, ...]) -> None:
    class Masked(Flags):
        def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
            y = self.a(x).relu()
            if mask is not None:
                y = y * mask
            return self.b(y + y if twice else y)

    check_exact(make(Masked), (image(2, 3, 4, 4), *example))


def test_an_argument_that_is_none_in_training() -> None:
    class Labelled(Flags):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            y = self.a(x).relu()
            return self.b(2 * y if self.training and labels is not None else y)

    model, x = make(Labelled), image(2, 3, 4, 4)
    blended = attached(model, (x, None))
    assert torch.equal(blended.train()(x, None), model.train()(x, None))
