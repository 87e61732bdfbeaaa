"""What forward does beside computing tensors: kept where that is right, else refused by name."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.random_generators import generator_states

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Net(nn.Module):
    """Three convolutions and a head; `middle` is what a test puts in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 4)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.b(F.relu(self.a(x)))))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


def attached(model: nn.Module, example: Any = X, **options: Any) -> bp.Blended:
    return bp.attach(model, bp.plan(model, example, 0.5, **options))


def refused(model: nn.Module, *words: str, example: Any = X) -> None:
    with pytest.raises(bp.PruneError) as error:
        attached(model, example)
    for word in words:
        assert word in str(error.value)


def gradients(model: nn.Module, module: nn.Module) -> list[Tensor]:
    model.train()
    return list(torch.autograd.grad(model(X).square().sum(), list(module.parameters())))


def check_same_training(model: nn.Module, blended: bp.Blended) -> None:
    expected, found = gradients(model, model), gradients(blended, blended.model)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


# (a) gradients that forward switches off


class StraightThrough(Net):
    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            difference = torch.round(x) - x
        return x + difference


class Gate(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).sigmoid()


class Gated(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def middle(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Harmless(Net):
    """Nothing here has a gradient that would get lost."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x - self.mean
        return super().forward(x)

    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            positive, half = x.detach() > 0, x.shape[2] // 2
        return x * positive * half


@pytest.mark.parametrize("model", [StraightThrough(), Gated()])
def test_functions_under_no_grad_are_refused(model: nn.Module) -> None:
    refused(model, "under no_grad", "test_hidden_effects.py", "detach()")


def test_the_module_under_no_grad_is_named() -> None:
    refused(Gated(), "forward of gate computes `return x.mean((2, 3)")


def test_no_grad_around_what_has_no_gradient_is_fine() -> None:
    model = Harmless()
    check_same_training(model, attached(model))


def test_no_grad_on_an_input_matters_inside_a_model() -> None:
    model = nn.Sequential(conv(3, 3), Harmless())
    with pytest.raises(bp.PruneError, match="under no_grad"):
        bp.plan(model, X, inside="1")


# (b) backward passes of one's own


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Reversed(Net):
    def middle(self, x: Tensor) -> Tensor:
        return Reverse.apply(x)


class Clipped(Net):
    def middle(self, x: Tensor) -> Tensor:
        return Clip.apply(x, 0.1)


@pytest.mark.parametrize("model", [Reversed(), Clipped()])
def test_an_autograd_function_keeps_its_backward(model: nn.Module) -> None:
    blended = attached(model)
    check_same_training(model, blended)
    check_same_training(model, pickle.loads(pickle.dumps(copy.deepcopy(blended))))
    blended.alpha = 0
    assert bp.collapse(blended)(X).shape == (2, 4)


def test_what_an_autograd_function_reads_keeps_its_width() -> None:
    planned = {group.name: group for group in bp.plan(Clipped(), X).groups}
    assert planned["a"].pruned and "Clip" in str(planned["b"].reason)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_are_told() -> None:
    class Checkpointed(Net):
        def middle(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(F.relu, x, use_reentrant=True)

    model = Checkpointed()
    with pytest.warns(UserWarning, match="forward runs relu.* under torch.utils.checkpoint"):
        blended = attached(model)
    assert torch.equal(blended(X), model(X))


# (c) draws and memories in Python


class Drawn(Net):
    """Adds or leaves out something at random, in training."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def middle(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.kind == "torch":
            return x if torch.rand(1).item() < 0.5 else 2 * x
        if self.kind == "random":
            return x if random.random() < 0.5 else 2 * x
        if self.kind == "numpy":
            return x if np.random.rand() < 0.5 else 2 * x
        return x + torch.randn(1, 1, 8, 8)


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x))


@pytest.mark.parametrize("kind", ["torch", "random", "numpy"])
def test_draws_in_forward_are_refused_and_taken_back(kind: str) -> None:
    model, before = Around(Drawn(kind)), generator_states()
    refused(model, "forward of inner draws random numbers", "F.dropout")
    assert generator_states() == before


@pytest.mark.parametrize("kind", ["random", "numpy"])
def test_draws_of_the_model_itself_are_refused(kind: str) -> None:
    refused(Drawn(kind), "forward of the model draws random numbers", "F.dropout")


def test_draws_on_tensors_stay_random() -> None:
    class Noisy(Net):
        def middle(self, x: Tensor) -> Tensor:
            x = F.dropout(x, 0.5, self.training) + torch.rand_like(x)
            return x * torch.rand(x.shape[0], 1, 1, 1)

    model, before = Noisy(), generator_states()
    blended = attached(model)
    assert generator_states() == before
    assert not torch.equal(blended(X), blended(X))


def test_draws_of_torch_are_recorded() -> None:
    model, before = Around(Drawn("constant")), generator_states()
    blended = attached(model)
    assert generator_states() == before
    outputs = []
    for net in (model.train(), blended.train()):
        torch.manual_seed(0)
        outputs.append([net(X), net(X)])
    assert all(map(torch.equal, *outputs))
    assert not torch.equal(*outputs[0])


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2 if self.calls > 3 else x


class Switch(nn.Module):
    """Puts its own norm into evaluation mode, as frozen norms are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        return self.norm(x)


def test_counters_are_refused() -> None:
    refused(nn.Sequential(Counter(), Net()), "forward of 0 changes its attribute calls", "to 1")


def test_a_number_that_is_not_one_yet_is_no_change() -> None:
    class Remembers(Net):
        def __init__(self) -> None:
            super().__init__()
            self.best = float("nan")

    assert bp.plan(Remembers(), X).pruned


def test_a_change_of_mode_is_refused() -> None:
    refused(nn.Sequential(Switch(), Net()), "forward of 0.norm changes its attribute training")


def test_a_counter_may_be_left_out() -> None:
    model = nn.Sequential(Counter(), Net())
    blended = attached(model, opaque="0")
    assert blended.alpha


# (d) a comparison in training mode


class View(Net):
    """In training, changes a view of a tensor."""

    def middle(self, x: Tensor) -> Tensor:
        if self.training:
            x.flatten(2).mul_(3.0)
        return x


class HookOnTensor(Net):
    """Changes a gradient where the value of forward is the same."""

    def middle(self, x: Tensor) -> Tensor:
        if not isinstance(x, torch.fx.Proxy):
            x.register_hook(lambda gradient: -gradient) if x.requires_grad else None
        return x


class Writes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def middle(self, x: Tensor) -> Tensor:
        if self.training:
            torch.add(self.seen, x.mean((0, 2, 3)).detach(), out=self.seen)
        return x - self.seen.view(1, -1, 1, 1)


class ByItsSecondName(Net):
    def middle(self, x: Tensor) -> Tensor:
        second = x.contiguous()
        second += 1
        part = x[:, :, 2:4]
        part.mul_(3.0)
        second[:, :, 3:] -= part.mean()
        return x + part.sum()


@pytest.mark.parametrize("model", [View(), Writes(), ByItsSecondName()])
def test_changes_by_another_name_reach_all_that_share_the_memory(model: Net) -> None:
    blended = attached(model)
    for _ in range(2):
        assert torch.equal(blended.train()(X), model.train()(X))
    state = blended.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(blended.eval()(X), model.eval()(X))


def tripled(x: Tensor) -> Tensor:
    return x.mul_(3.0)


class Hidden(Net):
    """Changes a tensor where no function of torch is called."""

    def middle(self, x: Tensor) -> Tensor:
        HIDDEN[0](x)
        return x


HIDDEN: list[Any] = []


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_change_that_a_trace_does_not_see_is_refused() -> None:
    HIDDEN[:] = [torch.jit.script(tripled)]
    refused(Hidden(), "changes relu_1 in place where a trace does not see it", "`opaque`")


def test_gradients_are_compared() -> None:
    refused(HookOnTensor(), "has another gradient in a.weight")


def test_the_comparison_leaves_no_trace() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(), eight())
    model[1].eval()
    plan = bp.plan(model, X)
    state, generators = copy.deepcopy(model.state_dict()), generator_states()
    blended = bp.attach(model, plan)
    assert generator_states() == generators
    assert all(torch.equal(a, state[name]) for name, a in model.state_dict().items())
    assert all(p.grad is None for m in (model, blended) for p in m.parameters())
    assert not model[1].training and model[2].training and not blended.model[1].training
    assert int(blended.model[1].num_batches_tracked) == 0


def eight() -> nn.Module:
    return nn.Sequential(conv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_a_model_that_cannot_train_on_the_example_is_compared_in_evaluation() -> None:
    pooled = (conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten())
    model = nn.Sequential(*pooled, nn.Linear(8, 4))
    assert attached(model, X[:1]).alpha


# weights that forward reads


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e1, self.e2, self.out = nn.Linear(16, 12), nn.Linear(12, 6), nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.e2(F.relu(self.e1(x)))
        return self.out(F.relu(F.linear(hidden, self.e2.weight.T)))


class Normed(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x / self.b.weight.data.norm()


class Typed(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.to(self.b.weight.dtype).to(self.b.weight.device)


def test_a_tied_weight_keeps_its_width() -> None:
    with pytest.raises(bp.PruneError, match=r"forward itself reads e2\.weight"):
        bp.plan(Tied(), torch.randn(4, 16))


def test_a_weight_whose_data_are_read_keeps_its_width() -> None:
    planned = {group.name: group for group in bp.plan(Normed(), X).groups}
    assert planned["b"].reason == "forward itself reads b.weight"
    assert planned["c"].pruned
    blended = attached(Normed())
    blended.alpha = 0
    assert bp.collapse(blended)(X).shape == (2, 4)


def test_the_type_of_a_weight_may_be_read() -> None:
    assert {group.name for group in bp.plan(Typed(), X).groups if group.pruned} == {"a", "b", "c"}


# a constant example, and NaN


class Tripled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x.flatten(2).mul_(3.0)
        return self.b(x)


def differing(model: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
    """A hook, which a trace does not see."""
    return outputs * 3 if inputs[0].abs().sum() > 0 else outputs


def test_a_constant_example_does_not_hide_a_difference() -> None:
    model = Tripled()
    blended = attached(model, torch.zeros(1, 3, 8, 8))
    assert torch.equal(blended(X), model(X))
    model.register_forward_hook(differing)
    refused(model, "differs from the model", example=torch.zeros(1, 3, 8, 8))


def test_nan_where_the_model_has_none_is_refused() -> None:
    class Zeroed(Tripled):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x)) * 0
            y = x + 0
            return self.b(x / y)

    model = Zeroed()
    model.register_forward_hook(lambda module, inputs, outputs: torch.zeros_like(outputs))
    refused(model, "differs from the model")


# costs


class Masked(Net):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(mask * x)


@pytest.mark.parametrize("mask", [torch.ones(8, 8), torch.ones(1, 1, 8, 8)])
@pytest.mark.parametrize("batch", [1, 2])
def test_macs_are_those_of_one_example_beside_a_mask(mask: Tensor, batch: int) -> None:
    assert bp.plan(Masked(), (mask, X[:batch])).before == bp.plan(Net(), X[:1]).before


def test_macs_with_inputs_in_a_list() -> None:
    class Listed(Net):
        def forward(self, xs: list[Tensor]) -> Tensor:  # type: ignore[override]
            return super().forward(xs[0])

    assert bp.plan(Listed(), ([X],)).before == bp.plan(Net(), X[:1]).before


def test_macs_behind_a_split_are_those_of_one_example() -> None:
    class Halved(Net):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return super().forward(torch.cat([second, first], -1))

    assert bp.plan(Halved(), X).before == bp.plan(Net(), X[:1]).before


def test_a_large_table_beside_small_inputs() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, table: Tensor, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x))) + table.sum()

    plan = bp.plan(Table(), (torch.ones(500, 2), torch.randn(2, 3)))
    assert plan.before.macs == 28
    assert "macs: 28 → 14 (-50.0%)" in str(plan)


class Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) * self.scale * self.one


def test_a_single_number_stays_in_the_count() -> None:
    bp.teach(Scaled, bp.rules.channelwise)
    layers = [layer for _ in range(3) for layer in (conv(8, 8), Scaled(8))]
    model = nn.Sequential(conv(3, 8), *layers, conv(8, 4))
    blended = attached(model)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert blended.plan.after.params == sum(p.numel() for p in small.parameters())


# modules in another mode than the whole


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(self.a(x)), 0.5, self.training)


def test_a_frozen_module_with_a_mode_of_its_own_is_refused() -> None:
    blended = attached(nn.Sequential(Dropping(), eight())).train()
    blended(X)
    blended.model[0].eval()
    with pytest.raises(bp.PruneError, match="0 is in evaluation mode"):
        blended(X)
    blended.eval()(X)


def test_a_frozen_norm_works() -> None:
    model = nn.Sequential(Dropping(), nn.BatchNorm2d(8), nn.Dropout(), eight())
    blended = attached(model).train()
    for frozen in (blended.model[1], blended.model[2]):
        frozen.eval()
    blended(X)
    assert int(blended.model[1].num_batches_tracked) == 0


# arguments in another order, wrong arguments, names in messages


def test_the_tensor_may_be_given_by_name_and_last() -> None:
    class Named(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.mean(dim=(2, 3), input=self.c(self.b(self.a(x)))))

    assert attached(Named()).alpha


@pytest.mark.parametrize("argument", ["exclude", "opaque"])
@pytest.mark.parametrize("value", [None, 3, [None]])
def test_names_must_be_paths(argument: str, value: Any) -> None:
    with pytest.raises(bp.PruneError) as error:
        bp.plan(Net(), X, **{argument: value})
    assert f"{argument} (={value!r})" in str(error.value)


def test_the_place_where_the_branch_fails_is_named() -> None:
    class Wide(Net):
        def middle(self, x: Tensor) -> Tensor:
            return checked(x)

    bp.teach(checked, bp.rules.same)
    refused(Wide(), "the branch does not run at its widths", "at `checked`", "in Wide")


def checked(x: Tensor) -> Tensor:
    if x.shape[1] != 8:
        raise ValueError(f"{x.shape[1]} channels")
    return x


# (f) what modules keep between calls, beside numbers


class Kept(Net):
    """Keeps something in its attribute `own` that each call uses or changes."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own


class DrawsOne(Kept):
    def middle(self, x: Tensor) -> Tensor:
        return x * float(self.own.random())


class DrawsTensor(Kept):
    def middle(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=self.own)


class KeepsTensor(Kept):
    def middle(self, x: Tensor) -> Tensor:
        if self.own is None:
            self.own = self.made(x)
        return x * self.own

    def made(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class KeepsDraw(KeepsTensor):
    def made(self, x: Tensor) -> Tensor:
        return torch.rand(1, x.shape[1], 1, 1)


class KeepsOnes(KeepsTensor):
    def made(self, x: Tensor) -> Tensor:
        return x.new_ones(1, x.shape[1], 1, 1) * 0.5


@pytest.mark.parametrize("own", [random.Random(0), np.random.default_rng(0)])
def test_draws_from_a_generator_of_the_module_are_refused(own: Any) -> None:
    refused(DrawsOne(own), "DrawsOne draws random numbers from its attribute own")


def test_a_generator_that_is_held_and_not_used_does_no_harm() -> None:
    attached(Kept(random.Random(0)))


def test_a_generator_of_torch_is_refused_by_its_line() -> None:
    refused(DrawsTensor(torch.Generator()), "torch.rand(x.shape, generator=self.own)")


@pytest.mark.parametrize(("kind", "name"), [(KeepsTensor, "mean"), (KeepsDraw, "rand")])
def test_a_tensor_kept_from_the_first_call_is_refused(kind: type[Kept], name: str) -> None:
    refused(kind(None), f"forward keeps {name}", "for a later call")


def test_a_tensor_that_follows_from_sizes_may_be_kept() -> None:
    model = KeepsOnes(None)
    blended = attached(model)
    assert torch.equal(blended(X), model(X)) and torch.equal(blended(X), model(X))
    blended.alpha = 0
    assert bp.collapse(blended)(X).shape == (2, 4)
