"""The command that shows what a file says of its model, without making the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from branchprune.artifacts.card import score
from branchprune.artifacts.executorch_file import EXECUTORCH
from branchprune.artifacts.exported_header import READERS, read_exported
from branchprune.artifacts.facts import facts_in
from branchprune.artifacts.header import DIGEST, IMPORT_PATH, VERSIONS
from branchprune.artifacts.layer_table import Layer, layers_of, total_params
from branchprune.artifacts.plain_text import plain
from branchprune.artifacts.saved_file import content_of, file_of, read_tensors
from branchprune.errors import PruneError
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.planning.columns import in_columns

ABOUT = """Show what a file says of its model: of which class it is and what makes it, how small and
how good it is, and of a file of bp.save its layers. The model is not made, and nothing in the file
is run."""
FILE = """a file of bp.save (small.safetensors), a folder with one as on the Hugging Face Hub, or an
exported file (.onnx, .xml, .pt2)"""
COLUMNS = ("layer", "kind", "shape", "dense", "parameters")


def main(args: Sequence[str], console: Console) -> None:
    """Print the header of a file, and a table of its layers where it has one.

    Raises:
        PruneError: The file is missing, damaged, of a newer version, or not of branchprune.
    """
    path = file_of(parsed(_parser(), args).file)
    if path.suffix in READERS:
        header = read_exported(path)
        lines = [*_said(header, [], path)]
    elif path.suffix == ".safetensors" or not path.exists():
        header, state = read_tensors(path)
        layers = layers_of(header, content_of(header, {**state}, path))
        lines = [*_said(header, layers, path), "", *in_columns([COLUMNS, *map(_row, layers)])]
    else:
        known = ", ".join((".safetensors", *READERS))
        own = "; a program of ExecuTorch returns its header by its method 'branchprune'"
        raise PruneError(
            f"file (={str(path)!r}) must end in one of {known}, or be a folder"
            f"{own if path.suffix == EXECUTORCH.suffix else ''}"
        )
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _said(header: Mapping[str, str], layers: Sequence[Layer], path: Path) -> Iterator[str]:
    """Yield a line for each thing that a header says, and a reader would ask."""
    facts = facts_in(header, path)
    dense, small = total_params(header, layers)
    origin = facts.origin
    given = f" {json.dumps(origin.init_args)}" if origin and origin.init_args else ""
    rows = [
        ("class", header.get("class", "")),
        ("import path", header.get(IMPORT_PATH, "")),
        ("made by", f"{origin.made_by}{given}" if origin else ""),
        ("parameters", _less(dense, small)),
        ("multiply-adds", _less(*facts.macs) if facts.macs else ""),
        ("left out", ", ".join(json.loads(header.get("shortcuts", "{}")))),
        ("keep", "" if facts.keep is None else json.dumps(facts.keep)),
        *(("score", f"{name}: {score(value)}") for name, value in facts.metric.items()),
        ("license", facts.license or ""),
        ("versions", _versions(header)),
        ("sha256", header.get(DIGEST, "")),
        ("format", header.get("format", "")),
    ]
    length = max(len(name) for name, text in rows if text)
    yield from (f"{name.ljust(length)}  {plain(text)}" for name, text in rows if text)
    yield from (part for note in facts.notes for part in ("", plain(note)))


def _less(dense: int | None, small: int) -> str:
    return f"{small:,}" if not dense else f"{dense:,} → {small:,} ({small / dense - 1:+.1%})"


def _versions(header: Mapping[str, str]) -> str:
    """Return the versions that a file was written with; an exported one has a field for each."""
    try:
        found: Any = json.loads(header.get(VERSIONS, "{}"))
    except (ValueError, RecursionError):
        found = {}
    named = {key: header[key] for key in ("branchprune", "torch") if key in header}
    named |= found if isinstance(found, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in named.items())


def _row(layer: Layer) -> tuple[str, ...]:
    dense = "" if layer.dense in (None, layer.shape) else _sizes(layer.dense or ())
    cells = layer.name or "(itself)", layer.kind, _sizes(layer.shape), dense, f"{layer.params:,}"
    return tuple(map(plain, cells))


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune show", ABOUT)
    parser.add_argument("file", type=Path, help=FILE)
    return parser
