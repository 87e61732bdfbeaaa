"""Curves that a cache has are not measured again, and those of anything else are."""

import copy
import json

import pytest
import torch
from models import scramble, vgg

import branchprune as bp
from branchprune.targets import error_curves

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


def test_functions_and_gradients_are_not_kept(model, tmp_path):
    for criterion in (lambda group: group.producers[0].abs().sum(1), "random"):
        bp.plan(model, X[:1], target=TARGET, batches=[X], criterion=criterion, cache=tmp_path)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(bp.PruneError, match=r"cache \(=3\) must be the path of a folder"):
        bp.plan(model, X[:1], target=TARGET, batches=[X], cache=3)
    (tmp_path / "file").touch()
    with pytest.raises(bp.PruneError, match=r"cache \(='.*file'\) cannot be written"):
        bp.plan(model, X[:1], target=TARGET, batches=[X], cache=tmp_path / "file")
