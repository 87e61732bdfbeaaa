"""Reading images from disk: pixels against Pillow's, and every mistake named with its path."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from branchprune import PruneError
from branchprune.data import Frames, ImageFolder, files
from branchprune.data.files import class_folders, read_classes, read_frames, read_images

RANDOM = np.random.default_rng(0)


def pixels(height=8, width=6):
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels() if array is None else array).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for split, n in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(n):
                write(tmp_path / "pets" / split / name / f"{i}.png")
    return tmp_path / "pets"


def test_pixels_and_labels_are_those_of_the_files(folder):
    write(folder / "train" / "cat" / "nested" / "deep" / "x.PNG")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    write(folder / "train" / "cat" / ".hidden.png")
    write(folder / "train" / ".hidden" / "0.png")
    splits, classes = read_classes(folder)
    assert classes == ["cat", "dog"]
    images, labels = splits["train"]
    assert images.dtype == torch.uint8 and images.shape == (9, 3, 8, 6)
    assert labels.tolist() == [0] * 5 + [1] * 4
    names = [*(f"cat/{i}.png" for i in range(4)), "cat/nested/deep/x.PNG", "dog/0.png"]
    for image, name in zip(images, names, strict=False):
        expected = np.array(Image.open(folder / "train" / name))
        assert np.array_equal(image.permute(1, 2, 0), expected)
    assert [len(x) for x in splits["test"]] == [4, 4]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "ppm", "JPG"])
def test_every_format_is_read(tmp_path, suffix):
    path = write(tmp_path / "train" / "a" / f"0.{suffix}")
    assert class_folders(tmp_path, "train") == {"a": [path]}
    assert np.array_equal(read_images([path])[0].permute(1, 2, 0), np.array(Image.open(path)))


def test_order_is_that_of_the_paths(tmp_path):
    arrays = [pixels() for _ in range(600)]
    paths = [write(tmp_path / f"{i}.bmp", array) for i, array in enumerate(arrays)]
    assert np.array_equal(read_images(paths).permute(0, 2, 3, 1), np.stack(arrays))


def test_grey_opacity_and_palette_become_rgb(tmp_path):
    colour = pixels()
    opacity = np.concatenate([colour, np.full((8, 6, 1), 9, np.uint8)], 2)
    grey = write(tmp_path / "grey.png", colour[..., 0])
    rgba = write(tmp_path / "rgba.png", opacity)
    palette = tmp_path / "palette.png"
    few = Image.fromarray(colour).quantize(4)
    few.save(palette, transparency=bytes(range(4)))
    images = read_images([grey, rgba, palette]).permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(images[0, ..., i], colour[..., 0]) for i in range(3))
    assert np.array_equal(images[1], colour)
    assert np.array_equal(images[2], np.array(few.convert("RGB")))


def test_resizing_is_bilinear_and_antialiased(tmp_path):
    paths = [write(tmp_path / "a.png", pixels(32, 32)), write(tmp_path / "b.png", pixels(20, 48))]
    for image, path in zip(read_images(paths, (8, 4)), paths, strict=True):
        original = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float()
        expected = torch.nn.functional.interpolate(
            original, (8, 4), mode="bilinear", antialias=True
        )
        assert (image - expected[0]).abs().max() <= 1


def corrupt(path):
    path.write_bytes(b"these are no pixels")
    return path


def truncated(path, **options):
    raw = io.BytesIO()
    Image.fromarray(pixels(64, 64)).save(raw, **options)
    path.write_bytes(raw.getvalue()[: len(raw.getvalue()) * 2 // 3])
    return path


def copied(target, source):
    target.write_bytes(source.read_bytes())
    return target


def removed(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    return folder


def emptied(folder):
    removed(folder).mkdir()
    return folder


# What goes wrong, which path the error names, and what else it says.
MISTAKES = {
    "no folder": (removed, "", "there is no folder"),
    "no train": (lambda p: removed(p / "train"), "train", "/train/CLASS/"),
    "no test": (lambda p: removed(p / "test"), "test", "there is no folder"),
    "no classes": (lambda p: emptied(p / "test"), "test", "no folder for each class"),
    "empty class": (lambda p: emptied(p / "train/dog"), "train/dog", "has no image"),
    "not in test": (lambda p: removed(p / "test/dog"), "test/dog is missing", "train/dog"),
    "not in train": (lambda p: removed(p / "train/dog"), "train/dog is missing", "test/dog"),
    "corrupt": (lambda p: corrupt(p / "test/cat/1.png"), "test/cat/1.png", "corrupt"),
    "empty": (lambda p: (p / "train/cat/2.png").write_bytes(b""), "train/cat/2.png", "0 bytes"),
    "png": (
        lambda p: truncated(p / "train/dog/0.png", format="PNG"),
        "train/dog/0.png",
        "truncated",
    ),
    "jpg": (
        lambda p: truncated(p / "train/dog/9.jpg", format="JPEG"),
        "train/dog/9.jpg",
        "truncated",
    ),
    "size": (lambda p: write(p / "train/dog/5.png", pixels(8, 7)), "train/dog/5.png", "8x7"),
    "size of test": (lambda p: write(p / "test/cat/5.png", pixels(9, 6)), "test/cat/5.png", "9x6"),
    "16 bits": (
        lambda p: write(p / "train/cat/5.png", pixels()[..., 0].astype(np.uint16) * 256),
        "train/cat/5.png",
        "8 bits",
    ),
    "wrong label": (
        lambda p: copied(p / "train/dog/7.png", p / "train/cat/3.png"),
        "train/dog/7.png",
        "train/cat/3.png",
    ),
    "leak": (
        lambda p: copied(p / "test/dog/7.png", p / "train/dog/3.png"),
        "test/dog/7.png",
        "train/dog/3.png: test images leak",
    ),
    "twice": (
        lambda p: copied(p / "train/dog/7.png", p / "train/dog/3.png"),
        "train/dog/7.png",
        "train/dog/3.png: one could be trained on",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_path(folder, mistake):
    make, path, reason = MISTAKES[mistake]
    read_classes(folder)
    make(folder)
    with pytest.raises(PruneError) as error:
        ImageFolder(folder, batch_size=2, val_fraction=0.3).setup()
    assert str(folder / path) in str(error.value)
    assert reason in str(error.value)


def test_sizes_may_differ_where_all_are_resized(folder):
    write(folder / "test" / "cat" / "5.png", pixels(9, 30))
    data = ImageFolder(folder, image_size=4, batch_size=2)
    data.setup()
    assert {images.shape[1:] for images, _ in data.splits.values()} == {(3, 4, 4)}


def test_a_file_may_be_twice_in_one_class_of_test(folder):
    copied(folder / "test/dog/7.png", folder / "test/dog/1.png")
    assert len(read_classes(folder)[0]["test"][0]) == 5


@pytest.fixture
def towns(tmp_path):
    for path in ("train/Town01_1.webp", "train/more/Town01_2.png", "train/Town051_3.png"):
        write(tmp_path / path, pixels(10, 12))
    for path in ("test/Town05_1.png", "test/Town05/2.png"):
        write(tmp_path / path, pixels(10, 12))
    return tmp_path


def frames(root, **options):
    return Frames(root, **({"crop_size": 8, "batch_size": 1} | options))


def test_frames_are_split_by_folder_or_by_town(towns):
    by_folder, by_town = frames(towns).load(), frames(towns, test_towns=["Town05"]).load()
    assert [len(by_folder[split][0]) for split in ("train", "test")] == [3, 2]
    for split in ("train", "test"):
        assert torch.equal(by_folder[split][0], by_town[split][0])
    both = frames(towns, test_towns=["Town05", "Town051"]).load()
    assert [len(both[split][0]) for split in ("train", "test")] == [2, 3]
    expected = np.array(Image.open(towns / "train/Town01_1.webp"))
    assert np.array_equal(by_town["train"][0][0].permute(1, 2, 0), expected)


def test_a_town_is_a_whole_word_as_it_is_written(towns):
    for path in ("test/NewTown05_1.png", "test/town05_1.png", "test/1Town05.png"):
        write(towns / path, pixels(10, 12))
    splits = frames(towns, test_towns=["Town05"]).load()
    assert [len(splits[split][0]) for split in ("train", "test")] == [6, 2]
    with pytest.raises(PruneError, match=r"has 'Town0\.'"):
        frames(towns, test_towns=["Town0."]).load()


def test_folders_behind_links_are_read(towns, tmp_path_factory):
    elsewhere = write(tmp_path_factory.mktemp("disk") / "Town07_1.png", pixels(10, 12)).parent
    (towns / "train" / "linked").symlink_to(elsewhere)
    assert len(frames(towns).load()["train"][0]) == 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"test_towns": ["Town05", "Town0"]}, r"below .* has 'Town0'"),
        ({"test_towns": ["Town01", "Town05", "Town051"]}, "no training frames"),
        ({"test_towns": []}, "no test frames"),
        ({"test_towns": "Town05"}, "must be a list"),
        ({"crop_size": 11}, r"crop_size \(=11\).*Town01_1.webp, which is 10x12"),
        ({"crop_size": 8, "image_size": 6}, r"crop_size \(=8\).*which is 6x7"),
        ({"root": "nowhere"}, "no folder nowhere"),
    ],
)
def test_a_mistake_about_frames_is_named(towns, options, reason):
    with pytest.raises(PruneError, match=reason):
        frames(**({"root": towns} | options)).setup()


@pytest.mark.parametrize("by_town", [False, True])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("test/Town05_9.png", "test images leak"),
        ("train/Town01_9.png", "held out for validation"),
    ],
)
def test_a_frame_in_two_splits_is_refused(towns, by_town, path, reason):
    options = {"test_towns": ["Town05"]} if by_town else {}
    source = "train/more/Town01_2.png"
    copied(towns / path, towns / source)
    with pytest.raises(PruneError, match=reason) as error:
        frames(towns, **options).setup()
    assert all(str(towns / name) in str(error.value) for name in (path, source))


def test_decoded_images_are_kept_where_the_environment_says(folder, tmp_path, monkeypatch):
    paths = sorted((folder / "train").rglob("*.png"))
    plain = read_images(paths, (4, 5))
    monkeypatch.setenv("BRANCHPRUNE_IMAGE_CACHE", str(tmp_path / "kept"))
    reads, read = [], files._read_images
    monkeypatch.setattr(files, "_read_images", lambda *given: reads.append(1) or read(*given))
    for count in (1, 1):
        assert torch.equal(read_images(paths, (4, 5)), plain) and len(reads) == count
    assert read_images(paths, (4, 6)).shape[-1] == 6 and len(reads) == 2
    assert torch.equal(read_images(paths[::-1], (4, 5)), plain.flip(0)) and len(reads) == 3
    [*map(lambda file: file.write_bytes(b"torn"), (tmp_path / "kept").iterdir())]
    assert torch.equal(read_images(paths, (4, 5)), plain) and len(reads) == 4
    write(paths[0], pixels())
    assert not torch.equal(read_images(paths, (4, 5))[0], plain[0]) and len(reads) == 5
    monkeypatch.setenv("BRANCHPRUNE_IMAGE_CACHE", str(paths[0]))  # no folder: nothing is kept
    assert torch.equal(read_images(paths, (4, 5))[1:], plain[1:]) and len(reads) == 6
    paths[1].unlink()
    with pytest.raises((PruneError, OSError), match=paths[1].name):
        read_images(paths, (4, 5))


def test_images_that_are_not_read_are_counted(tmp_path):
    write(tmp_path / "in" / "a.png", pixels(4, 4))
    for name in ("a.tif", "b.TIF", "c.gif", ".hidden.gif", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"0")
    said = r"in: 3 files \(\.TIF, \.gif, \.tif\) are left out"
    with pytest.warns(UserWarning, match=said) as seen:
        assert read_frames([tmp_path / "in"]) == [tmp_path / "in" / "a.png"]
    assert len(seen) == 1
