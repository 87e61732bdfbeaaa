"""Files that are damaged, or of another model: refused before anything is loaded, with reasons."""

import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import branchprune as bp
from branchprune.models import VGG


def make(*stages, **options):
    return VGG([*stages] or [[8, 8], [16]], **{"classes": 4, "in_channels": 1} | options).eval()


def pruned(model, keep=0.5):
    blended = bp.attach(model, bp.plan(model, torch.zeros(1, 1, 8, 8), keep=keep))
    blended.alpha = 0
    return bp.collapse(blended)


@pytest.fixture(scope="module")
def small():
    return pruned(make())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.safetensors"


def rewritten(path, change):
    """Write a file as another program would: with its header changed, and without a checksum."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    state = {k: v.clone() for k, v in load_file(path).items()}
    kept = {k: header[k] for k in ("class", "widths")} | {"format": "branchprune/1"}
    change(kept, state)
    save_file(state, path, metadata=kept)


def test_a_model_on_meta_gets_the_weights_of_the_file(small, path):
    bp.save(small, path)
    with torch.device("meta"):
        empty = make()
    loaded, x = bp.load(empty, path).eval(), torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(x), small(x))
    assert all(p.is_meta for p in empty.parameters())
    with pytest.raises(bp.PruneError, match=r"features\.0\.weight is on the device meta"):
        bp.save(empty, path)


def test_what_no_file_holds_must_not_be_on_meta(path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.register_buffer("scale", torch.ones(2), persistent=False)

    bp.save(Scaled(), path)
    with torch.device("meta"):
        empty = Scaled()
    with pytest.raises(bp.PruneError, match="scale is on the device meta and in no file"):
        bp.load(empty, path)


class Squared(VGG):
    def forward(self, x):
        return super().forward(x) ** 2


class Sub(nn.Sequential):
    pass


OTHERS = {
    "wider": (lambda: make([8, 8], [12]), r"\(8, 4, 3, 3\), pruned from \(16, 8, 3, 3\), not \(12"),
    "another head": (lambda: make(classes=9), r"classifier.* has shape \(4, .*, not \(9, "),
    "more inputs": (lambda: make(in_channels=3), r"shape \(4, 1, 3, 3\), .*, not \(8, 3, 3, 3\)"),
    "narrower": (lambda: make([4, 4], [6]), r"shape \(8, 4, 3, 3\), .*, not \(6, 4, 3, 3\)"),
    "class": (
        lambda: Squared([[8, 8], [16]], classes=4, in_channels=1),
        "it is a VGG, not a Squared",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_model_of_other_widths_or_class_is_refused(case, small, path):
    bp.save(small, path)
    build, message = OTHERS[case]
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(bp.PruneError, match=f"another model: .*{message}"):
        bp.load(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_that_is_made_at_the_widths_of_the_file_takes_its_weights(small, path):
    bp.save(small, path)
    widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
    loaded = bp.load(make(widths[:2], widths[2:]), path)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in small.state_dict().items())


def chain(stride=1, eps=1e-5, activation=nn.ReLU, dropout=0.1, norm=nn.BatchNorm2d, padding=0):
    parts = nn.Conv2d(1, 4, 3, stride, padding), norm(4, eps=eps), activation(), nn.Dropout(dropout)
    return nn.Sequential(*parts)


def test_layers_that_are_set_up_otherwise_are_named(path):
    bp.save(chain(), path)
    for changed, message in (
        ({"stride": 2}, r"0 has stride=\[1, 1\], not \[2, 2\]"),
        ({"padding": 1}, r"0 has padding=\[0, 0\], not \[1, 1\]"),
        ({"eps": 1e-3}, r"1 has eps=1e-05, not 0\.001"),
        ({"activation": nn.SiLU}, "2 is a ReLU, not a SiLU"),
    ):
        with pytest.raises(bp.PruneError, match=f"another model: {message}$"):
            bp.load(chain(**changed), path)
    many = {"stride": 2, "padding": 1, "eps": 1e-3, "activation": nn.GELU}
    with pytest.raises(bp.PruneError, match=r"0 has .*; 0 has .*; 1 has .*; and 1 differences"):
        bp.load(chain(**many), path)


@pytest.mark.parametrize("changed", [{"dropout": 0.5}, {"norm": nn.SyncBatchNorm}, {}])
def test_what_no_prediction_depends_on_may_differ(changed, path):
    saved = chain().eval()
    bp.save(saved, path)
    model = chain(**changed).train()
    model[1].momentum = 0.01
    loaded = bp.load(model, path)
    assert torch.equal(loaded[0].weight, saved[0].weight)


def test_a_class_is_the_same_wherever_it_was_made(path):
    def made():
        class Net(nn.Sequential):
            pass

        return Net(nn.Linear(2, 2))

    def again():
        class Net(nn.Sequential):
            pass

        return Net(nn.Linear(2, 2))

    bp.save(made(), path)
    assert torch.equal(bp.load(again(), path)[0].weight, load_file(path)["0.weight"])
    with pytest.raises(bp.PruneError, match="it is a Net, not a Sub"):
        bp.load(Sub(nn.Linear(2, 2)), path)


def test_a_model_that_is_pruned_twice_is_loaded_into_the_dense_one(small, path):
    smaller = pruned(small)
    bp.save(smaller, path)
    loaded, x = bp.load(make(), path).eval(), torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(x), smaller(x))
    bp.save(loaded, path)  # which still knows where it comes from
    assert torch.equal(bp.load(make(), path).eval()(x), smaller(x))
    with pytest.raises(bp.PruneError, match="another model"):
        bp.load(make([12, 8], [16]), path)


def test_a_file_of_an_earlier_version_is_loaded(small, path):
    bp.save(small, path)
    x = torch.randn(3, 1, 8, 8)
    rewritten(path, lambda header, state: None)
    assert torch.equal(bp.load(make(), path).eval()(x), small(x))
    with pytest.raises(bp.PruneError, match=r"another model: .*not a Squared"):
        bp.load(OTHERS["class"][0](), path)


def test_widths_that_are_not_those_of_the_tensors_are_refused(small, path):
    bp.save(small, path)

    def lie(header, state):
        widths = json.loads(header["widths"])
        widths["features.0"]["out_channels"] = 5
        header["widths"] = json.dumps(widths)

    rewritten(path, lie)
    with pytest.raises(bp.PruneError, match=r"features\.0 says out_channels=5, .* weight 4"):
        bp.load(make(), path)


@pytest.mark.parametrize("key", ["widths", "numbers", "settings", "full"])
@pytest.mark.parametrize("said", ["[1]", '{"features.0": 3}', "3"])
def test_a_header_of_something_else_is_refused(key, said, small, path):
    bp.save(small, path)
    rewritten(path, lambda header, state: header.update({key: said}))
    with pytest.raises(bp.PruneError, match=f"not complete: its header has damaged '{key}'"):
        bp.load(make(), path)


def test_two_tensors_for_one_parameter_are_refused(path):
    def tied():
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
        return model

    bp.save(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), path)
    with pytest.raises(bp.PruneError, match=r"0\.weight and 1\.weight are two parameters, not one"):
        bp.load(tied(), path)


def test_every_flipped_bit_and_every_cut_is_found(path):
    bp.save(pruned(make([4], [4])), path)
    content, model, draw = path.read_bytes(), make([4], [4]), random.Random(0)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(bp.PruneError, match=r"small\.safetensors"):
            bp.load(model, path)
        path.write_bytes(content[: draw.randrange(len(content))])
        with pytest.raises(bp.PruneError, match=r"small\.safetensors"):
            bp.load(model, path)


def test_an_activation_that_only_one_of_both_has_is_named(path):
    layers = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1)
    bp.save(nn.Sequential(*layers, nn.Sigmoid()), path)
    with pytest.raises(bp.PruneError, match="it has 2, a Sigmoid"):
        bp.load(nn.Sequential(*layers), path)
    bp.save(nn.Sequential(*layers), path)
    with pytest.raises(bp.PruneError, match="it lacks 2, a Sigmoid"):
        bp.load(nn.Sequential(*layers, nn.Sigmoid()), path)
    bp.load(nn.Sequential(*layers, nn.Dropout()), path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.DataParallel(nn.Conv2d(1, 2, 1)), "wrapped in DataParallel: pass model.module"),
        (
            torch.compile(nn.Conv2d(1, 2, 1), backend="eager"),  # inductor takes a second to import
            "wrapped in OptimizedModule: pass model._orig_mod",
        ),
        (nn.LazyLinear(2), "has no size yet"),
    ],
)
def test_what_could_not_be_loaded_into_the_model_is_not_saved(path, model, words):
    with pytest.raises(bp.PruneError, match=words):
        bp.save(model, path)
    assert not path.exists()


def test_a_sparse_buffer_is_named(path):
    model = nn.Conv2d(1, 2, 1)
    model.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(bp.PruneError, match="mask is sparse_coo"):
        bp.save(model, path)


def test_a_link_is_kept_and_what_it_stands_for_is_written(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    bp.save(make(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and path.is_file()


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(bp.PruneError, match="no regular file"):
        bp.save(make(), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_loaded_model_keeps_the_memory_format(path):
    small = pruned(make().to(memory_format=torch.channels_last))
    bp.save(small, path)
    loaded = bp.load(make().to(memory_format=torch.channels_last), path)
    for a, b in zip(small.parameters(), loaded.parameters(), strict=True):
        assert a.stride() == b.stride() and torch.equal(a, b)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("settings", '{"0": {"stride": [1, 1]}}'),
        ("settings", '{"0": {"class": 5}}'),
        ("full", '{"0.weight": ["a"]}'),
        ("full", '{"0.weight": [1e400]}'),
        ("full", '{"0.weight": [[1]]}'),
    ],
)
def test_parts_of_a_header_that_are_no_settings_or_shapes_are_named(key, text, path):
    bp.save(chain(), path)
    rewritten(path, lambda header, state: header.update({key: text}))
    with pytest.raises(bp.PruneError, match=f"not complete: its header has damaged '{key}'"):
        bp.load(chain(), path)


def test_arguments_that_are_nested_without_end_are_damage(path):
    bp.save(chain(), path)
    for text in ("[" * 100_000, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        changes = {"made_by": "resnet18", "init_args": text}
        rewritten(path, lambda header, state, changes=changes: header.update(changes))
        with pytest.raises(bp.PruneError, match="its header does not say what made the model"):
            bp.load(path)
