"""How the output changes with a group's width, beside computations written out."""

from math import nan

import pytest
import torch
from models import resnet, scramble, vgg
from torch import nn

import branchprune as bp
from branchprune.criteria.group_weights import GroupWeights
from branchprune.targets.error_curves import MeasuredErrors, error_curve
from branchprune.targets.measurement import Measurement
from branchprune.targets.output_change import OutputChange


def test_the_change_of_an_output_is_divergence_or_error() -> None:
    torch.manual_seed(0)
    wanted, found = torch.randn(7, 4), torch.randn(7, 4)
    p, q = wanted.double().softmax(1), found.double().softmax(1)
    divergence = float((p * (p / q).log()).sum(1).mean())
    assert OutputChange([[wanted]]).of([[found]]) == pytest.approx(divergence)
    maps, other = torch.randn(7, 4, 3, 3), torch.randn(7, 4, 3, 3)
    error = float(((maps - other) ** 2).sum() / ((maps - maps.mean(0)) ** 2).sum())
    assert OutputChange([[maps]]).of([[other]]) == pytest.approx(error)
    both = OutputChange([[wanted, maps]]).of([[found, other]])
    assert both == pytest.approx((divergence + error) / 2)
    assert OutputChange([[wanted, maps]]).of([[wanted, maps]]) == 0
    with pytest.raises(bp.PruneError, match=r"changes from \(7, 4\) to \(6, 4\)"):
        OutputChange([[wanted]]).of([[found[:6]]])


@pytest.mark.parametrize("shape", [(64, 5), (64, 1), (64, 3, 4, 4)])
@pytest.mark.parametrize("sizes", [[63, 1], [1] * 64, [20, 44]])
def test_the_change_of_an_output_is_the_same_however_batches_are_cut(shape, sizes) -> None:
    torch.manual_seed(0)
    wanted = 5 + torch.randn(shape)
    found = wanted + 0.1 * torch.randn(shape)
    whole = OutputChange([[wanted]]).of([[found]])
    cut = OutputChange([[each] for each in wanted.split(sizes)])
    assert cut.of([[each] for each in found.split(sizes)]) == pytest.approx(whole)


def test_images_of_several_sizes_have_one_mean() -> None:
    wanted = [[torch.zeros(2, 1, 4, 4)], [torch.ones(2, 1, 2, 2)]]
    found = [[torch.zeros(2, 1, 4, 4)], [torch.zeros(2, 1, 2, 2)]]
    spread = 32 * 0.2**2 + 8 * 0.8**2  # eight of forty numbers are 1
    assert OutputChange(wanted).of(found) == pytest.approx(8 / spread)


@pytest.mark.parametrize("criterion", ["reconstruction", "l1"])
@pytest.mark.parametrize("make", [vgg, resnet])
def test_a_curve_falls_through_what_was_measured(make, criterion: str) -> None:
    torch.manual_seed(0)
    model, x = scramble(make()).eval(), torch.randn(64, 3, 8, 8)
    plan = bp.plan(model, x[:2], keep=0.5)
    measurement = Measurement(model, plan.structure, [x], plan.pruned)
    for group in plan.pruned:
        curve, width = error_curve(measurement, group, criterion), plan.groups[group].width
        order = curve.ranks.argsort(descending=True)
        assert sorted(curve.ranks.tolist()) == [*range(1, width + 1)]
        assert len(curve.errors) == width + 1 and curve.errors[-1] == 0
        assert (curve.errors.diff() < 0).all()
        assert [k for k, _ in curve.measured] == [width // 4, width // 2]
        for i, (k, found) in enumerate(curve.measured):
            assert found == pytest.approx(measurement.change({group: order[:k]}))
            least = max(change for _, change in curve.measured[i:])  # no wider group has more
            assert float(curve.errors[k]) == pytest.approx(least, rel=0.01)


def test_a_criterion_ranks_and_what_is_measured_makes_the_curve() -> None:
    torch.manual_seed(0)
    model, x = scramble(vgg()).eval(), torch.randn(32, 3, 8, 8)
    plan = bp.plan(model, x[:2], keep=0.5)
    errors = MeasuredErrors([x], "l1")
    errors.measure(model, plan.structure, plan.pruned)
    for group in plan.pruned:
        layer = model.get_submodule(plan.groups[group].name)
        norms = layer.weight.detach().abs().flatten(1).sum(1)
        assert torch.equal(errors.curves[group].ranks.argsort(), norms.argsort())
    by_norm = bp.plan(model, x[:1], target={"macs": 0.5}, batches=[x], criterion=norm)
    assert (
        by_norm.change
        == bp.plan(model, x[:1], target={"macs": 0.5}, batches=[x], criterion="l1").change
    )
    with pytest.raises(bp.PruneError, match=r"criterion \(='l3'\) must be 'random', 'l0', 'l1'"):
        bp.plan(model, x[:1], target={"macs": 0.5}, batches=[x], criterion="l3")
    for scores, said in ((lambda g: torch.ones(1), "shape"), (lambda g: norm(g) * nan, "NaN")):
        with pytest.raises(bp.PruneError, match=f"criterion returned .*{said}"):
            bp.plan(model, x[:1], target={"macs": 0.5}, batches=[x], criterion=scores)
    with pytest.raises(bp.PruneError, match=r"criterion \(='l1'\) belongs to a target"):
        bp.plan(model, x[:1], 0.5, criterion="l1")
    with pytest.raises(bp.PruneError, match="batches hold what was measured: criterion"):
        bp.plans(model, x[:1], [{"macs": 0.5}], batches=errors, criterion="l2")


def norm(group: GroupWeights) -> torch.Tensor:
    return torch.stack([weight.abs().sum(1) for weight in group.producers]).sum(0)


def test_what_others_repeat_costs_nothing() -> None:
    """Of eight channels four are the other four, doubled: half of them explain all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias):
            parameter[4:] = 2 * parameter[:4]
    x = torch.randn(64, 3, 8, 8)
    plan = bp.plan(model, x[:2], keep=0.5)
    [group] = plan.pruned
    curve = error_curve(Measurement(model, plan.structure, [x], [group]), group)
    assert {channel % 4 for channel in curve.ranks.topk(4).indices.tolist()} == {0, 1, 2, 3}
    assert float(curve.errors[4]) < 0.05 * float(curve.errors[3])


def test_grouped_channels_are_measured_in_multiples() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 5, 3)
    model, x = nn.Sequential(*layers).eval(), torch.randn(16, 3, 8, 8)
    plan = bp.plan(model, x[:2], keep=0.5)
    [group] = plan.pruned
    curve = error_curve(Measurement(model, plan.structure, [x], [group]), group)
    assert [k for k, _ in curve.measured] == [4, 8]  # of 12; nine tenths are all of them


def test_a_batch_that_is_too_small_for_batchnorm_is_named() -> None:
    layers = nn.Conv2d(3, 8, 8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 3, 8, 8)
    plan = bp.plan(model, x, keep=0.5)
    with pytest.raises(bp.PruneError, match="large enough for BatchNorm"):
        Measurement(model, plan.structure, [x], plan.pruned)


def test_no_widths_are_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = scramble(vgg()).eval(), torch.randn(16, 3, 8, 8)
    plan = bp.plan(model, x[:2], keep=0.5)
    errors, measured = MeasuredErrors([x]), []
    errors.measure(model, plan.structure, plan.pruned)
    change = Measurement.change

    def noted(self: Measurement, chosen: dict[int, torch.Tensor]) -> float:
        measured.append(chosen)
        return change(self, chosen)

    monkeypatch.setattr(Measurement, "change", noted)
    kept = torch.tensor([group.kept for group in plan.groups], dtype=torch.double)
    wide = torch.tensor([group.width for group in plan.groups], dtype=torch.double)
    first = errors.change(kept)
    assert errors.change(kept.clone()) == first > errors.change(wide) and len(measured) == 2
