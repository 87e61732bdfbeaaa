"""Draw the mechanism for one pair of layers as `runs/figures/mechanism.svg`.

```
python scripts/draw_mechanism.py             # with --record: scripts/figures/mechanism.svg
```

One unit of the drawing is one CSS pixel, so the figure is 900 pixels wide. Heights of boxes and
thicknesses of arrows are in proportion to the number of channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon

ROOT = Path(__file__).resolve().parents[1]
TITLE = "Attach a narrow twin, train while alpha steps from 1 to 0, collapse to a smaller model"

WIDTH, HEIGHT = 900, 388
POINTS = 0.75  # points in a pixel
KEEP = 22 / 64
WIDE_BOX, WIDE_ARROW = 84.0, 16.0
TOP, BOTTOM = 246.0, 134.0  # middle of the upper and of the lower lane

PAPER, BORDER, INK, MUTED = "#fbfaf8", "#d5d2cb", "#23262b", "#646a73"
Point = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """Colours of one kind of box, of the text in it, and of the arrows from and to it."""

    fill: str
    edge: str
    text: str = INK
    flow: str = INK

    def faded(self, strength: float) -> Look:
        """Return the look, nearer to the background the lower its strength."""
        return Look(_mix(self.fill, PAPER, strength), _mix(self.edge, PAPER, strength))


def _mix(colour: str, other: str, share: float) -> str:
    pairs = zip(to_rgb(colour), to_rgb(other), strict=True)
    red, green, blue = (share * a + (1 - share) * b for a, b in pairs)
    return to_hex((red, green, blue))


WIDE = Look("#d9e3ef", "#54708f", flow="#b9c9dc")
LAYER = Look("#54708f", "#3f5874", "white")
TWIN = Look("#fbdcd5", "#cc3311", flow="#f2a594")
END = Look("#e0573d", "#cc3311", "white")
MERGED = Look("#8a5a6b", "#74495a", "white", flow="#8a5a6b")


def main(args: Sequence[str] | None = None) -> None:
    """Draw the figure and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write it to scripts/figures")
    folder = "scripts" if parser.parse_args(args).record else "runs"
    path = ROOT / folder / "figures" / "mechanism.svg"
    settings: dict[str, Any] = {
        "svg.hashsalt": "branchprune",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
    }
    with style.context(["default", settings]):
        figure = Figure(figsize=(WIDTH * POINTS / 72, HEIGHT * POINTS / 72), facecolor="none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.set_axis_off()
        _background(axes)
        _attach(axes, 24)
        _train(axes, 452)
        _collapse(axes, 640)
        path.parent.mkdir(parents=True, exist_ok=True)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(path, format="svg", metadata={"Title": TITLE, **nothing})


def _background(axes: Axes) -> None:
    """Draw a light panel, so that the figure can be read on a dark page too."""
    panel = FancyBboxPatch(
        (1, 1), WIDTH - 2, HEIGHT - 2, "round,pad=0,rounding_size=14", fc=PAPER, ec=BORDER
    )
    axes.add_patch(panel)
    for x in (436, 622):
        axes.plot([x, x], [24, HEIGHT - 24], color=BORDER, lw=0.8)


def _attach(axes: Axes, left: float) -> None:
    _heading(axes, left, "1", "attach", "a narrow twin runs beside the layer")
    first, fork, middle, join, second = (left + x for x in (18, 77, 150, 316, 346))
    _arrow(axes, [(left, TOP), (first, TOP)], 1, WIDE)
    _box(axes, first, TOP, 46, 1, "conv\nW₁", LAYER)
    _arrow(axes, [(first + 46, TOP), (middle, TOP)], 1, WIDE)
    _box(axes, middle, TOP, 90, 1, "BatchNorm\nReLU\npool", WIDE)
    _arrow(axes, [(middle + 90, TOP), (join - 12, TOP)], 1, WIDE)
    _arrow(axes, [(fork, TOP), (fork, BOTTOM), (left + 96, BOTTOM)], 1, WIDE)
    _twin(axes, middle)
    _arrow(axes, [(middle + 144, BOTTOM), (join, BOTTOM), (join, TOP - 12)], 1, TWIN)
    _arrow(axes, [(join + 12, TOP), (second, TOP)], 1, WIDE)
    _sum(axes, join)
    _box(axes, second, TOP, 46, 1, "conv\nW₂", LAYER)
    _label(axes, middle + 45, TOP + 52, "wide path", WIDE.edge, weight="bold")
    _label(axes, (first + middle + 46) / 2, TOP + 18, "C channels", WIDE.edge)
    _label(axes, (middle + 90 + join - 12) / 2, TOP + 18, "α · u", WIDE.edge)
    _label(axes, join + 14, (TOP + BOTTOM) / 2, "(1 − α) · B ũ", TWIN.edge, ha="left")
    _label(axes, left, 40, "W₂ reads α · u + (1 − α) · B ũ, with α = 1 at first:", INK, ha="left")
    _label(axes, left, 22, "the output is still that of the original model.", INK, ha="left")


def _twin(axes: Axes, middle: float) -> None:
    """Draw the twin around the left edge of its middle box."""
    _funnel(axes, middle - 54, BOTTOM, (1, KEEP), "A")
    _arrow(axes, [(middle - 26, BOTTOM), (middle, BOTTOM)], KEEP, TWIN)
    _box(axes, middle, BOTTOM, 90, KEEP, "BN, ReLU, pool", TWIN)
    _arrow(axes, [(middle + 90, BOTTOM), (middle + 116, BOTTOM)], KEEP, TWIN)
    _funnel(axes, middle + 116, BOTTOM, (KEEP, 1), "B")
    _label(axes, middle + 102, BOTTOM + 13, "ũ", TWIN.edge)
    _label(axes, middle + 45, BOTTOM - 25, "narrow twin", TWIN.edge, weight="bold")
    _label(axes, middle + 45, BOTTOM - 40, "k channels", TWIN.edge)
    for x, text in ((-40, "reduce: C → k"), (130, "expand: k → C")):
        _label(axes, middle + x, BOTTOM - 54, text, TWIN.edge)
        _label(axes, middle + x, BOTTOM - 69, "1×1, no bias", TWIN.edge)


def _train(axes: Axes, left: float) -> None:
    _heading(axes, left, "2", "train", "while α steps from 1 to 0")
    low, high, start, step = 204.0, 288.0, left + 22, 10.5
    axes.plot([start, start, start + 13 * step], [high + 8, low, low], color=MUTED, lw=0.9)
    ends = [*range(11), 13]
    xs = [start + step * end for end in ends for _ in (0, 1)][1:-1]
    ys = [high + (low - high) * i / 10 for i in range(11) for _ in (0, 1)]
    axes.plot(xs, ys, color=INK, lw=2, solid_joinstyle="round")
    _label(axes, start - 6, high, "1", ha="right")
    _label(axes, start - 6, low, "0", ha="right")
    _label(axes, start - 6, (low + high) / 2, "α", INK, ha="right", size=12)
    _label(axes, start + 6.5 * step, low - 11, "epochs")
    for centre, alpha in ((28, 1.0), (83, 0.5), (138, 0.0)):
        _thumbnail(axes, left + centre, alpha)
    _label(axes, left, 40, "The wide path fades out,", INK, ha="left")
    _label(axes, left, 22, "the twin takes over.", INK, ha="left")


def _thumbnail(axes: Axes, x: float, alpha: float) -> None:
    """Draw the two paths at one α, as strong as they count."""
    wide, twin = WIDE.faded(0.2 + 0.8 * alpha), TWIN.faded(1 - 0.75 * alpha)
    _box(axes, x - 22, 145, 44, 0.5, "", wide, dashed=alpha == 0)
    _box(axes, x - 22, 106, 44, 0.5 * KEEP, "", twin)
    _label(axes, x, 80, f"α = {alpha:g}", INK)


def _collapse(axes: Axes, left: float) -> None:
    _heading(axes, left, "3", "collapse", "two linear maps in a row are one")
    middle, second = left + 74, left + 202
    _box(axes, left, TOP, 36, 1, "W₁", LAYER)
    _funnel(axes, left + 36, TOP, (1, KEEP), "A", 22)
    _arrow(axes, [(left + 58, TOP), (middle, TOP)], KEEP, TWIN)
    _box(axes, middle, TOP, 90, KEEP, "BN, ReLU, pool", TWIN)
    _arrow(axes, [(middle + 90, TOP), (middle + 106, TOP)], KEEP, TWIN)
    _funnel(axes, second - 22, TOP, (KEEP, 1), "B", 22)
    _box(axes, second, TOP, 36, 1, "W₂", LAYER)
    for x, name, sides in ((29, "W₁′", "A · W₁"), (209, "W₂′", "W₂ · B")):
        _brace(axes, left + x, 58, TOP - WIDE_BOX / 2 - 6)
        _arrow(axes, [(left + x, 188), (left + x, 138)], 0.15, MERGED)
        _box(axes, left + x - 24, 120, 48, KEEP, name, MERGED)
        _label(axes, left + x, 92, f"= {sides}", MERGED.edge)
    _arrow(axes, [(middle + 45, TOP - 20), (middle + 45, 138)], 0.15, MERGED)
    _arrow(axes, [(left + 53, 120), (middle, 120)], KEEP, TWIN)
    _box(axes, middle, 120, 90, KEEP, "BN, ReLU, pool", TWIN)
    _arrow(axes, [(middle + 90, 120), (left + 185, 120)], KEEP, TWIN)
    _label(axes, middle + 45, 92, "k channels", TWIN.edge)
    _label(axes, left, 40, "The same model with k channels:", INK, ha="left")
    _label(axes, left, 22, "dense, nothing masked, exact.", INK, ha="left")


def _brace(axes: Axes, x: float, width: float, y: float) -> None:
    """Draw a bracket below two layers that become one."""
    xs = [x - width / 2, x - width / 2, x + width / 2, x + width / 2]
    axes.plot(xs, [y + 4, y, y, y + 4], color=MERGED.edge, lw=1)


def _sum(axes: Axes, x: float) -> None:
    axes.add_patch(Circle((x, TOP), 12, fc=PAPER, ec=INK, lw=1.1, zorder=4))
    _label(axes, x, TOP, "+", INK, size=12)


def _heading(axes: Axes, left: float, number: str, title: str, caption: str) -> None:
    axes.add_patch(Circle((left + 10, HEIGHT - 34), 10, fc=INK, ec="none"))
    _label(axes, left + 10, HEIGHT - 34, number, PAPER, weight="bold")
    _label(axes, left + 28, HEIGHT - 34, title, INK, ha="left", size=12, weight="bold")
    _label(axes, left, HEIGHT - 60, caption, ha="left")


def _label(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    colour: str = MUTED,
    *,
    ha: str = "center",
    size: float = 8.5,
    weight: str = "normal",
) -> None:
    axes.text(x, y, text, color=colour, ha=ha, va="center", size=size, weight=weight, zorder=5)


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    share: float,
    text: str,
    look: Look,
    dashed: bool = False,
) -> None:
    """Draw a box whose height is a share of all channels, with its left edge at x."""
    height = WIDE_BOX * share
    patch = FancyBboxPatch(
        (x, y - height / 2),
        width,
        height,
        "round,pad=0,rounding_size=3",
        fc=look.fill,
        ec=look.edge,
        lw=1,
        ls=(0, (3, 2)) if dashed else "solid",
        zorder=3,
    )
    axes.add_patch(patch)
    _label(axes, x + width / 2, y, text, look.text)


def _funnel(
    axes: Axes, x: float, y: float, shares: tuple[float, float], text: str, width: float = 28
) -> None:
    """Draw a linear end as a trapezium from one number of channels to another."""
    before, after = (WIDE_BOX * share / 2 for share in shares)
    corners = [(x, y - before), (x, y + before), (x + width, y + after), (x + width, y - after)]
    patch = Polygon(corners, fc=END.fill, ec=END.edge, lw=1, joinstyle="round", zorder=3)
    axes.add_patch(patch)
    _label(axes, x + width / 2, y, text, END.text, size=9.5, weight="bold")


def _arrow(axes: Axes, points: Sequence[Point], share: float, look: Look) -> None:
    """Draw an arrow along horizontal and vertical lines, as thick as its share of the channels."""
    thick = WIDE_ARROW * share
    (x0, y0), (x1, y1) = points[-2:]
    length = abs(x1 - x0) + abs(y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    head = 4 + thick * 0.3
    neck = (x1 - dx * head, y1 - dy * head)
    half = thick / 2 + 3
    sides = [(neck[0] - dy * s, neck[1] + dx * s) for s in (half, -half)]
    xs, ys = zip(*points[:-1], (neck[0] + dx, neck[1] + dy), strict=True)
    axes.plot(
        xs,
        ys,
        color=look.flow,
        lw=thick * POINTS,
        solid_capstyle="butt",
        solid_joinstyle="miter",
        zorder=1,
    )
    axes.add_patch(Polygon([*sides, (x1, y1)], fc=look.flow, ec="none", zorder=1))


if __name__ == "__main__":
    main()
