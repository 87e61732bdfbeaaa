"""The data sets: frames, photographs and CIFAR-10, against their files read by hand."""

import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
from given_images import RANDOM, images, possible, rows
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from pytorch_lightning import LightningDataModule
from sklearn.datasets import load_sample_images
from torchvision.datasets import cifar

from branchprune import PruneError
from branchprune.data import CIFAR10, Frames, ImageFolder, Photographs


def folder_of_frames(root, height=20, width=24, n=10):
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for i in range(n):
            picture = images(1, height, width)[0].permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(root / split / f"{i}.png")
    return root


def test_frames_are_cropped_at_random_in_training_and_in_the_middle_else(tmp_path):
    root = folder_of_frames(tmp_path / "town")
    data = Frames(root, crop_size=16, batch_size=3, eval_batch_size=4, flip=True)
    data.setup()
    assert data.name == "town" and data.classes == []
    crops = [possible(x.numpy() / 255, 0, 16, 16, True) for x in data.splits["train"][0]]
    seen = set()
    for _ in range(5):
        for inputs, targets in data.train_dataloader():
            assert torch.equal(inputs, targets)
            for x in inputs.numpy():
                [match] = [k for c in crops for k, v in c.items() if np.allclose(x, v, atol=1e-6)]
                seen.add(match)
    assert {left for _, left, _ in seen} == set(range(9))
    assert {top for top, _, _ in seen} == set(range(5))
    found = torch.cat([x for x, _ in data.test_dataloader()])
    for i, x in enumerate(found):
        expected = np.array(Image.open(root / "test" / f"{i}.png"))[2:18, 4:20] / 255
        assert np.allclose(x.permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize(("size", "stride"), [(32, None), (16, None), (32, 8), (24, 20)])
def test_photographs_are_cut_within_their_bands(size, stride):
    data = Photographs(patch_size=size, stride=stride)
    data.setup()
    originals = load_sample_images().images
    step = stride or size
    for split, left, right in (("train", 0, 448), ("val", 448, 512), ("test", 512, 640)):
        expected = [
            image[y : y + size, x : x + size]
            for image in originals
            for y in range(0, 427 - size + 1, step)
            for x in range(left, right - size + 1, step)
        ]
        assert np.array_equal(data.splits[split][0].permute(0, 2, 3, 1), np.stack(expected))
    inputs, targets = next(iter(data.test_dataloader()))
    assert torch.equal(inputs[0], data.splits["test"][0][0] / 255)
    assert torch.equal(targets, inputs)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"patch_size": 65}, r"patch_size \(=65\) is more than the val band, 427x64"),
        ({"val_fraction": 0.9}, r"patch_size \(=32\) is more than the train band, 427x0"),
        ({"patch_size": 0}, r"patch_size \(=0\)"),
        ({"stride": 0}, r"stride \(=0\)"),
    ],
)
def test_patches_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(PruneError, match=reason):
        Photographs(**options).setup()


@pytest.fixture
def pickles(tmp_path, monkeypatch):
    """CIFAR-10 in torchvision's format, with 20 images a file; only its checksums are not right."""
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        values = RANDOM.integers(0, 256, (20, 3072), dtype=np.uint8)
        files[name] = {"data": values, "labels": RANDOM.permutation([*range(10)] * 2).tolist()}
    files["batches.meta"] = {"label_names": [f"kind {i}" for i in range(10)]}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
    return tmp_path, files


def test_cifar_is_read_from_the_files_of_torchvision(pickles):
    root, files = pickles
    data = CIFAR10(root, batch_size=10)
    data.setup()
    assert data.name == "CIFAR-10" and data.classes == [f"kind {i}" for i in range(10)]
    found, labels = data.splits["test"]
    assert np.array_equal(found.flatten(1), files["test_batch"]["data"])
    assert labels.tolist() == files["test_batch"]["labels"]
    assert data.splits["val"][1].bincount().tolist() == [1] * 10
    assert data.splits["train"][1].bincount().tolist() == [9] * 10
    everything = np.concatenate([files[f"data_batch_{i}"]["data"] for i in range(1, 6)])
    held = torch.cat([data.splits[split][0] for split in ("train", "val")])
    assert rows(held) == rows(torch.from_numpy(everything))


def test_without_network_another_way_is_named(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(cifar, "download_and_extract_archive", unreachable)
    with pytest.raises(PruneError, match=r"no network.*ImageFolder") as error:
        CIFAR10(tmp_path).setup()
    assert str(tmp_path) in str(error.value)


def test_an_image_folder_is_named_after_itself_unless_told(tmp_path):
    assert ImageFolder(tmp_path / "pets").name == "pets"
    assert ImageFolder(tmp_path / "pets", name="Pets").name == "Pets"


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("CIFAR10", {"root": "somewhere"}),
        ("ImageFolder", {"root": "somewhere", "name": "Pets"}),
        ("Frames", {"root": "somewhere", "test_towns": ["Town05"], "crop_size": 64}),
        ("Photographs", {"patch_size": 16}),
    ],
)
def test_a_configuration_gives_every_option(kind, given):
    options = given | {"batch_size": 4, "crop_padding": 2, "flip": True, "limit_train": 9}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    config = {"class_path": f"branchprune.data.{kind}", "init_args": options}
    data = parser.instantiate(parser.parse_object({"data": config})).data
    for name, value in given.items():
        assert str(getattr(data, name)) == str(value)
    assert (data.batch_size, data.limit_train) == (4, 9)
    assert (data.augmentation.padding, data.augmentation.flip) == (2, True)
    config["init_args"] = options | {"batch": 4}
    with pytest.raises(ArgumentError, match="batch"):
        parser.parse_object({"data": config})
