"""Models of ultralytics as they come, with their heads: exact in training and in evaluation."""

import copy

import pytest
import torch
from models import relative, scramble
from small_yolo import narrow  # before ultralytics
from torch.utils._pytree import tree_leaves
from ultralytics.nn.tasks import DetectionModel, SegmentationModel

import branchprune as bp
from branchprune.collapsing.collapse import collapse_with_error

X, OTHER = (torch.rand(2, 3, height, 64, dtype=torch.float64) for height in (64, 96))


def outputs(model, x, training):
    """Return all that a model computes, its statistics left as they are."""
    with torch.no_grad():
        found = copy.deepcopy(model).train(training)(x)
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def largest(one, other, x, training):
    pairs = zip(outputs(one, x, training), outputs(other, x, training), strict=True)
    return max(relative(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("kind", "name"), [(DetectionModel, "v8/yolov8"), (SegmentationModel, "26/yolo26-seg")]
)
def test_a_model_with_its_head_is_pruned_exactly(kind, name):
    torch.manual_seed(0)
    model = scramble(kind(narrow(name), nc=3, verbose=False).double())
    plan = bp.plan(model, X)
    assert plan.after.params < 0.45 * plan.before.params
    blended = bp.attach(model, plan)
    assert all(largest(model, blended, X, training) == 0 for training in (True, False))
    scramble(blended, seed=2)
    blended.alpha = 0
    small, error = collapse_with_error(blended)
    assert error < 1e-10 and sum(p.numel() for p in small.parameters()) == plan.after.params
    for training in (True, False):
        for x in (X, OTHER):
            assert largest(blended, small, x, training) < 1e-10
