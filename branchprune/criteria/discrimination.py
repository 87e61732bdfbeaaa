"""Channel scores by what the channels tell of the classes, beside what layers make of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchprune.criteria.activations import mean_of_map
from branchprune.criteria.column_selection import in_order_of_picks
from branchprune.criteria.group_weights import GroupWeights
from branchprune.criteria.input_statistics import Reading, read
from branchprune.criteria.scores import l2
from branchprune.errors import PruneError
from branchprune.graph.inputs import Example, tensors
from branchprune.graph.structure import Structure

RIDGE = 1e-3
"""Of the linear classifier, as a share of the mean variance of the channels."""


class Planned(Protocol):
    """What of a plan is needed: the structure of the model, and which groups are to shrink."""

    @property
    def structure(self) -> Structure:
        """The structure."""

    @property
    def pruned(self) -> Sequence[int]:
        """Indices of the groups."""


@dataclass(frozen=True)
class Discrimination:
    """A criterion: the channels from which both the classes and the next layers are made best.

    Attributes:
        readings: By the name of a group, what a linear classifier reads of it at each of its
            readers: the covariance of the channels' means over each map, and its weights.
    """

    readings: Mapping[str, Sequence[Reading]] = field(repr=False)

    def __call__(self, group: GroupWeights) -> Tensor:
        """Return the scores, shape (C,), as those of `reconstruction`.

        Raises:
            PruneError: The labelled batches did not reach what reads the channels.
        """
        if group.ends:
            return l2(group)
        found = self.readings.get(group.name, ())
        if not found:
            raise PruneError(
                f"init 'discrimination' needs batches that reach what reads {group.name} in "
                "evaluation: leave it out with `exclude`"
            )
        if len(found[0].covariance) != group.width:
            raise PruneError(
                f"init 'discrimination' was made of another model: {group.name} has {group.width} "
                f"channels here, and {len(found[0].covariance)} there; make it of this model"
            )
        return in_order_of_picks([*group.readings, *found], group)


def discrimination(
    model: nn.Module, plan: Planned, batches: Iterable[tuple[Example, Tensor]]
) -> Discrimination:
    """Return the criterion that picks channels by what they tell of the classes.

    ```python
    init = bp.discrimination(model, plan, [(x, y)])
    blended = bp.attach(model, plan, init=init, batches=[x])
    ```

    Wherever a layer reads a group, a linear classifier of the means over each map is fitted by
    least squares to the classes; channels are picked one by one, always the one that explains most
    of what is left of that classifier's outputs and, of the `batches` of `attach`, of what the
    layer makes of all channels, both counting alike; without those batches the classes alone
    decide. It is the joint loss of discrimination-aware channel pruning (DCP, Zhuang et al.,
    NeurIPS 2018): a classifier at layers inside the network beside the reconstruction, and a greedy
    choice; there both losses are cross-entropy and squares, a few layers have classifiers, and the
    network is tuned between them. Here all is squares, so that the choice is exact and nothing is
    trained.

    Args:
        model: The model that was planned; it is not changed.
        plan: The widths.
        batches: Pairs of an input of the model and the classes of its examples, int64 (N,).

    Raises:
        PruneError: There are no batches, the classes are no whole numbers or of one class, or a
            layer reads no examples that belong to them.
    """
    pairs = [*batches]
    if not pairs:
        raise PruneError("batches must be some pairs of an input and its classes: there are none")
    classes = torch.cat([_classes(pair, i) for i, pair in enumerate(pairs)])
    wanted = F.one_hot(classes.unique(return_inverse=True)[1]).double()
    if wanted.shape[1] < 2:
        raise PruneError(f"batches are all of class {int(classes[0])}: nothing tells classes apart")
    inputs = [pair[0] for pair in pairs]
    found = read(model, plan.structure, plan.pruned, model, inputs, mean_of_map)
    names = [group.name for group in plan.structure.groups]
    return Discrimination(
        {
            names[group]: [_classifier(each, wanted, names[group]) for each in readings]
            for group, readings in found.items()
        }
    )


def _classes(pair: tuple[Example, Tensor], place: int) -> Tensor:
    fits = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], Tensor)
    if not fits or pair[1].is_floating_point() or pair[1].dim() != 1:
        raise PruneError(
            f"batches[{place}] must be a pair of an input and the classes of its examples, "
            "whole numbers of shape (N,)"
        )
    lengths = [len(each) for each in tensors(pair[0]) if each.dim()]
    if len(pair[1]) not in lengths:
        examples = max(lengths, default=0)
        raise PruneError(
            f"batches[{place}] has {len(pair[1])} classes, and an input of {examples} examples"
        )
    return pair[1].cpu()


def _classifier(reading: Reading, wanted: Tensor, group: str) -> Reading:
    """Return what a linear classifier reads of the channels, fitted to the classes."""
    means = reading.examples
    assert means is not None, "it was asked for"
    if len(means) % len(wanted):
        raise PruneError(
            f"init 'discrimination': a layer reads {len(means)} examples of {group}, and there are "
            f"classes of {len(wanted)}: leave it out with `exclude`"
        )
    means = means.nan_to_num().unflatten(0, (len(wanted), -1)).mean(1)
    means = means - means.mean(0)
    covariance = means.T @ means / len(means)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-300)
    towards = means.T @ (wanted - wanted.mean(0)) / len(means)
    weights = torch.linalg.solve(covariance + ridge * torch.eye(len(covariance)).double(), towards)
    return Reading(covariance, weights @ weights.T)
