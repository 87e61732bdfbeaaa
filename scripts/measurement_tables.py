"""Time and memory as Markdown tables: `branchprune bench`, `branchprune cost`, `plan_speed.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paper_tables import Paper

from branchprune.experiments.markdown import NOTHING, folded, markdown_table


def table_of_rows(result: dict[str, Any], digits: int) -> str:
    """Return the rows of a result as a table: median, quartiles and target of each."""
    lines = [["", "median", "quartiles", "target"]]
    for row in result["rows"]:
        median, low, high = (f"{row[key]:.{digits}f}" for key in ("value", "low", "high"))
        lines.append([row["what"], median, f"{low}–{high}", row["target"] or NOTHING])
    return markdown_table(lines)


def bench_table(result: dict[str, Any]) -> str:
    """Return the table of `branchprune bench`."""
    options, size = result["options"], result["options"]["image_size"]
    return (
        f"VGG-16, {size}×{size} images, batch {options['batch_size']}, {result['threads']} "
        f"threads, {result['hardware']}, torch {result['versions']['torch']}, commit "
        f"{result['commit']}. Ratios are medians of {options['repeats']} alternating pairs, with "
        "quartiles. Command: `branchprune bench --record`.\n\n"
        f"{table_of_rows(result, 2)}"
    )


def plan_speed_table(result: dict[str, Any]) -> str:
    """Return the table of `scripts/plan_speed.py`."""
    options, versions = result["options"], result["versions"]
    return (
        f"{options['model']}, {result['threads']} thread(s), {result['hardware']}, torch "
        f"{versions['torch']}, Torch-Pruning {versions['torch_pruning']}, commit "
        f"{result['commit']}; medians of {options['pairs']} alternating pairs, with quartiles. "
        f"Command: `python scripts/plan_speed.py --threads {result['threads']} --record`.\n\n"
        f"{table_of_rows(result, 3)}"
    )


def cost_table(result: dict[str, Any], paper: Paper) -> str:
    """Return time and memory beside the paper's table 1, and all measurements folded away.

    Args:
        result: What `branchprune cost` writes.
        paper: The paper's own values, as in `scripts/results/paper.json`.
    """
    options = result["options"]
    lines = [["model", "device", "time: the paper", "here", "memory: the paper", "here"]]
    for row in paper["cost"]:
        (slow, fast), (large, small) = row["time"], row["memory"]
        name = f"{row['model']}, {row['how']}" if row["how"] else row["model"]
        ours = [quotients(result["summary"], row, keys) for keys in (TIME, MEMORY)]
        time = f"{slow:.4f} → {fast:.4f} s ({slow / fast:.2f}×)"
        memory = f"{large:.2f} → {small:.2f} GB ({large / small:.2f}×)"
        lines.append([name, row["device"], time, ours[0], memory, ours[1]])
    return (
        f"{result['hardware']}, torch {result['versions']['torch']}, commit {result['commit']}, "
        f"keep {options['keep']}. Dense / small, medians of {options['repeats']} pairs of processes"
        ", with quartiles. The paper's time is of an image. Memory is the peak of the allocator "
        "(cuda), or the peak of the process, and apart from it what the process grows by when it "
        f"builds and runs the model (cpu). Command: `{todays(result['command'])}`.\n\n"
        + markdown_table(lines, "llllll")
        + f"\n\n{folded('All measurements', measurements(result['summary']))}"
    )


MOVED = {"configs/cost/cpu.yaml": "--variant cpu", "--output scripts/results/cost.json": "--record"}
"""What stands for parts of older commands of `branchprune cost` today."""


def todays(command: str) -> str:
    """Return the command that measures the same today."""
    for old, new in MOVED.items():
        command = command.replace(old, new)
    return command


TIME = (("faster", ""),)
MEMORY = (("smaller_peak", "peak "), ("smaller", "growth "))
"""What is compared with the paper: fields of a summary, and how a CPU's are told apart."""


def quotients(
    summary: Sequence[dict[str, Any]],
    row: Mapping[str, Any],
    keys: Sequence[tuple[str, str]],
) -> str:
    """Return dense / small of a model on a device, batch by batch, without torch.compile."""
    found = [
        f"batch {each['batch']}: {name if each['device'] == 'cpu' else ''}{ratio(each[key])}"
        for each in summary
        if (each["model"], each["device"]) == (row["model"], row["device"])
        and (each["variant"], runtime_of(each)) == ("small", "pytorch")
        for key, name in keys
        if each[key]
    ]
    return "<br>".join(found) or NOTHING


EARLIER = {"eager": "pytorch", "compile": "torch-compile", "graphs": "cuda-graphs"}
"""What older results call a runtime, as `mode`."""


def runtime_of(line: Mapping[str, Any]) -> str:
    """Return what ran the model of a line of a summary."""
    found: str = line["runtime"] if "runtime" in line else EARLIER[line["mode"]]
    return found


def ratio(quartiles: Sequence[float] | None) -> str:
    """Return a median with its quartiles."""
    if quartiles is None:
        return NOTHING
    low, middle, high = quartiles
    return f"{middle:.2f}× ({low:.2f}–{high:.2f})"


def measurements(summary: Sequence[dict[str, Any]]) -> str:
    """Return a table of everything that `branchprune cost` measured: medians, with quartiles."""
    header = "model, variant, device, batch, runtime, ms an image, dense / this, weights in MiB, "
    header += "activations in MiB, peak in MiB, growth in MiB, dense / this"
    lines = [header.split(", ")]
    for each in summary:
        peak, growth = each["memory_bytes"], None
        if each["device"] == "cpu":
            peak, growth = each["peak_bytes"], each["memory_bytes"]
        weights = each["weights_bytes"]
        lines.append(
            [
                *(each["model"], each["variant"], each["device"], str(each["batch"])),
                runtime_of(each),
                (each["error"] or NOTHING)[:60]
                if each["image_s"] is None
                else quantity(each["image_s"], 1e3, "#.3g"),
                ratio(each["faster"]),
                NOTHING if weights is None else f"{weights / 2**20:.1f}",
                *(quantity(found, 2**-20) for found in (each["activations_bytes"], peak, growth)),
                ratio(each["smaller"]),
            ]
        )
    notes = (
        "Peak: of the allocator (cuda), of the process's resident memory (cpu). Growth: that peak "
        "without what the process held before it built the model, or opened its file. The last "
        "column compares the peaks (cuda), or the growths (cpu). Activations: the allocator's peak "
        "without weights and input."
    )
    return f"{markdown_table(lines, 'lllrl' + 7 * 'r')}\n\n{notes}"


def quantity(quartiles: Sequence[float] | None, unit: float, digits: str = ".1f") -> str:
    """Return a median with its quartiles, in some unit."""
    if quartiles is None:
        return NOTHING
    low, middle, high = (f"{unit * value:{digits}}" for value in quartiles)
    return f"{middle} ({low}–{high})"
