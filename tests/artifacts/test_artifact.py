"""Saving and loading: round trips, and files that must be refused."""

import os
import pickle
import tempfile
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import branchprune as bp
from branchprune.experiments.files import write_whole


def make_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 5),
    )


@pytest.fixture
def small():
    model = make_model().eval()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    blended.alpha = 0
    return bp.collapse(blended)


def test_round_trip_into_a_fresh_dense_model(small, tmp_path):
    bp.save(small, tmp_path / "small.safetensors")
    dense = make_model()
    loaded = bp.load(dense, tmp_path / "small.safetensors").eval()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded(x), small(x))
    assert [m.extra_repr() for m in loaded] == [m.extra_repr() for m in small]
    assert dense[0].out_channels == 8


def test_loaded_model_can_be_planned_and_pruned_again(small, tmp_path):
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(make_model(), tmp_path / "small.safetensors")
    plan = bp.plan(loaded, torch.randn(2, 3, 8, 8))
    assert [(g.width, g.kept) for g in plan.groups] == [(4, 2), (4, 2), (5, 5)]


def test_tied_weights_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    model = Tied()
    bp.save(model, tmp_path / "tied.safetensors")
    loaded = bp.load(Tied(), tmp_path / "tied.safetensors")
    assert loaded.a.weight is loaded.b.weight
    assert torch.equal(loaded.a.weight, model.a.weight)


def test_half_precision_is_kept(tmp_path):
    bp.save(make_model().bfloat16(), tmp_path / "half.safetensors")
    assert bp.load(make_model(), tmp_path / "half.safetensors")[0].weight.dtype == torch.bfloat16


def test_truncated_file_is_refused(small, tmp_path):
    path = tmp_path / "small.safetensors"
    bp.save(small, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(bp.PruneError, match="not a complete safetensors file"):
        bp.load(make_model(), path)


def test_file_of_another_model_is_refused(small, tmp_path):
    path = tmp_path / "small.safetensors"
    bp.save(small, path)
    with pytest.raises(bp.PruneError, match="another model"):
        bp.load(nn.Sequential(nn.Linear(3, 3)), path)
    with pytest.raises(bp.PruneError, match="another model"):
        bp.load(nn.Sequential(nn.Linear(3, 3), *make_model()[1:]), path)


def test_file_with_a_layer_more_is_refused(tmp_path):
    path = tmp_path / "more.safetensors"
    bp.save(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), path)
    with pytest.raises(bp.PruneError, match=r"another model: it has 0\.bias"):
        bp.load(nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU()), path)


@pytest.mark.parametrize("dims", [(1, 2), (2, 1)])
def test_file_with_kernels_of_other_dimensions_is_refused(dims, tmp_path):
    path, kinds = tmp_path / "kernel.safetensors", {1: nn.Conv1d, 2: nn.Conv2d}
    saved, loaded = (nn.Sequential(kinds[dim](3, 8, 3)) for dim in dims)
    bp.save(saved, path)
    with pytest.raises(bp.PruneError, match=r"another model: 0.weight has shape \(8, 3, 3"):
        bp.load(loaded, path)


def test_what_is_frozen_in_the_model_stays_frozen(small, tmp_path):
    bp.save(small, tmp_path / "small.safetensors")
    model = make_model()
    model[3].requires_grad_(False)
    loaded = bp.load(model, tmp_path / "small.safetensors")
    assert [p.requires_grad for p in loaded.parameters()] == [True] * 4 + [False] * 2 + [True] * 2


def test_the_file_is_written_where_it_will_be(small, tmp_path, monkeypatch):
    """A file elsewhere may be on another disk, from which none is moved in one step."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    bp.save(small, tmp_path / "small.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_file_is_as_readable_as_any_new_one(small, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for _ in range(2):  # new, and in place of another
            bp.save(small, tmp_path / "small.safetensors")
            write_whole(tmp_path / "result.json", "{}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_file_with_other_kernels_is_refused(tmp_path):
    path = tmp_path / "five.safetensors"

    def make(kernel):
        return nn.Sequential(nn.Conv2d(3, 8, kernel, padding=1), nn.Conv1d(8, 4, kernel))

    bp.save(make(5), path)
    with pytest.raises(
        bp.PruneError, match=r"another model: 0.weight .*\(8, 3, 5, 5\), not \(8, 3"
    ):
        bp.load(make(3), path)
    bp.save(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv1d(8, 4, 5)), path)
    with pytest.raises(bp.PruneError, match=r"1.weight has shape \(4, 8, 5\), not \(4, 8, 3\)"):
        bp.load(make(3), path)


@pytest.mark.parametrize(
    ("make", "refused"),
    [
        (lambda c, size: nn.LayerNorm([c, size, size]), True),
        (lambda c, size: nn.LayerNorm([size, size, c]), True),
        (lambda c, size: nn.Linear(c * size, c), False),
    ],
)
def test_channels_may_be_counted_by_any_dimension(tmp_path, make, refused):
    path = tmp_path / "small.safetensors"
    bp.save(make(4, 6), path)
    narrow = bp.load(make(8, 6), path)
    assert narrow.weight.shape == make(4, 6).weight.shape
    bp.save(make(4, 5), path)
    with pytest.raises(bp.PruneError, match="another model") if refused else nullcontext():
        bp.load(make(8, 6), path)


@pytest.mark.parametrize("widths", [{}, {"widths": "{"}])
def test_file_without_widths_is_refused(tmp_path, widths):
    from safetensors.torch import save_file

    path = tmp_path / "none.safetensors"
    save_file(make_model().state_dict(), path, metadata={"format": "branchprune/1"} | widths)
    with pytest.raises(bp.PruneError, match=r"none.safetensors is not complete.*'widths'"):
        bp.load(make_model(), path)


class Counts(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_a_state_that_is_no_tensor_is_refused_when_it_is_saved(tmp_path):
    path = tmp_path / "small.safetensors"
    model = nn.Sequential(nn.Linear(2, 2), Counts({"seen": 3}))
    with pytest.raises(bp.PruneError, match=r"1 has 1._extra_state \(a dict\)"):
        bp.save(model, path)
    with pytest.raises(bp.PruneError, match=r"Counts has _extra_state \(a int\)"):
        bp.save(Counts(3), path)
    assert list(tmp_path.iterdir()) == []
    bp.save(nn.Sequential(nn.Linear(2, 2), Counts(torch.tensor(3))), path)
    assert bp.load(nn.Sequential(nn.Linear(2, 2), Counts(torch.tensor(0))), path)[1].state == 3


class Exploit:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickle_with_code_is_refused_and_never_run(tmp_path, writer):
    path, target = tmp_path / "evil.safetensors", tmp_path / "pwned"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Exploit(target), protocol=2))
    else:
        torch.save(Exploit(target), path)
    with pytest.raises(bp.PruneError, match="it is a pickle, which could run code"):
        bp.load(make_model(), path)
    assert not target.exists()


def test_missing_file_and_unwritable_folder(tmp_path):
    with pytest.raises(bp.PruneError, match="does not exist"):
        bp.load(make_model(), tmp_path / "none.safetensors")
    with pytest.raises(bp.PruneError, match="cannot write"):
        bp.save(make_model(), tmp_path / "no" / "folder.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_failed_save_leaves_the_old_file(small, tmp_path, monkeypatch):
    path = tmp_path / "small.safetensors"
    bp.save(small, path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("branchprune.artifacts.serialization.save_file", full)
    with pytest.raises(bp.PruneError, match="No space"):
        bp.save(make_model(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


@pytest.mark.parametrize("header", [None, {"format": "pt"}])
def test_file_of_another_program_is_refused(tmp_path, header):
    from safetensors.torch import save_file

    save_file(make_model().state_dict(), tmp_path / "plain.safetensors", metadata=header)
    with pytest.raises(bp.PruneError, match="its header lacks 'branchprune/2'"):
        bp.load(make_model(), tmp_path / "plain.safetensors")


def test_a_blended_model_is_not_saved(tmp_path):
    model = make_model()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    with pytest.raises(bp.PruneError, match="collapse it"):
        bp.save(blended, tmp_path / "blended.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_width_that_is_a_property_of_its_module(tmp_path):
    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 1)

        @property
        def in_channels(self):
            return self.conv.in_channels

        def forward(self, x):
            return self.conv(x).relu()

    def make():
        return nn.Sequential(Block(3, 8), Block(8, 8), nn.Conv2d(8, 2, 1)).eval()

    model, x = make(), torch.randn(2, 3, 4, 4)
    blended = bp.attach(model, bp.plan(model, x))
    blended.alpha = 0
    small = bp.collapse(blended)
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(make(), tmp_path / "small.safetensors")
    assert torch.equal(loaded(x), small(x)) and loaded[1].in_channels == 4


def test_a_class_is_no_model(tmp_path):
    with pytest.raises(bp.PruneError, match=r"Linear'>\) must be a torch\.nn\.Module"):
        bp.save(nn.Linear, tmp_path / "small.safetensors")
    with pytest.raises(bp.PruneError, match="not its class"):
        bp.load(nn.Linear, tmp_path / "small.safetensors")


def test_what_holds_a_model_is_none(tmp_path):
    made = SimpleNamespace(model=nn.Linear(2, 2))
    with pytest.raises(bp.PruneError, match=r"model \(a SimpleNamespace\) must .*: its \.model"):
        bp.save(made, tmp_path / "small.safetensors")


@pytest.mark.parametrize("name", ["small.pt", "small.CKPT"])
def test_a_name_of_torchs_own_files_is_refused(name, tmp_path):
    with pytest.raises(bp.PruneError, match=r"take \.safetensors"):
        bp.save(nn.Linear(2, 2), tmp_path / name)
    assert not any(tmp_path.iterdir())
