"""The card of a model: what it is, what of, how it was made, how good it is, what to mind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from branchprune.artifacts.facts import Facts, facts_in
from branchprune.artifacts.header import DIGEST, IMPORT_PATH, VERSIONS
from branchprune.artifacts.layer_table import total_params
from branchprune.artifacts.library_models import is_of_library
from branchprune.artifacts.origin import Origin, package_of
from branchprune.artifacts.plain_text import in_code, plain
from branchprune.artifacts.saved_file import read_header
from branchprune.artifacts.whole_file import write_text
from branchprune.errors import PruneError

TAGS = ("branchprune", "pruning", "model-compression", "pytorch")


def card(header: Mapping[str, str], file: str, source: str | None = None) -> str:
    """Return a model card in Markdown.

    Args:
        header: That of a file of `save`.
        file: The name of the file, or of the folder with it.
        source: What the model was made of, as the user named it; None: as the header says.

    Raises:
        PruneError: The header is damaged.
    """
    facts = facts_in(header, file)
    kind = plain(header.get("class", "model"))
    source = source or (facts.origin.made_by if facts.origin else None)
    dense, small = total_params(header, ())
    of = f", made small from {plain(source)}" if source and dense else ""
    lines = [f"# {kind}{of}", "", *_costs(facts, dense, small)]
    notes = map(plain, facts.notes)
    for part in (*_scores(facts), *notes, _limits(facts), *_keep(facts), *_versions(header)):
        lines += [part, ""]
    return "\n".join([*lines, *_how_to_load(header, facts, file), ""])


def write_card(file: Path, source: str | None = None) -> Path:
    """Write the card of a model beside its file, NAME.md; return where it is.

    Args:
        file: A file of `save`.
        source: See `card`.

    Raises:
        PruneError: It cannot be written.
    """
    path = file.with_suffix(".md")
    write_text(path, card(read_header(file), file.name, source))
    return path


def front_matter(header: Mapping[str, str]) -> str:
    """Return what the Hugging Face Hub reads at the top of a card, as YAML."""
    said: dict[str, Any] = {"library_name": TAGS[0], "tags": [*TAGS]}
    if "license" in header:
        said["license"] = header["license"].lower()
    return "".join(["---\n", *(f"{k}: {json.dumps(v)}\n" for k, v in said.items()), "---\n"])


def score(value: float | Mapping[str, Any]) -> str:
    """Return a number with its interval and what else is known of it: 0.76 (0.74 to 0.78)."""
    if not isinstance(value, Mapping):
        return f"{value:.6g}"
    ends = value.get("interval")
    told = [] if ends is None else [f"{ends[0]:.6g} to {ends[1]:.6g}"]
    told += [f"{key} {more}" for key, more in value.items() if key not in ("value", "interval")]
    return f"{value['value']:.6g}" + f" ({', '.join(told)})" * bool(told)


def _costs(facts: Facts, dense: int | None, small: int) -> Iterator[str]:
    rows = [("parameters", dense, small)]
    rows += [("multiply-adds for one example", *facts.macs)] if facts.macs else []
    yield from ("| | dense | small | left |", "|---|---:|---:|---:|")
    for what, before, after in rows:
        yield (
            f"| {what} | {before:,} | {after:,} | {after / before:.1%} |"
            if before
            else f"| {what} | | {after:,} | |"
        )
    yield ""


def _scores(facts: Facts) -> Iterator[str]:
    if facts.metric:
        rows = [
            f"| {plain(name)} | {plain(score(value))} |" for name, value in facts.metric.items()
        ]
        yield "\n".join(["| score | |", "|---|---:|", *rows])


def _limits(facts: Facts) -> str:
    measured = "" if facts.metric else "How accurate it is, this file does not say. "
    return (
        f"{measured}It was made to do what the dense model does, on data like that which it saw: "
        "the mistakes of that model are its own, too, and so are the terms of its licence."
    )


def _versions(header: Mapping[str, str]) -> Iterator[str]:
    if VERSIONS in header:
        named = ", ".join(f"{k} {v}" for k, v in json.loads(header[VERSIONS]).items())
        yield f"Made with {plain(named)}. Weights (SHA-256): {in_code(header.get(DIGEST, ''))}."


def _keep(facts: Facts) -> Iterator[str]:
    if facts.keep is not None:
        yield f"Asked to stay of the channels: {in_code(json.dumps(facts.keep))}."


def _how_to_load(header: Mapping[str, str], facts: Facts, file: str) -> Iterator[str]:
    origin = facts.origin or Origin(header.get(IMPORT_PATH, "my_package:MyNet"))
    trust = "" if _is_made_alone(origin) else f", trust={package_of(origin.made_by)!r}"
    yield from ("```python", "import branchprune as bp  # pip install branchprune", "")
    yield from (f"model = bp.load({file!r}{trust})", "```", "")
    kind = in_code(header.get("class", "MyNet"))
    yield f"Or give it the dense model, of the class {kind}: `bp.load(model, {file!r})`."


def _is_made_alone(origin: Origin) -> bool:
    try:
        return is_of_library(origin)
    except PruneError:  # the library is missing here
        return True
