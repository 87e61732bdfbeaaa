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
    command = [sys.executable, "-W", "ignore", str(CHILD)]
    children = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(errors)
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
