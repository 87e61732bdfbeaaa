"""What a criterion is given of a group: the weights that make its channels."""

from __future__ import annotations

import torch
from models import scramble
from torch import Tensor, nn

import branchprune as bp


def test_a_norm_behind_a_flatten_is_no_scale_of_the_channels() -> None:
    """It has a number for every position; the scores are those of the norm that has one each."""
    seen: dict[str, bp.GroupWeights] = {}

    def keep(group: bp.GroupWeights) -> Tensor:
        seen[group.name] = group
        return group.norms[0].abs()

    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
        *(nn.BatchNorm1d(6 * 4), nn.Linear(6 * 4, 2)),
    )
    scramble(model).eval()
    plan = bp.plan(model, torch.randn(2, 3, 4, 4))
    blended = bp.attach(model, plan, init=keep)
    assert [scale.tolist() for scale in seen["0"].norms] == [model[1].weight.tolist()]
    biases = [model[0].bias, model[1].bias]
    assert [bias.flatten().tolist() for bias in seen["0"].biases] == [b.tolist() for b in biases]
    best = model[1].weight.detach().abs().topk(3).indices.sort().values
    assert blended.reduce.get_submodule("0").weights[0].argmax(1).tolist() == best.tolist()
    assert torch.equal(blended.twin.get_submodule("1").weight, model[1].weight[best])
    entries = torch.arange(24).view(6, 4)[best].flatten()
    assert torch.equal(blended.twin.get_submodule("4").weight, model[4].weight[entries])
