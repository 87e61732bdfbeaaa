"""The paper's figures 5 and 7: what the models cost, and what they reconstruct."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from figure_parts import BLUE, INK, RED, Data, Missing, finish
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from measurement_tables import runtime_of
from paper_tables import AUTOENCODER
from torch import Tensor, nn

from branchprune import load
from branchprune.data import Frames
from branchprune.models import Autoencoder


def reconstructions(data: Data, count: int = 6) -> Figure:
    """Draw figure 7: test frames, and what the dense and the small models make of them."""
    folders = _folders(data, ("one after the other", "at once"))
    first = next(iter(folders.values()))
    images = _frames(first, data.frames, count)
    rows = [("original", images), ("dense", _reconstruct(first, "dense", images))]
    rows += [
        (f"small,\n{method}", _reconstruct(folder, "small", images))
        for method, folder in folders.items()
    ]
    figure = Figure((1.25 * count + 0.8, 1.45 * len(rows)))
    for (name, shown), line in zip(rows, figure.subplots(len(rows), count), strict=True):
        errors = (shown - images).square().mean((1, 2, 3)).clamp_min(1e-10)
        for axes, image, error in zip(line, shown, errors, strict=True):
            axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if name != "original":
                axes.set_xlabel(f"{-10 * float(error.log10()):.1f} dB", labelpad=2)
        line[0].set_ylabel(name)
    return figure


def _folders(data: Data, methods: Sequence[str]) -> dict[str, Path]:
    """Return the folders of the runs of some methods, of the lowest seed that all of them have."""
    found: dict[str, dict[int, Path]] = {method: {} for method in methods}
    for path in data.runs.glob(f"{data.preset}/{AUTOENCODER}/*/result.json"):
        result = json.loads(path.read_text())
        if result["method"] in found and result["preset"] == data.preset:
            found[result["method"]][result["seed"]] = path.parent
    seeds = set.intersection(*({*runs} for runs in found.values()))
    if not seeds:
        where = data.runs / data.preset / AUTOENCODER
        raise Missing(f"no runs {' and '.join(map(repr, methods))} of one seed in {where}")
    return {method: runs[min(seeds)] for method, runs in found.items()}


def _settings(folder: Path) -> dict[str, Any]:
    text = json.loads((folder / "result.json").read_text())["configuration"]
    return dict(yaml.safe_load(text))


def _frames(folder: Path, root: Path, count: int) -> Tensor:
    """Return test frames of a run, evenly spaced, with values in [0, 1]."""
    if not root.is_dir():
        raise Missing(f"no frames in {root}")
    frames = Frames(**_settings(folder)["data"]["init_args"] | {"root": root})
    images = torch.cat([batch[0] for batch in frames.test_dataloader()])
    return images[torch.linspace(0, len(images) - 1, count).long()]


@torch.inference_mode()
def _reconstruct(folder: Path, which: str, images: Tensor) -> Tensor:
    path = folder / f"{which}.safetensors"
    if not path.exists():
        raise Missing(f"no {path}")
    model: nn.Module = load(Autoencoder(**_settings(folder)["model"]["init_args"]), path)
    reconstructed: Tensor = model.eval()(images)
    return reconstructed


def cost(data: Data) -> Figure:
    """Draw figure 5: time and memory of the dense and the small models, with quartiles.

    Memory is drawn solid where it is the model's own: what a process grows by, or the peak of a
    GPU's allocator. The peak of a whole process on a CPU is hollow.
    """
    if data.cost is None:
        raise Missing("no cost.json")
    models = list(dict.fromkeys(each["model"] for each in data.cost["summary"]))
    figure = Figure((9.6, 5.6))
    grid = figure.subplots(len(models), 2, squeeze=False)
    looks = {"dense": (INK, "o"), "small": (BLUE, "o"), "small, multiple of 8": (RED, "d")}
    for (time, memory), model in zip(grid, models, strict=True):
        found = [each for each in data.cost["summary"] if each["model"] == model]
        names = list(dict.fromkeys(_case(each) for each in found))
        for axes, keys, unit in (
            (time, ("image_s",), 1e3),
            (memory, ("memory_bytes", "peak_bytes"), 2**-20),
        ):
            for each, key in product(found, keys):
                if each[key]:
                    (low, middle, high), (colour, marker) = each[key], looks[each["variant"]]
                    y, label = names.index(_case(each)), each["variant"]
                    fill = {"mfc": "white", "label": f"{label}: whole process"}
                    look = fill if key == "peak_bytes" else {"label": label}
                    axes.plot([unit * low, unit * high], [y, y], color=colour, lw=1.5)
                    axes.plot(unit * middle, y, marker, color=colour, ms=5, **look)
            axes.set(
                xscale="log", title=model if axes is time else "", ylim=(len(names) - 0.5, -0.5)
            )
            axes.set_yticks(range(len(names)), names if axes is time else [""] * len(names))
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        time.set_xlabel("milliseconds an image")
        memory.set_xlabel("MiB: process's growth (cpu), allocator's peak (cuda)")
    finish(figure, [], [])
    return figure


def _case(each: Mapping[str, Any]) -> str:
    return f"{each['device']}, batch {each['batch']}, {runtime_of(each)}"
