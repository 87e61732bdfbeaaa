"""What a checkpoint takes over from the training before: random numbers and time."""

import io
import random

import numpy as np
import torch

from branchprune.experiments.run.callbacks import epoch_checkpoint
from branchprune.experiments.run.callbacks.epoch_checkpoint import EpochCheckpoint


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def stored(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_every_random_generator_goes_on(tmp_path):
    random.seed(1)
    np.random.seed(1)
    state = stored(EpochCheckpoint(tmp_path).state_dict())
    expected = draws()
    assert all(a != b for a, b in zip(draws(), expected, strict=True))
    other = EpochCheckpoint(tmp_path)
    other.load_state_dict(state)
    other.on_train_epoch_start(None, None)
    assert draws() == expected


def test_time_before_and_behind_a_kill_is_counted(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(epoch_checkpoint.time, "perf_counter", lambda: now[0])
    first = EpochCheckpoint(tmp_path)
    now[0] = 130.0
    state = stored(first.state_dict())
    now[0] = 1000.0
    second = EpochCheckpoint(tmp_path)
    now[0] = 1010.0
    second.load_state_dict(state)
    now[0] = 1015.0
    assert second.spent() == 35
