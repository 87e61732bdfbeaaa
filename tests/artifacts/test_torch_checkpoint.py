"""Checkpoints of torch.save that are damaged, which torch.load reads as if they were not."""

import random
import zipfile

import pytest
import torch
from torch import nn

import branchprune as bp
from branchprune.artifacts.torch_checkpoint import damage
from branchprune.experiments.run.load_weights import load_weights


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(40, 30).state_dict(), path)
    return path


def test_what_is_whole_has_no_damage(path):
    assert damage(path) is None
    dtypes = (torch.bool, torch.bfloat16, torch.complex64, torch.uint16, torch.float8_e4m3fn)
    tensors = {str(dtype): torch.zeros(3, dtype=dtype) for dtype in dtypes}
    adam = torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()
    torch.save({"state_dict": tensors, "adam": adam, "sizes": {1, 2}, "net": nn.ReLU()}, path)
    assert damage(path) is None
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert damage(path) is None


def test_a_flipped_bit_is_refused_or_changes_no_weight(path):
    content, right, draw = path.read_bytes(), torch.load(path), random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        model = nn.Linear(40, 30)
        try:
            load_weights(model, path)
        except bp.PruneError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert all(torch.equal(v, right[k]) for k, v in model.state_dict().items())
    assert refused > 150


def test_a_cut_file_is_refused(path):
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(bp.PruneError, match=r"is not complete, or is no checkpoint|is refused"):
            load_weights(nn.Linear(40, 30), path)


def shortened(path):
    """Write each record of tensors with half of its bytes, and with the right checksums."""
    with zipfile.ZipFile(path) as file:
        records = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in records.items():
            file.writestr(name, content[: len(content) // 2] if "/data/" in name else content)


def test_a_record_that_is_too_short_is_refused(path):
    """torch.load would read what lies behind it in memory."""
    shortened(path)
    with pytest.raises(bp.PruneError, match=r"model/data/\d holds \d+ bytes, and not \d+"):
        load_weights(nn.Linear(40, 30), path)


class Exploit:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(path, capsys):
    torch.save({"weight": Exploit()}, path)
    assert damage(path) is None
    with pytest.raises(bp.PruneError, match="is refused"):
        load_weights(nn.Linear(40, 30), path)
    assert "executed" not in capsys.readouterr().out
