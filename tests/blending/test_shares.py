"""How much of what layers read comes from the branch, against plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import scramble
from torch import Tensor, nn

import branchprune as bp
from branchprune.blending.branch_shares import branch_shares
from branchprune.graph.random_generators import generator_states

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def two_convolutions() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 4)),
    )


def blended_of(model: nn.Module, keep: float = 0.5) -> bp.Blended:
    model = scramble(model.double())
    blended = bp.attach(model, bp.plan(model, X, keep))
    return scramble(blended, seed=6).train()


def share(alpha: float, branch: Tensor, wide: Tensor) -> float:
    parts = [(1 - alpha) * branch.flatten().norm(), alpha * wide.flatten().norm()]
    return float((parts[0] / sum(parts)).detach())


def by_hand(blended: bp.Blended, alpha: float, second: float) -> dict[str, float]:
    """Compute both shares of `two_convolutions` in plain torch."""
    net, twin = blended.model, blended.twin.get_submodule("1")
    a0, a1 = (blended.reduce.get_submodule(name).weights[0] for name in ("0", "3"))
    b0, b1 = (blended.expand.get_submodule(name).weights[0] for name in ("3", "7"))
    z = F.conv2d(X, net[0].weight, net[0].bias)
    narrow = torch.einsum("kc,nchw->nkhw", a0, z)
    narrow = F.batch_norm(narrow, twin.running_mean, twin.running_var, twin.weight, twin.bias)
    branch = torch.einsum("ck,nkhw->nchw", b0, narrow.relu())
    norm = net[1]
    wide = F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    first = share(alpha, branch, wide)
    z = F.conv2d(alpha * wide + (1 - alpha) * branch, net[3].weight, net[3].bias)
    pooled = torch.einsum("kc,nchw->nkhw", a1, z).mean((2, 3)) @ b1.T
    return {"3": first, "7": share(second, pooled, z.mean((2, 3)))}


@pytest.mark.parametrize(("alpha", "second"), [(0.5, 0.5), (0.0625, 0.875)])
def test_shares_are_those_of_plain_torch(alpha, second):
    blended = blended_of(two_convolutions())
    blended.alpha = {"0": alpha, "3": second}
    assert branch_shares(blended, X) == pytest.approx(by_hand(blended, alpha, second), rel=1e-12)


def test_a_wide_path_that_grows_takes_the_share_of_the_branch():
    blended = blended_of(two_convolutions())
    blended.alpha = 0.25
    before = branch_shares(blended, X)["3"]
    with torch.no_grad():
        blended.model[1].weight *= 3
        blended.model[1].bias *= 3
    odds = before / (1 - before) / 3
    assert branch_shares(blended, X)["3"] == pytest.approx(odds / (1 + odds), rel=1e-12)


def test_what_has_no_two_paths_has_no_share():
    blended = blended_of(two_convolutions())
    for alpha in (0.0, 1.0):
        blended.alpha = alpha
        assert branch_shares(blended, X) == {}
    blended.alpha = {"0": 0.5, "3": 0.0}
    assert [*branch_shares(blended, X)] == ["3"]
    blended.alpha = 0.5
    with torch.no_grad():
        for model in (blended.model, blended.twin):
            layer = model.get_submodule("1")
            layer.weight.zero_()
            layer.bias.zero_()
    assert [*branch_shares(blended, X)] == ["7"]


class Joined(nn.Module):
    """A classifier that reads a part that stays, and two that shrink to their own α."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, n, 3) for n in (4, 6, 8))
        self.head = nn.Conv2d(18, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x), self.c(x)], 1))


def test_only_channels_between_0_and_1_count():
    model = scramble(Joined().double())
    blended = scramble(bp.attach(model, bp.plan(model, X, 0.5, exclude=["a"])), seed=6)
    ends = blended.expand.get_submodule("head")
    for alphas in ({"b": 0.25, "c": 0.625}, {"b": 0.25, "c": 0.0}):
        blended.alpha = alphas
        branch, wide = [], []
        for name, matrix in zip("bc", ends.weights, strict=True):
            if alphas[name]:
                z = blended.model.get_submodule(name)(X)
                reduce = blended.reduce.get_submodule(name).weights[0]
                narrow = torch.einsum("kc,nchw->nkhw", reduce, z)
                both = torch.einsum("ck,nkhw->nchw", matrix, narrow) * (1 - alphas[name])
                branch.append(both.flatten())
                wide.append(z.flatten() * alphas[name])
        expected = share(0.5, torch.cat(branch), torch.cat(wide))
        assert branch_shares(blended, X) == pytest.approx({"head": expected}, rel=1e-12)


def test_nothing_changes_and_nothing_is_drawn():
    blended = blended_of(two_convolutions())
    blended.alpha = 0.3
    before, random, x = copy.deepcopy(blended.state_dict()), generator_states(), X.clone()
    assert branch_shares(blended, x) == branch_shares(blended, [x])
    assert generator_states() == random
    assert torch.equal(x, X)
    assert blended.training
    after = blended.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(m._forward_hooks for m in blended.modules())


def test_drawn_paths_and_compiled_code_have_shares_too():
    blended = blended_of(two_convolutions())
    blended.alpha = 0.3
    expected = branch_shares(blended, X)
    drawn = bp.attach(blended.model, blended.plan, mixing="group")
    drawn.load_state_dict(blended.state_dict())
    assert branch_shares(drawn, X) == expected
    blended.compile(backend="eager")
    blended.eval()(X)
    assert branch_shares(blended, X) == expected
