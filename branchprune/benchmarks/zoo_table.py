"""The rows of the coverage table: one a model, kept as JSON lines, written as CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from branchprune.benchmarks.child import parse
from branchprune.experiments.files import append_line, parse_lines, write_whole
from branchprune.experiments.markdown import markdown_table
from branchprune.planning.plan import Plan
from branchprune.planning.staying import kind_of

LAST_FAMILIES = ("segmentation", "video")
Key = tuple[object, ...]


@dataclass
class Row:
    """What happened to one model; a field is None where the model did not get that far.

    Attributes:
        library: Where the model comes from, such as torchvision or timm.
        model: Its name there.
        family: The module of the library that defines it, or its task if that is not to classify
            images.
        keep: Fraction of the channels to keep.
        seed: Seed of weights, inputs and noise.
        image_size: Height and width of an image, or None for the model's own.
        threads: Threads that torch used.
        smallest: Whether only the smallest model of each family was asked for.
        stage: The last stage that was entered.
        error: Why the model failed, or None.
        exact: Whether every stage succeeded and every check held.
        traced: Whether the model was traced and planned.
        input_shape: Shape of one example, without the batch dimension.
        groups: Number of channel groups, of which `pruned_groups` shrink and `frozen_groups` stay.
        macs_share_prunable: Multiply-adds of the layers that make the channels of pruned groups,
            as a share of all that PyTorch counts in the model, those of attention included.
        frozen: Why groups stay: for each kind of reason the number of groups and the share of
            multiply-adds.
        channels_before: Output channels of the layers, as the plan counts them.
        params_before: Parameters.
        params_stay: Those that stay whatever widths are chosen; see `Plan.staying`.
        macs_before: Multiply-adds for one example, as PyTorch counts them.
        difference_eval: Largest absolute difference between the outputs of the model and of the
            blended model at α = 1, evaluation mode.
        difference_train: The same in training mode, from the same random seed.
        rounds: In how many rounds the groups were pruned, so that the largest models fit into
            memory.
        collapse_error: Relative error of the collapse in float64, branches and norms disturbed.
        seconds: Seconds of each stage: build, plan, attach, alpha = 1 (the comparison), collapse,
            result (counting what is left).
        peak_memory: Peak resident memory of the process, in bytes.
        versions: Versions of what matters for the result.
        commit: Commit of the checkout.
        hardware: Processor and GPU.
    """

    library: str
    model: str
    family: str
    keep: float
    seed: int
    image_size: int | None
    threads: int
    smallest: bool = False
    stage: str = "build"
    error: str | None = None
    exact: bool = False
    traced: bool = False
    input_shape: list[int] | None = None
    groups: int | None = None
    pruned_groups: int | None = None
    frozen_groups: int | None = None
    macs_share_prunable: float | None = None
    frozen: dict[str, dict[str, float]] = field(default_factory=dict)
    channels_before: int | None = None
    channels_after: int | None = None
    params_before: int | None = None
    params_after: int | None = None
    params_stay: int | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    difference_eval: float | None = None
    difference_train: float | None = None
    rounds: int | None = None
    collapse_error: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    hardware: str = ""

    @property
    def share_that_stays(self) -> float | None:
        """Parameters that stay whatever widths are chosen, as a share of all."""
        if self.params_stay is None or not self.params_before:
            return None
        return self.params_stay / self.params_before

    @property
    def key(self) -> Key:
        """What a result depends on, apart from the code; the model's name is the last of it."""
        return self.library, self.keep, self.seed, self.image_size, self.model

    def describe(self, plan: Plan) -> None:
        """Fill in what a plan of the model says; its multiply-adds are known."""
        self.traced, self.groups, self.pruned_groups = True, len(plan.groups), len(plan.pruned)
        self.frozen_groups = self.groups - self.pruned_groups
        self.channels_before, self.channels_after = plan.before.channels, plan.after.channels
        self.params_stay = sum(each.params for each in plan.staying)
        of_all = plan.before.macs / max(self.macs_before or 0, 1)
        self.macs_share_prunable = of_all * sum(plan.groups[i].macs_share for i in plan.pruned)
        kinds: dict[str, dict[str, float]] = {}
        for group in plan.groups:
            if group.reason is not None:
                kind = kind_of(group.reason, plan.structure.modules)
                entry = kinds.setdefault(kind, {"groups": 0, "macs_share": 0.0})
                entry["groups"] += 1
                entry["macs_share"] += group.macs_share * of_all
        self.frozen = dict(sorted(kinds.items(), key=lambda item: -item[1]["macs_share"]))

    def progress(self) -> str:
        """Return what happened to the model, on one line."""
        if not self.exact:
            return f"{self.model}: FAILED at {self.stage}: {self.error}"
        return (
            f"{self.model}: exact to {self.collapse_error:.1e}, {self.pruned_groups} of "
            f"{self.groups} groups pruned with {self.macs_share_prunable:.1%} of the MACs, "
            f"{sum(self.seconds.values()):.0f} s, {(self.peak_memory or 0) / 2**30:.1f} GiB"
        )


def read_rows(path: Path) -> dict[Key, Row]:
    """Return the last row of every experiment in a file of JSON lines."""
    return {row.key: row for row in parse_lines(path, partial(parse, kind=Row))}


def append_row(folder: Path, row: Row) -> None:
    """Add a row to `zoo.jsonl`, on a line of its own even behind a torn one."""
    append_line(folder / "zoo.jsonl", asdict(row))


def write_tables(folder: Path, rows: Mapping[Key, Row], settings: Key) -> None:
    """Write `zoo.csv` and `zoo.md`, of all models with the same settings; each at one stroke.

    Those of other libraries than torchvision have the library's name in them.
    """
    same = [rows[key] for key in sorted(rows, key=str) if key[:-1] == settings]
    stem = "zoo" if settings[0] == "torchvision" else f"zoo_{settings[0]}"
    for name, text in ((f"{stem}.csv", csv_text(same)), (f"{stem}.md", markdown(same))):
        write_whole(folder / name, text)


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV: text as it is, None as nothing, everything else as JSON."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([f.name for f in fields(Row)])
    for row in rows:
        cells = ["" if cell is None else cell for cell in asdict(row).values()]
        writer.writerow([c if isinstance(c, str) else json.dumps(c) for c in cells])
    return file.getvalue()


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a `zoo.csv`."""
    text = {f.name: str(f.type).startswith("str") for f in fields(Row)}

    def value(key: str, cell: str) -> Any:
        if text[key]:
            return cell if cell or key == "hardware" else None
        return json.loads(cell) if cell else None

    with path.open(newline="") as file:
        return [Row(**{k: value(k, c) for k, c in line.items()}) for line in csv.DictReader(file)]


def summary(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a header, a line a family and one for all: models, exact, shares, largest error."""
    families = sorted({row.family for row in rows}, key=lambda f: (f in LAST_FAMILIES, f))
    lines: list[tuple[str, ...]] = [
        (
            *("family", "models", "exact", "MACs in pruned groups"),
            *("parameters that stay", "largest collapse error"),
        )
    ]
    for name in (*families, "all"):
        members = [row for row in rows if name in (row.family, "all")]
        exact = sum(row.exact for row in members)
        lines.append((name, f"{len(members)}", f"{exact}", *_ranges(members)))
    return lines


def _ranges(rows: Sequence[Row]) -> tuple[str, str, str]:
    shares = [r.macs_share_prunable for r in rows if r.macs_share_prunable is not None]
    errors = [row.collapse_error for row in rows if row.collapse_error is not None]
    share = f"{statistics.median(shares):.1%} (lowest {min(shares):.1%})" if shares else "–"
    stay = [row.share_that_stays for row in rows if row.share_that_stays is not None]
    mean = f"{statistics.mean(stay):.1%} (highest {max(stay):.1%})" if stay else "–"
    return share, mean, f"{max(errors):.1e}" if errors else "–"


def origin(rows: Sequence[Row]) -> str:
    """Return a sentence that says what the rows were obtained with, and by which command."""
    first = rows[0]
    size = "the size its weights are evaluated at"
    size = f"{first.image_size} pixels" if first.image_size else size
    names = sorted({name for row in rows for name in row.versions} - {"pytorch_lightning"})
    versions = [f"{n} {_distinct(row.versions.get(n) for row in rows)}" for n in names]
    command = f"branchprune zoo --library {first.library} --keep {first.keep:g} --seed {first.seed}"
    command += " --smallest true" * first.smallest
    command += f" --image_size {first.image_size}" * bool(first.image_size)
    return (
        f"{len(rows)} models of {first.library} with random weights, each at {size}; "
        f"{_distinct(row.hardware for row in rows)}, {', '.join(versions)}, commit "
        f"{_distinct(row.commit for row in rows)}. Command: `{command}`."
    )


def _distinct(values: Iterable[str | None]) -> str:
    return " and ".join(sorted({value for value in values if value})) or "unknown"


def markdown_summary(rows: Sequence[Row]) -> str:
    """Return origin, summary by family and the failing models as Markdown."""
    failures = "".join(f"\n- {row.progress()}" for row in rows if not row.exact)
    return f"{origin(rows)}\n\n{markdown_table(summary(rows))}\n\nFailing:{failures or ' none'}"


def markdown(rows: Sequence[Row]) -> str:
    """Return the whole table as Markdown: the summary, and a line a model."""
    header = (
        "model, input, exact, groups pruned, MACs in them, channels, parameters, MACs, "
        "parameters that stay, difference eval, … train, collapse error, s plan, s attach, "
        "s collapse, memory, what stays"
    )
    table = [header.split(", "), *(_cells(row) for row in rows)]
    return f"# Coverage\n\n{markdown_summary(rows)}\n\n{markdown_table(table)}\n"


def _cells(row: Row) -> list[str]:
    def number(value: float | None, form: str, unit: str = "") -> str:
        return "–" if value is None else f"{value:{form}}{unit}"

    def change(what: str) -> str:
        before, after = getattr(row, f"{what}_before"), getattr(row, f"{what}_after")
        return f"{number(before, ',')} → {number(after, ',')}"

    reasons = [f"{k}: {v['groups']:g} ({v['macs_share']:.1%})" for k, v in row.frozen.items()]
    memory = None if row.peak_memory is None else row.peak_memory / 2**30
    return [
        row.model,
        "×".join(map(str, row.input_shape or ())) or "–",
        "yes" if row.exact else "no",
        f"{number(row.pruned_groups, '')} of {number(row.groups, '')}",
        number(row.macs_share_prunable, ".1%"),
        *(change(what) for what in ("channels", "params", "macs")),
        number(row.share_that_stays, ".1%"),
        number(row.difference_eval, "g"),
        number(row.difference_train, "g"),
        number(row.collapse_error, ".1e"),
        *(number(row.seconds.get(stage), ".1f") for stage in ("plan", "attach", "collapse")),
        number(memory, ".1f", " GiB"),
        "; ".join(reasons),
    ]
