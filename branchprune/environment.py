"""What a result was obtained with: hardware, versions, commit; and what a measurement leaves."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("branchprune", "torch", "torchvision", "pytorch-lightning")


def versions() -> dict[str, str]:
    """Return the versions of what matters for a result."""
    found = {name.replace("-", "_"): version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}


def hardware() -> str:
    """Return the name of the GPU, if there is one, and of the processor."""
    cpu = f"{_processor()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}; {cpu}"
    return cpu


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [li for li in info.read_text().splitlines() if li.startswith("model name")]
        if names:
            return names[0].split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of the checkout that the package runs from, or None."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def give_memory_back() -> None:
    """Return what is free to the system: glibc keeps it, in pieces too small for the next copy."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
