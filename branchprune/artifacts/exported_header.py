"""The header of an exported file, read without running the model and without its runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

from branchprune.artifacts.exported_program import HEADER
from branchprune.artifacts.openvino_file import SECTION
from branchprune.errors import PruneError, first_line
from branchprune.runtimes.runtime import needed

LARGEST = 1 << 24
"""Bytes of a header at most; a stranger's zip file could unfold to any number."""


def read_exported(path: Path) -> dict[str, str]:
    """Return what an exported file says of itself.

    Args:
        path: NAME.onnx, NAME.xml (OpenVINO) or NAME.pt2 (torch.export).

    Raises:
        PruneError: The file is missing, damaged, of another kind, or says nothing.
    """
    if not path.is_file():
        raise PruneError(f"{path} does not exist")
    try:
        found = READERS[path.suffix](path)
    except PruneError:
        raise
    except Exception as error:  # of many kinds, in a damaged file
        raise PruneError(
            f"{path} is damaged, or no {path.suffix} file: {first_line(error)}"
        ) from error
    texts = all(isinstance(x, str) for pair in found.items() for x in pair)
    if not texts or "class" not in found:
        raise PruneError(f"{path} was not exported by branchprune: it has no header")
    return found


def _of_onnx(path: Path) -> dict[str, str]:
    onnx = needed("onnx", f"show (of {path.name})", "onnx")
    props = onnx.load(path, load_external_data=False).metadata_props
    return {each.key: each.value for each in props}


def _of_openvino(path: Path) -> dict[str, str]:
    section = ElementTree.parse(path).getroot().find(f"rt_info/{SECTION}")
    return {each.tag: each.get("value", "") for each in section} if section is not None else {}


def _of_torch_export(path: Path) -> dict[str, str]:
    with ZipFile(path) as records:
        names = [name for name in records.namelist() if name.rpartition("/")[2] == HEADER]
        if not names:
            return {}
        if records.getinfo(names[0]).file_size > LARGEST:
            raise PruneError(f"{path} has a header that is too large")
        found = json.loads(records.read(names[0]))
    return found if isinstance(found, dict) else {}


READERS: dict[str, Callable[[Path], dict[str, str]]] = {
    ".onnx": _of_onnx,
    ".xml": _of_openvino,
    ".pt2": _of_torch_export,
}
