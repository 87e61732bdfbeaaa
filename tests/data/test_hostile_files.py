"""Folders that would never end, start a program or fill the memory are refused in one line."""

import os
import struct
import zlib

import pytest
from PIL import Image

from branchprune import PruneError
from branchprune.data import ImageFolder


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, all of them different."""
    for number in range(16):
        split, kind = ("train", "test")[number // 8], ("cat", "dog")[number % 2]
        path = tmp_path / split / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 8), (number, 0, 0)).save(path)
    return tmp_path


def linked(folder):
    (folder / "train/cat/all").symlink_to(folder / "train/cat")
    return folder


def twice(folder):
    """Folders whose links would lead around each other more often than anyone can count."""
    for name in ("one", "two"):
        (folder / "train/cat" / name).mkdir()
        (folder / "train/cat" / name / "back").symlink_to(folder / "train")
    return folder


def piped(path):
    os.mkfifo(path)
    return path


def postscript(path):
    """A program, which Pillow would give to Ghostscript."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    return path


def huge(path, width, height):
    """A whole image of few bytes and many pixels."""
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    parts = [(b"IHDR", size), (b"IDAT", data), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


HOSTILE = {
    "loop": (linked, "train/cat/all", "is the same folder as"),
    "two loops": (twice, "train/cat", "is the same folder as"),
    "fifo": (lambda p: piped(p / "train/cat/x.png"), "train/cat/x.png", "is no regular file"),
    "eps": (lambda p: postscript(p / "train/cat/x.png"), "x.png", "none of BMP, JPEG, PNG, PPM"),
    "bomb": (lambda p: huge(p / "test/dog/x.png", 40000, 25000), "x.png", "more than 67,108,864"),
    "large": (lambda p: huge(p / "test/dog/x.png", 10000, 10000), "x.png", "more than 67,108,864"),
    "wide": (lambda p: huge(p / "test/dog/x.png", 10000, 8000), "x.png", "more than 67,108,864"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_line(folder, kind):
    make, path, reason = HOSTILE[kind]
    make(folder)
    with pytest.raises(PruneError) as error:
        ImageFolder(folder, batch_size=2, val_fraction=0.3).setup()
    said = str(error.value)
    assert path in said and reason in said and "\n" not in said


def test_what_is_not_hostile_is_read(folder):
    data = ImageFolder(folder, batch_size=2, val_fraction=0.3)
    data.setup()
    assert sum(len(images) for images, _ in data.splits.values()) == 16


def test_a_package_that_replaces_the_opener_changes_no_message(folder, monkeypatch):
    def needs_more(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'pi_heif'")

    postscript(folder / "train/cat/x.png")
    monkeypatch.setattr(Image, "open", needs_more)
    with pytest.raises(PruneError, match="none of BMP, JPEG, PNG, PPM"):
        ImageFolder(folder, batch_size=4).setup("fit")
