"""How long the last stage may be, counted in epochs."""

import pytest

from branchprune.errors import PruneError
from branchprune.experiments.run.budget import CostConfig, Epoch, longest_last_stage

EPOCH = Epoch("any", lambda: None)


def stages_with(epochs):
    return [[EPOCH] * 2, [EPOCH] * epochs]


@pytest.mark.parametrize("limit", [3, 4, 5, 9, 10, 100])
def test_the_last_stage_takes_all_that_is_left(limit):
    found = longest_last_stage(CostConfig(epochs=limit), stages_with, None, None)
    assert found == limit - 2


def test_without_room_for_an_epoch_the_budget_is_used_up():
    with pytest.raises(PruneError, match=r"cost \(=2\) is used up .* costs 3$"):
        longest_last_stage(CostConfig(epochs=2), stages_with, None, None)
