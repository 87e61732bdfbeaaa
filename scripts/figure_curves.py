"""The paper's figures 4, 6 and 8 to 10: scores over epochs, rounds and methods."""

from __future__ import annotations

from collections.abc import Sequence

from figure_parts import (
    BLUE,
    GREEN,
    INK,
    PINK,
    RED,
    Data,
    Missing,
    draw_dense,
    finish,
    look,
    paper_scores,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from paper_tables import AUTOENCODER, METHODS, NAMES, VGG, Line

GREY = "#777777"
TITLE = "the paper's figures 8 to 10: "
VARIANTS = NAMES | {"blended": "blended: both paths\ntrained from the start"}
"""Methods as the figures of the variants name them: how these differ from the first."""


def three_stage(data: Data) -> Figure:
    """Draw figure 4a: three-stage pruning, round by round."""
    figure, runs = Figure((7.6, 3.6)), data.find(VGG, "three-stage")
    axes = figure.subplots()
    for i, run in enumerate(runs):
        rounds = run["rounds"]
        kept = sum(each.get("kept", each is not rounds[-1]) for each in rounds)
        dense = rounds[kept - 1]["params"] / (1 - run["params_removed"])
        left = [1.0, *(each["params"] / dense for each in rounds)]
        scores = [run["val"]["dense"], *(each["val"] for each in rounds)]
        end = kept + 1
        label = "three-stage pruning, each round fine-tuned" if i == 0 else None
        axes.plot(left[:end], scores[:end], color=GREEN, marker="o", ms=3, label=label, **look(i))
        if end < len(left):
            label = "the round that lost too much, not kept" if i == 0 else None
            axes.plot(left[-1:], scores[-1:], color=GREEN, marker="x", ls="", ms=5, label=label)
    for method, colour, marker in (("blended", BLUE, "s"), ("ours", PINK, "D")):
        others = data.methods[VGG].get(method, [])
        points = [(1 - run["params_removed"], run["val"]["small"]) for run in others]
        if points:
            label = NAMES.get(method, method)
            axes.plot(*zip(*points, strict=True), marker, color=colour, ms=4, label=label)
    draw_dense(axes, runs)
    _mark_paper(axes)
    axes.set(xlabel="parameters left", ylabel="validation accuracy", xscale="log")
    axes.xaxis.set_major_locator(
        FixedLocator([0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    axes.invert_xaxis()
    finish(figure, [axes], runs)
    return figure


def _mark_paper(axes: Axes) -> None:
    """Mark what the paper's three-stage pruning and its own method come to."""
    dense, pruned, left = paper_scores("three-stage")
    _, final, less = paper_scores("blended")
    label = "the paper, full size, test"
    scores = [dense, pruned, final]
    axes.scatter([1, left, less], scores, 30, color=GREY, marker="*", label=label)
    for x, y, text in (
        (1, dense, f"dense {100 * dense:.1f} %"),
        (left, pruned, f"three-stage ≈ {100 * pruned:.0f} %"),
        (less, final, f"blended {100 * final:.1f} %"),
    ):
        axes.annotate(
            text,
            (x, y),
            (0, -9),
            textcoords="offset points",
            color=GREY,
            fontsize=7,
            ha={1: "left", left: "center", less: "right"}[x],
            va="center",
        )


def _draw_paper(axes: Axes) -> None:
    """Draw lines at the dense and the final accuracy of the paper's method."""
    dense, final, _ = paper_scores("blended")
    for y, text in ((dense, "dense"), (final, "final")):
        axes.axhline(y, color=GREY, lw=0.8, ls=":")
        axes.annotate(
            f"the paper, full size, test: {text} {100 * y:.1f} %",
            (0.99, y),
            (0, 5 if text == "dense" else -5),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            color=GREY,
            fontsize=7,
            ha="right",
            va="center",
        )


def _course(axes: Axes, runs: Sequence[Line], right: bool = True) -> None:
    """Draw the blended model and the branch alone over the epochs, and α on a second axis."""
    second = axes.twinx()
    second.set(ylim=(-0.03, 1.03), yticks=[0, 0.5, 1] if right else [])
    second.set_ylabel("α" if right else "", rotation=0, labelpad=8)
    second.spines.right.set_visible(True)
    second.grid(visible=False)
    for i, run in reversed([*enumerate(runs)]):
        curve, thin = run["curve"], look(i)
        for key, colour, label in (
            ("val", BLUE, "blended model"),
            ("branch", RED, "branch alone"),
        ):
            points = [(point["epoch"] + 1, point[key]) for point in curve if key in point]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=colour, label=None if i else label, **thin
                )
        ends, alphas = [p["epoch"] + 1 for p in curve], [p["alpha"] for p in curve]
        thickness = {"lw": 0.5, "alpha": 0.5} if i else {"lw": 1, "label": "α (mean), right axis"}
        xs, ys = [ends[0] - 1, *ends], [alphas[0], *alphas]
        second.step(xs, ys, where="pre", color="#666666", **thickness)
    zero = [point["epoch"] for point in runs[0]["curve"] if point["alpha"] == 0]
    if zero:
        axes.axvspan(zero[0], zero[-1] + 1, color="#eeeeee", lw=0, zorder=0, label="α = 0")
    draw_dense(axes, runs)


def blended(data: Data) -> Figure:
    """Draw figure 4b: the blended model and the branch alone over the epochs."""
    figure, runs = Figure((7.8, 3.8)), data.find(VGG, "blended")
    axes = figure.subplots()
    _course(axes, runs)
    _draw_paper(axes)
    axes.set(xlabel=_epochs(runs), ylabel="validation accuracy")
    finish(figure, [axes], runs, ncols=5)
    return figure


def _epochs(runs: Sequence[Line]) -> str:
    bold = f" (bold: seed {runs[0]['seed']}, thin: the others)" if len(runs) > 1 else ""
    return f"epochs of blending{bold}"


def _panels(
    data: Data, experiment: str, methods: Sequence[str], columns: int, title: str = ""
) -> Figure:
    """Draw the courses of several methods side by side."""
    rows, runs = -(-len(methods) // columns), data.find(experiment, methods[0])
    figure = Figure((9.6, 2.2 * rows + 0.8) if rows > 1 else (8.4, 3.6))
    panels = [*figure.subplots(rows, columns, sharey=True, squeeze=False).flat]
    for i, (axes, method) in enumerate(zip(panels, methods, strict=False)):
        _course(axes, data.find(experiment, method), right=(i + 1) % columns == 0)
        axes.set_title(VARIANTS.get(method, method), fontsize=9)
    for axes in panels[len(methods) :]:
        axes.remove()
    figure.supxlabel(_epochs(runs), fontsize=9)
    figure.supylabel(f"validation {runs[0]['metric']}", fontsize=9)
    finish(figure, panels[: len(methods)], runs, ncols=5, title=title)
    return figure


def _variants(data: Data) -> list[str]:
    data.find(VGG, "blended")
    runs = data.methods[VGG]
    found = [m for m in METHODS if m in runs and all(run["curve"] for run in runs[m])]
    if len(found) < 2:
        raise Missing(f"no results of a variant of {VGG}, preset {data.preset!r}")
    return found


def variants(data: Data) -> Figure:
    """Draw figures 8 to 10: the courses of the variants."""
    title = f"{TITLE}the method as it is, and its variants"
    return _panels(data, VGG, _variants(data), 4, title)


def final(data: Data) -> Figure:
    """Draw the final accuracy of every variant, a dot a seed, against the paper's method."""
    methods = _variants(data)[::-1]
    figure = Figure((7.2, 0.3 * len(methods) + 1.2))
    axes, base = figure.subplots(), data.find(VGG, "blended")
    scores = [run["final"] for run in base]
    mean, name = sum(scores) / len(scores), "blended"
    axes.axvline(mean, color=BLUE, lw=1, label=f"{name}, mean")
    if len(scores) > 1:
        span = (min(scores), max(scores))
        axes.axvspan(*span, color=BLUE, alpha=0.15, lw=0, label=f"{name}, range")
    dense = [run["dense"] for run in base]
    axes.axvline(sum(dense) / len(dense), color=INK, lw=1, ls=(0, (6, 3)), label="dense model")
    for y, method in enumerate(methods):
        found = [run["final"] for run in data.find(VGG, method)]
        label = "a seed" if y == 0 else None
        axes.plot(found, [y] * len(found), "o", color=RED, ms=5, alpha=0.8, label=label)
        text = f"{100 * sum(found) / len(found):.1f}"
        axes.text(1.01, y, text, va="center", transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(methods)), [VARIANTS.get(method, method) for method in methods])
    axes.set_xlabel("test accuracy of the small model (right: mean)")
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.grid(axis="y", visible=False)
    finish(figure, [], base, title=f"{TITLE}what the method and its variants come to")
    return figure


def autoencoder(data: Data) -> Figure:
    """Draw figure 6: the parts of the autoencoder one after the other, and at once."""
    return _panels(data, AUTOENCODER, ["one after the other", "at once"], 2)
