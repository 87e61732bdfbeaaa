"""A YOLO with few channels, drawn images, and the options that keep its trainer quiet."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

# Read when ultralytics is imported: it would look for the network, and write to the home folder.
os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())

import yaml
from ultralytics.utils import ROOT

from branchprune.data import draw_shapes


def narrow(name: str) -> dict[str, Any]:
    """Return what defines a model, such as "v8/yolov8", at an eighth of its channels."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "cfg" / "models" / f"{name}.yaml").read_text())
    depth, *_ = found.pop("scales")["n"]
    return found | {"depth_multiple": depth, "width_multiple": 0.125}


def write_yaml(folder: Path) -> Path:
    """Write the YAML of YOLOv8 at an eighth of its channels."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(narrow("v8/yolov8")))
    return path


def training(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """Return options of a training on 24 drawn images, which are drawn the first time."""
    data = folder / "shapes" / "data.yaml"
    if not data.exists():
        draw_shapes(data.parent, train=24, val=8, test=1)
    quiet = {"plots": False, "verbose": False, "workers": 0, "device": "cpu", "exist_ok": True}
    size = {"imgsz": 64, "batch": 8, "nbs": 8, "mosaic": 0.0, "warmup_epochs": 0}
    return {"data": str(data), "project": str(folder), "name": name} | quiet | size | options
