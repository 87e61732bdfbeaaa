"""Curves that a cache has are not measured again, and those of anything else are."""

import copy
import json

import pytest
import torch
from models import scramble, vgg

import branchprune as bp
from branchprune.targets import error_cache, error_curves

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGET = {"macs": 0.5}


@pytest.fixture
def measured(monkeypatch):
    """The groups whose curves were measured."""
    groups, measure = [], error_curves.error_curve

    def noted(measurement, group, criterion):
        groups.append(group)
        return measure(measurement, group, criterion)

    monkeypatch.setattr(error_curves, "error_curve", noted)
    return groups


@pytest.fixture
def model():
    torch.manual_seed(0)
    return scramble(vgg()).eval()


def test_a_second_plan_measures_nothing_and_is_the_same(model, measured, tmp_path):
    folder = tmp_path / "deep" / "cache"
    first = bp.plan(model, X[:1], target=TARGET, batches=[X], cache=folder)
    count = len(measured)
    again = bp.plan(copy.deepcopy(model), X[:1], target={"macs": 0.5}, batches=[X], cache=folder)
    assert count == len(measured) == len({*measured}) >= len(first.pruned)
    assert again.as_dict() == first.as_dict()
    bp.sensitivity(model, X[:1], [X], cache=str(folder))
    assert len(measured) == count and len([*folder.iterdir()]) == 1
    assert first.as_dict() == bp.plan(model, X[:1], target=TARGET, batches=[X]).as_dict()


@pytest.mark.parametrize("change", ["weight", "buffer", "batches", "criterion", "exclude"])
def test_what_has_changed_is_measured_anew(change, model, measured, tmp_path):
    named = {"batches": [X], "criterion": "reconstruction"}
    bp.plan(model, X[:1], target=TARGET, cache=tmp_path, **named)
    before = len(measured)
    if change == "weight":
        next(model.parameters()).data.flatten()[0] += 1e-3
    elif change == "buffer":
        next(model.buffers()).data.flatten()[0] += 1e-3
    elif change == "batches":
        named["batches"] = [X.flip(0)]
    elif change == "criterion":
        named["criterion"] = "l1"
    else:  # fewer groups, which are known
        named["exclude"] = [next(name for name, _ in model.named_modules() if name)]
    found = bp.plan(model, X[:1], target=TARGET, cache=tmp_path, **named)
    assert (len(measured) > before) == (change != "exclude")
    assert found.as_dict() == bp.plan(model, X[:1], target=TARGET, **named).as_dict()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"0": {"ranks": [1.0], "errors": []}}'])
def test_a_damaged_file_is_measured_and_written_again(text, model, measured, tmp_path):
    first = bp.plan(model, X[:1], target=TARGET, batches=[X], cache=tmp_path)
    (file,) = tmp_path.iterdir()
    count = len(measured)
    file.write_text(text)
    again = bp.plan(model, X[:1], target=TARGET, batches=[X], cache=tmp_path)
    assert again.as_dict() == first.as_dict() and len(measured) == 2 * count
    assert len(json.loads(file.read_text())) == count


def other_widths(curves):
    """Those of the same number of groups, each with a channel less."""
    for curve in curves.values():
        curve["ranks"].pop()
        curve["errors"].pop(0)


def exchanged(curves):
    first, second = list(curves)[:2]
    curves[first], curves[second] = curves[second], curves[first]


def one_more(curves):
    curves["99"] = curves[next(iter(curves))]


def rising(curves):
    curves[next(iter(curves))]["errors"].reverse()


def not_a_number(curves):
    curves[next(iter(curves))]["errors"][2] = float("nan")


def negative(curves):
    curves[next(iter(curves))]["errors"][-1] = -1.0


def nested(curves):
    curves[next(iter(curves))]["ranks"] = [[rank] for rank in curves[next(iter(curves))]["ranks"]]


def no_numbers(curves):
    curves[next(iter(curves))]["ranks"] = {}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A file of curves, and the widths of all groups."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cache")
    plan = bp.plan(
        scramble(vgg()).eval(), X[:1], target=TARGET, batches=[X], cache=folder, criterion="l2"
    )
    (file,) = folder.iterdir()
    return file, [group.width for group in plan.groups]


@pytest.mark.parametrize(
    "spoil",
    [other_widths, exchanged, one_more, rising, not_a_number, negative, nested, no_numbers],
)
def test_what_can_be_no_curve_of_the_model_is_not_read(spoil, stored, tmp_path):
    file, widths = stored
    assert error_cache.read(file.parent, file.stem, widths)
    curves = json.loads(file.read_text())
    spoil(curves)
    (tmp_path / file.name).write_text(json.dumps(curves))
    assert error_cache.read(tmp_path, file.stem, widths) == {}


def test_another_forward_of_the_same_layers_is_measured_anew(measured, tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 3)

        def forward(self, x):
            return self.last(activation(self.first(x)))

    model, found = Net().double(), []
    for activation in (torch.relu, torch.sin):  # noqa: B007 - forward reads it
        named = {"target": TARGET, "batches": [X.double()]}
        found.append(bp.plan(model, X[:1].double(), cache=tmp_path, **named))
        assert found[-1].as_dict() == bp.plan(model, X[:1].double(), **named).as_dict()
    assert found[0].errors != found[1].errors


def test_functions_and_gradients_are_not_kept(model, tmp_path):
    for criterion in (lambda group: group.producers[0].abs().sum(1), "random"):
        bp.plan(model, X[:1], target=TARGET, batches=[X], criterion=criterion, cache=tmp_path)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(bp.PruneError, match=r"cache \(=3\) must be the path of a folder"):
        bp.plan(model, X[:1], target=TARGET, batches=[X], cache=3)
    (tmp_path / "file").touch()
    with pytest.raises(bp.PruneError, match=r"cache \(='.*file'\) cannot be written"):
        bp.plan(model, X[:1], target=TARGET, batches=[X], cache=tmp_path / "file")
