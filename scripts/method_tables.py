"""The field's methods as tables: sources, masks and gates, cost of criteria, depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from config_table import CONFIGS, METHODS, whole_comments
from recorded_rows import made

from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare.results import Results
from branchprune.experiments.markdown import NOTHING, markdown_table

Result = Mapping[str, Any]

FILE = CONFIGS / "methods.yaml"
COMMENT = re.compile(
    r"(?P<choice>\w+): (?P<what>.+?)\. Source: (?P<source>.+?)\. Ours: (?P<ours>.+?)\.(?: .*)?"
)
"""What stands above the variant of a method of the field."""


def sources_table() -> str:
    """Return where each method of configs/methods.yaml comes from, and how ours differs."""
    comments = whole_comments(METHODS) | whole_comments(FILE)
    lines = [["choice", "method", "variants", "what it is", "source", "ours"]]
    for method in compare_config.read(FILE).methods.values():
        found = [COMMENT.fullmatch(comments[row]) for row in method.rows]
        *_, last = [each for each in found if each is not None]
        choice, what, source, ours = (_capital(last[name]) for name in COMMENT.groupindex)
        rows = ", ".join(f"`{row}`" for row in method.rows)
        lines.append([choice, method.name, rows, what, source, ours])
    return markdown_table(lines, "llllll")


def _capital(text: str) -> str:
    first = text[:1].upper() if text[:1].isascii() else text[:1]  # α stays small
    return f"{first}{text[1:]}"


def beside_table(result: Result) -> str:
    """Return what masks and gates come to, of `scripts/masks_and_gates.py`."""
    rows, options = result["rows"], result["options"]
    lines = [["method", "accuracy, %", "weights not 0", "multiply-adds needed", "an image, ms"]]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        scores = [100 * row["test"] for row in own]
        spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
        times = [
            f"{runtime}: dense {_ms(own, 'dense', runtime)}, narrow {_ms(own, 'narrow', runtime)}, "
            f"{method} {_ms(own, method, runtime)}"
            for runtime in dict.fromkeys(key.split(", ")[1] for key in own[0]["ms"])
        ]
        lines.append(
            [
                method,
                f"{fmean(scores):.2f}{spread} ({len(own)})",
                f"{100 * fmean(row['nonzero'] for row in own):.1f} %",
                f"{100 * fmean(row['macs'] for row in own):.1f} %",
                "; ".join(times) or NOTHING,
            ]
        )
    return (
        f"{markdown_table(lines, 'lrrrl')}\n\nTest accuracy after {options['epochs']} epochs of "
        "the dense layers, mean ± sample standard deviation of n seeds. *Multiply-adds needed*: a "
        "share of the dense model's, were nothing computed for zeros. *An image*: median latency, "
        f"one thread, all three models in turns; *narrow* has {100 * options['keep']:.1f} % of the "
        f"channels of each layer. {made(rows)}. Command: `python scripts/masks_and_gates.py "
        "--record`."
    )


def _ms(rows: Any, kind: str, runtime: str) -> str:
    return f"{fmean(row['ms'][f'{kind}, {runtime}'] for row in rows):.2f}"


def cost_table(result: Result) -> str:
    """Return what each criterion costs, of `scripts/criteria_cost.py`."""
    rows, options = result["rows"], result["options"]
    lines = [["criterion", "seconds", "steps of training"]]
    for row in sorted(rows, key=lambda row: row["seconds"] / row["step"]):
        quotient = row["seconds"] / row["step"]
        lines.append([f"`{row['criterion']}`", f"{row['seconds']:.2f}", f"{quotient:.2f}"])
    return (
        f"{markdown_table(lines, 'lrr')}\n\nChoosing half of the channels of a "
        f"`{options['model']}` by {options['images']} images of {options['image_size']} px, one "
        "thread, with all that is made on the way; *steps of training*: of a forward and backward "
        f"pass over these images, timed in turns. {made(rows)}. Command: `python "
        "scripts/criteria_cost.py --record`."
    )


def depth_table(result: Result, results: Mapping[str, Results]) -> str:
    """Return how fast models of fewer blocks are, of `scripts/depth_latency.py`.

    Args:
        result: Their times.
        results: What their comparison found, by network.
    """
    rows, options = result["rows"], result["options"]
    lines = [
        [
            "network",
            "budget",
            "method",
            "blocks out",
            "latency, ms",
            "times as fast",
            "accuracy, % (n)",
        ]
    ]
    for network, found in results.items():
        for each in found.outcomes():
            here = (network, each.budget, each.method)
            own = [row for row in rows if (row["network"], row["budget"], row["method"]) == here]
            if own:
                faster = (fmean(row["faster"][i] for row in own) for i in (1, 0, 2))
                lines.append(
                    [
                        *here,
                        " or ".join(str(n) for n in sorted({len(row["left_out"]) for row in own})),
                        f"{fmean(row['small_ms'] for row in own):.3f}",
                        "{:.2f} ({:.2f}–{:.2f})".format(*faster),
                        f"{100 * each.mean:.2f} ({len(each.lines)})",
                    ]
                )
    return (
        f"{markdown_table(lines, 'lllrrrr')}\n\nONNX Runtime {rows[0]['onnxruntime']}, "
        f"{options['threads']} thread, an image of {options['image_size']} px, in turns with the "
        "dense model, with quartiles; means of n seeds. "
        f"{made(rows)}. Command: `python scripts/depth_latency.py --record`."
    )
