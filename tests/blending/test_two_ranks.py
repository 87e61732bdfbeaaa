"""Two processes of half the batch, under DistributedDataParallel, do what one process does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_ranks import CASES, train

CHILD = Path(__file__).parents[1] / "helpers" / "two_ranks.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what each of two processes has found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", str(CHILD), str(folder)]
    found = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_two_ranks_train_as_one_process(ranks, case):
    losses, weights, trained = train(*case)
    (first, ours, updated), (second, theirs, _) = (rank[case] for rank in ranks)
    halves = torch.tensor([first, second])
    assert torch.allclose(halves.mean(0), torch.tensor(losses), 1e-6, 1e-6)
    assert updated == trained
    for name, weight in weights.items():
        assert torch.equal(ours[name], theirs[name])
        assert torch.allclose(ours[name], weight, 1e-6, 1e-6), name


@pytest.mark.parametrize("thaw_at", [1, 0.2])
def test_ranks_of_a_lightning_training_decide_alike(ranks, thaw_at):
    """Each sees metrics of its own half, and yet both hold levels as long and restore the same."""
    (ours, weights, error), (theirs, others, _) = (rank["fit", thaw_at] for rank in ranks)
    assert [step[:2] for step in ours] == [step[:2] for step in theirs]
    assert [alpha for alpha, *_ in ours][-1] == 0 and error < 1e-10
    assert all(torch.equal(weights[name], others[name]) for name in weights if "mean" not in name)
    held = [first for alpha, _, first in ours if alpha > thaw_at]
    assert all(torch.equal(first, held[0]) for first in held)
    assert not torch.equal(ours[0][2], ours[-1][2])


@pytest.mark.parametrize("kind", ["fsdp2", "parallel"])
def test_sharded_models_are_refused_by_name(ranks, kind):
    name = {"fsdp2": "FSDP2", "parallel": "tensor parallel"}[kind]
    for rank in ranks:
        assert len(rank[kind]) == 2
        assert all(f"sharded by {name}" in said and "ddp" in said for said in rank[kind])
