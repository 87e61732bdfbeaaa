"""Write the tables of configs/README.md, between its marker comments; with --check, compare them.

    python scripts/config_table.py

What a file or a variant shows is the comment above it; how long it took is what the committed lines
of results say.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marked_tables import fill

from branchprune.experiments.files import read_lines
from branchprune.experiments.markdown import markdown_table
from branchprune.experiments.variants import (
    COMPARISON,
    JOINT,
    ConfigFile,
    Settings,
    read_file,
    read_settings,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS, README = ROOT / "configs", ROOT / "scripts/results", ROOT / "configs/README.md"
ADDED = "gpu.yaml"
"""A file that is no configuration without another one."""
OTHER_DATA = {"jpeg", "images"}
"""Variants by which a run reads other data than those of the lines of results."""
SCRIPTS = {"yolo.yaml": "python scripts/yolo.py"}
"""What runs a file that is none of `branchprune`."""
METHODS = CONFIGS / "compare" / "methods.yaml"
"""The file of variants that comparisons have in common."""


@dataclass(frozen=True)
class Entry:
    """A file, or a variant of it, with the command that runs it.

    Args:
        verb: Command of `branchprune`, or all of another one.
        files: Configuration files, relative to the project.
        variants: Variants of the last one.
        about: The comment above it.
        settings: What all of that says, as far as the first level goes.
    """

    verb: str
    files: tuple[str, ...]
    variants: tuple[str, ...]
    about: str
    settings: Settings

    @property
    def command(self) -> str:
        """How it is run."""
        chosen = [f"--variant {name}" for name in self.variants]
        program = [] if self.verb in SCRIPTS.values() else ["branchprune"]
        return " ".join([*program, self.verb, *self.files, *chosen])

    @property
    def paper(self) -> str:
        """The figure or table of the paper."""
        found = re.search(r"\(((?:figures?|table) [^;)]*)", self.about)
        return found.group(1) if found else ""

    @property
    def writes(self) -> str:
        """Its folder, or its file."""
        if self.verb == "compare":
            return f"runs/compare/{self.settings['name']}"
        return str(self.settings.get("output", self.settings.get("folder", "runs/cost.json")))


def entries() -> Iterator[Entry]:
    """Yield every file that a command runs, and every variant of it."""
    for path in [*sorted(CONFIGS.glob("*.yaml")), *sorted((CONFIGS / "compare").glob("*.yaml"))]:
        if path == METHODS:
            continue
        file, about, name = read_file(path), comments(path), str(path.relative_to(ROOT))
        if compares(path):
            yield Entry("compare", (name,), (), about[""], _merged(file.layers()))
            continue
        before = ("configs/vgg16_cifar10.yaml",) if path.name == ADDED else ()
        layers = [layer for each in before for layer in read_file(ROOT / each).layers()]
        for variants in ((), *_choices(file)):
            settings = _merged([*layers, *file.layers(variants)])
            shown = about[variants[-1] if variants else ""]
            verb = "run" if "model" in settings else "cost"
            yield Entry(SCRIPTS.get(path.name, verb), (*before, name), variants, shown, settings)


def compares(path: Path) -> bool:
    """Return whether a file is one of `branchprune compare`."""
    return {*COMPARISON} <= {*read_settings(path)}


def _choices(file: ConfigFile) -> Iterator[tuple[str, ...]]:
    """Yield a file's own variants; those that are another method at the scale of two cores."""
    for name in own_names(file):
        small = "cpu" in file.variants and "method" in file.variants[name]
        yield ("cpu", name) if small else (name,)


def own_names(file: ConfigFile) -> list[str]:
    """Return the names of a file's own variants."""
    return [name for name in file.variants if JOINT not in name]


def _merged(layers: Sequence[Settings]) -> Settings:
    return {key: value for layer in layers for key, value in layer.items()}


def comments(path: Path) -> dict[str, str]:
    """Return the first sentence above a file ("") and above or beside its variants, by name."""
    return {name: _sentence(text) for name, text in whole_comments(path).items()}


def whole_comments(path: Path) -> dict[str, str]:
    """Return all that stands above a file ("") and above or beside its variants, by name."""
    text = path.read_text(encoding="utf-8")
    top = re.match(r"(?:#.*\n)+", text)
    found = {"": _text(top.group(0) if top else "")}
    above: list[str] = []
    for line in text.partition("\nvariants:\n")[2].splitlines():
        match = re.match(r"  ([^\s:#][^:#]*):(?:.*?\s#\s(.*))?", line)
        if line.startswith("  #"):
            above.append(line.strip())
        elif match:
            found[match.group(1)] = _text(match.group(2) or "\n".join(above))
        if match or not line.strip():
            above = []
    return found


def _text(comment: str) -> str:
    return " ".join(line.lstrip("# ") for line in comment.splitlines())


def _sentence(text: str) -> str:
    text = text.split(". ")[0].strip().rstrip(".").replace("<", "&lt;")
    first = text[:1].upper() if text[:1].isascii() else text[:1]  # α stays small
    return f"{first}{text[1:]}." if text else ""


def seconds(entry: Entry) -> float | None:
    """Return the seconds of the stages of an entry; None: not measured.

    Those of a run are a mean over the seeds, with a dense training where it began with the dense
    model of another; those of a comparison are of all its runs and of its dense training.
    """
    name = entry.settings.get("name")
    folder = RESULTS / "compare" if entry.verb == "compare" else RESULTS
    lines = read_lines(path) if (path := folder / f"{name}.jsonl").exists() else []
    if entry.verb == "compare":
        dense = json.loads(path.with_suffix(".dense.json").read_text()) if lines else {}
        first = (dense.get("record") or {}).get("seconds", 0)
        return first + sum(map(_seconds, lines)) if lines else None
    keys = {"method": entry.settings.get("method"), "preset": entry.settings.get("preset", "own")}
    mine = [_seconds(line) for line in lines if keys.items() <= line.items()]
    dense = [x["seconds"]["dense"] for x in lines if "dense" in x["seconds"]]
    shared = not any("dense" in x["seconds"] for x in lines if keys.items() <= x.items())
    return statistics.fmean(mine) + shared * statistics.fmean(dense) if mine else None


def _seconds(line: dict[str, Any]) -> float:
    return float(sum(line["seconds"].values()))


def duration(entry: Entry) -> str:
    """Return how long an entry took."""
    found = seconds(entry)
    if found is None or OTHER_DATA & {*entry.variants}:
        return "not measured"
    if found < 100:
        return f"{found:.0f} s"
    return f"{found / 3600:.1f} h" if found >= 3600 else f"{found / 60:.0f} min"


def commands_table() -> str:
    """Return the table of files and variants."""
    rows = [["command", "what it shows", "the paper", "two cores", "writes"]]
    for entry in entries():
        cells = [f"`{entry.command}`", entry.about, entry.paper, duration(entry)]
        rows.append([*cells, f"`{entry.writes}`"])
    return markdown_table(rows, "lllll")


def rows_table() -> str:
    """Return the table of what comparisons put their methods together from."""
    rows = [["file", "variant", "what it is"]]
    of_all = sorted(path for path in CONFIGS.rglob("*.yaml") if compares(path) or path == METHODS)
    for path in of_all:
        about, names = comments(path), own_names(read_file(path))
        place = path.relative_to(CONFIGS)
        rows += [[f"`{place}`", f"`{name}`", about[name]] for name in names]
    return markdown_table(rows, "lll")


def filled(text: str) -> str:
    """Return the page with its tables made anew; raises as `fill`."""
    return fill(text, {"commands": commands_table(), "variants": rows_table()}, README.name)


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; with --check, only say whether it is up to date."""
    args = sys.argv[1:] if args is None else args
    text = README.read_text(encoding="utf-8")
    if "--check" in args:
        return int(filled(text) != text)
    README.write_text(filled(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
