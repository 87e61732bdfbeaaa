"""The line that says what was pruned, from results and configurations of every kind."""

from __future__ import annotations

from typing import Any

import pytest

from branchprune.criteria.named import CRITERIA, MADE
from branchprune.reports.summary import _CRITERIA, Summary

OF = "model: {class_path: mynet.MyNet}\ndata: {class_path: my.MyDataModule, init_args: {a: 1}}\n"


def line(prune: str, stages: dict[str, int], subject: str = OF, **more: Any) -> str:
    """Return the line for a section `prune` and the epochs of the stages."""
    result = {
        "configuration": f"{subject}prune: {prune}",
        "cost": {"dense": {"channels": 1084}, "small": {"channels": 34}},
        "stages": {name: {"epochs": number} for name, number in stages.items()},
        "rounds": [],
        **more,
    }
    return Summary(result).line.replace("\u00a0", " ")


KEPT = "mynet.MyNet on MyDataModule: 34 of 1,084 channels kept"


@pytest.mark.parametrize(
    ("prune", "stages", "said"),
    [
        (
            "{criterion: {name: l1}, cut: {}, blend: null, finetune: {epochs: 9, fresh: false}}",
            {"dense": 3, "finetune": 8},  # a budget decided
            " by L1 norm, cut at once, fine-tuned for 8 epochs.",
        ),
        ("{criterion: null, cut: {}, finetune: null}", {}, " by L1 norm, cut at once."),
        (
            "{criterion: {name: my.scores}, cut: {}, finetune: {epochs: 2, fresh: true}}",
            {"finetune": 1},
            " by my.scores, cut at once, trained from scratch for 1 epoch.",
        ),
        (
            "{criterion: {name: random}, blend: {levels: {steps: 0.1}, mixing: sum}}",
            {"prune": 19},
            ", blended in for 19 epochs.",
        ),
        (
            "{criterion: {name: l2}, blend: {levels: {steps: 0.1}, mixing: sample}, finetune: {}}",
            {"dense": 3, "prune": 19, "finetune": 4},
            " by L2 norm, blended in for 19 epochs by drawing a path, fine-tuned for 4 epochs.",
        ),
        (
            "{blend: {levels: [0.0], mixing: sum}}",
            {"prune": 5},
            " by L1 norm, trained for 5 epochs with linear ends (α = 0 at once).",
        ),
        (
            "{criterion: null, torch_pruning: {pruner: magnitude}, sparsify: {epochs: 2}}",
            {"sparsify": 2},
            " by Torch-Pruning (magnitude), after 2 epochs with a penalty cut at once.",
        ),
        (
            "{sparsify: {penalty: soft}, cut: {rewind: early}, finetune: {}}",
            {"sparsify": 2, "finetune": 4},
            " by L1 norm, after 2 epochs in which they were set to 0 and could return cut at once, "
            "fine-tuned from early weights for 4 epochs.",
        ),
        (
            "{sparsify: {penalty: growing}, cut: {}}",
            {"sparsify": 1},
            " by L1 norm, after 1 epoch with a penalty that grows cut at once.",
        ),
    ],
)
def test_what_was_pruned(prune: str, stages: dict[str, int], said: str) -> None:
    assert line(prune, stages) == KEPT + said


def test_rounds_and_the_name_of_the_data() -> None:
    said = line(
        "{criterion: {name: bn_scale}, cut: {}, finetune: {epochs: 4}}",
        {"dense": 9, "round_01": 4, "round_02": 3, "round_02_score": 100},
        rounds=[{}, {}],
        dataset="CIFAR-10",
    )
    assert said == (
        "mynet.MyNet on CIFAR-10: 34 of 1,084 channels kept by the scale of their norms, "
        "removed in 2 rounds, fine-tuned for 7 epochs."
    )


@pytest.mark.parametrize(
    ("names", "said"), [(["3"], "without block 3"), (["3", "a.b"], "without blocks 3 and a.b")]
)
def test_blocks_that_were_left_out(names: list[str], said: str) -> None:
    assert line("{cut: {}}", {}, left_out=names) == f"{KEPT} by L1 norm, {said}, cut at once."


def test_blocks_that_faded_out_say_so() -> None:
    told = line("{cut: {}}", {"depth": 2}, left_out=["3"])
    assert told == f"{KEPT} by L1 norm, without block 3 (it faded out in 2 epochs), cut at once."


def test_a_round_that_lost_too_much_is_taken_back() -> None:
    done = [{"round": 1, "kept": True}, {"round": 2, "kept": False}]
    told = line("{cut: {}, finetune: {}}", {"round_01": 4, "round_02": 3}, rounds=done)
    assert told.endswith("removed in 1 round, one more taken back, fine-tuned for 4 epochs.")


@pytest.mark.parametrize("configuration", ["", "text", "prune: {criterion: l1, keep: 1}"])
def test_of_an_older_result_what_it_shows_itself(configuration: str) -> None:
    def told(stages: dict[str, Any]) -> str:
        cost = {"dense": {"channels": 84}, "small": {"channels": 34}}
        older = {"configuration": configuration, "cost": cost, "stages": stages, "rounds": []}
        return Summary(older).line

    assert told({"prune": {"seconds": 1.0}}) == "34 of 84 channels kept, blended in."
    assert told({"finetune": {"seconds": 1.0}}) == "34 of 84 channels kept, cut at once."


def test_every_criterion_has_words() -> None:
    assert {*CRITERIA, *MADE} - {"random"} == {*_CRITERIA}
