"""Small data for the shipped configurations, and a dry run of one through the command line."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from branchprune.cli import main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
MODELS = {"dense.safetensors", "small.safetensors", "small.md"}
FILES = {"config.yaml", "result.json", "report.html"} | MODELS
SMALL = {  # networks of the same shape with few channels
    "vgg16": "[[8, 8], [8, 8], [16, 16, 16], [16, 16, 16], [16, 16, 16]]",
    "vgg7": "[[16, 16], [32, 32], [64, 64, 64]]",
    "vgg6": "[[16, 16], [32, 32], [64, 64]]",
    "encoder": "[[8, 8], [16, 16], [16, 16, 16]]",
    "decoder": "[[16, 16, 16, 16], [16, 16, 8], [8, 8]]",
}
AUTOENCODER = [
    *(f"--model.init_args.{part}={SMALL[part]}" for part in ("encoder", "decoder")),
    *(f"--data.init_args.{size}=32" for size in ("image_size", "crop_size")),
]


def draw(path: Path, seed: int, height: int, width: int) -> None:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def draw_folders(root: Path) -> dict:
    """Write a folder of ten classes in the form of CIFAR-10, and a folder of frames.

    Returns:
        The `data` of a configuration, by experiment.
    """
    for seed in range(160):
        split = "train" if seed < 120 else "test"
        draw(root / "classes" / split / f"class{seed % 10}" / f"{seed}.png", seed, 32, 32)
    for seed in range(40):
        town = "Town05" if seed >= 30 else "Town01"
        split = "test" if seed >= 30 else "train"
        draw(root / "frames" / split / f"{town}_{seed}.png", seed, 128, 216)
    return {
        "vgg16_cifar10": {
            "class_path": "branchprune.data.ImageFolder",
            "init_args": {"root": str(root / "classes"), "batch_size": 8, "limit_train": 32},
        },
        "autoencoder_carla": {"init_args": {"root": str(root / "frames"), "batch_size": 4}},
    }


def keys_of(settings: Any, depth: int = 3) -> set[tuple[str, ...]]:
    """Return the keys of settings, each with those around it, and no deeper than so far."""
    if not isinstance(settings, dict) or not settings or not depth:
        return {()}
    inner = {key: keys_of(value, depth - 1) for key, value in settings.items()}
    return {(key, *rest) for key, keys in inner.items() for rest in keys}


def clash(one: Any, other: Any) -> bool:
    """Return whether settings set the same, or one of them what is around that of the other."""
    pairs = product(keys_of(one), keys_of(other))
    return any(a[: len(b)] == b[: len(a)] for a, b in pairs)


def packed(variants: dict[str, Any]) -> list[list[str]]:
    """Return few lists of variants, in each of which none sets what another does."""
    packs: list[list[str]] = []
    for name, settings in variants.items():
        for pack in packs:
            if not any(clash(settings, variants[other]) for other in pack):
                pack.append(name)
                break
        else:
            packs.append([name])
    return packs


def dry_run(arguments: list[str], output: Path, options: list[str]) -> dict:
    """Run a configuration with two batches an epoch, check what it leaves, return its result.

    Args:
        arguments: Files and variants.
        output: Its folder.
        options: More options.
    """
    given = [*arguments, "--output", str(output), "--fast", "true", *options]
    assert main(["run", *given]) == 0
    stages = {path.name for path in output.iterdir()} - FILES
    assert "dense" in stages and len(stages) >= 2
    for stage in (each for each in stages if not each.endswith("_score")):  # the others train
        inside = {path.name.split(".")[0] for path in (output / stage).iterdir()}
        assert {"metrics", "events"} <= inside
    assert not (output.parent / "results").exists()  # a dry run is no result
    result = json.loads((output / "result.json").read_text())
    assert result["collapse"]["relative_error"] <= result["collapse"]["tolerance"]
    assert result["cost"]["small"]["params"] < result["cost"]["dense"]["params"]
    return result
