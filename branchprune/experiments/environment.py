"""What a result was obtained with: hardware, versions, commit; and where results are committed."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from branchprune import __version__
from branchprune.errors import PruneError
from branchprune.runtimes.processor import processor

PACKAGES = ("torch", "torchvision", "pytorch-lightning")
RECORDS = "scripts/results"
RECORD_HELP = f"Write to the committed results, in {RECORDS}/"
WRITTEN = (RECORDS, "README.md")
"""Tracked files of the checkout that runs and their tables write."""


def recorded(name: str) -> Path:
    """Return where a checkout, in whose root a command runs, keeps a committed result.

    Args:
        name: Name of the file or folder in `scripts/results/`.

    Raises:
        PruneError: The current folder is no checkout.
    """
    if not Path(RECORDS).is_dir():
        raise PruneError(f"record needs {RECORDS}/: run the command in the root of a checkout")
    return Path(RECORDS) / name


def versions() -> dict[str, str]:
    """Return the versions of what matters for a result."""
    found = {name.replace("-", "_"): version(name) for name in PACKAGES}
    return {"branchprune": __version__, **found, "python": platform.python_version()}


def device_of(accelerator: str = "auto") -> torch.device:
    """Return the device that a run with an accelerator, as Lightning names it, is measured on."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def hardware(accelerator: str = "auto") -> str:
    """Return the name of the GPU, if there is one and it is used, and of the processor."""
    cpu = f"{processor()}, {os.cpu_count()} cores"
    if device_of(accelerator).type == "cuda":
        return f"{torch.cuda.get_device_name()}; {cpu}"
    return cpu


def commit(folder: Path | None = None) -> str | None:
    """Return the commit of the checkout that the package runs from, or None.

    It ends in "-dirty" where tracked files differ from it; those that runs write do not count.

    Args:
        folder: A folder of the checkout; None: that of the package.
    """
    folder = Path(__file__).resolve().parent if folder is None else folder
    status = ["status", "--porcelain", "--untracked-files=no", "--", ":(top)"]
    try:
        name = _git(folder, "rev-parse", "--short", "HEAD")
        changed = _git(folder, *status, *(f":(top,exclude){path}" for path in WRITTEN))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}-dirty" if changed else name


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
