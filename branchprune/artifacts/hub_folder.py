"""A folder as the Hugging Face Hub expects it: beside the weights a configuration and a card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from branchprune.artifacts.card import card, front_matter
from branchprune.artifacts.header import DIGEST, IMPORT_PATH, VERSIONS
from branchprune.artifacts.origin import INIT_ARGS, MADE_BY
from branchprune.artifacts.saved_file import IN_FOLDER, was_saved
from branchprune.artifacts.whole_file import write_text
from branchprune.errors import Failed, PruneError

CONFIG, CARD, OWN = "config.json", "README.md", "branchprune"
MARK = (
    "<!-- Written by branchprune, and again when the model is: to keep your text, delete this. -->"
)

FROM_HUB = "On the Hub, `huggingface_hub.snapshot_download('NAME/{}')` returns the folder to load."


def is_folder(path: str | Path) -> bool:
    """Return whether a folder is meant: it is there, or the text ends as one."""
    return Path(path).is_dir() or (isinstance(path, str) and path.endswith(("/", os.sep)))


def check_folder(folder: Path) -> bool:
    """Make a folder, unless it is there and has nothing of others that would be replaced.

    Returns:
        Whether it was made.

    Raises:
        PruneError: It cannot be made, or has files of another program.
    """
    if not folder.is_dir():
        try:
            folder.mkdir()
        except OSError as error:
            raise Failed(f"cannot write {folder}: {error.strerror or error}") from error
        return True
    weights, config = folder / IN_FOLDER, folder / CONFIG
    others = [weights] if weights.exists() and not was_saved(weights) else []
    others += [config] if config.exists() and not _is_ours(config) else []
    if others:
        raise PruneError(f"{others[0]} is not of branchprune: move it, or name another folder")
    return False


def _is_ours(config: Path) -> bool:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and OWN in found


def write_beside(folder: Path, header: Mapping[str, str]) -> None:
    """Write the configuration and the card of the model in a folder, each whole or not at all.

    At the top of the configuration are the arguments that make the wide model, where
    `PyTorchModelHubMixin` looks for them.

    Args:
        folder: The folder, with the model in it.
        header: That of the model.

    Raises:
        PruneError: One cannot be written.
    """
    kept = ("format", "class", IMPORT_PATH, DIGEST, MADE_BY, "license")
    own: dict[str, object] = {key: header[key] for key in kept if key in header}
    for key in (INIT_ARGS, VERSIONS, "keep", "metric", "macs"):
        if key in header:
            own[key] = json.loads(header[key])
    config = {"architectures": [header["class"]]} | json.loads(header.get(INIT_ARGS, "{}"))
    write_text(folder / CONFIG, json.dumps(config | {OWN: own}, indent=2) + "\n")
    if _is_to_be_written(folder / CARD):
        text = f"{card(header, folder.name)}\n{FROM_HUB.format(folder.name)}\n"
        write_text(folder / CARD, f"{front_matter(header)}{MARK}\n\n{text}")


def _is_to_be_written(path: Path) -> bool:
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")
