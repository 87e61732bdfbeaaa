"""Draw the figures of the paper's experiments from result files.

    python scripts/paper_figures.py --preset cpu

What a figure needs and does not find is named, and the figure skipped. Validation scores stand at
the end of their epoch; thin lines are further seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from figure_curves import autoencoder, blended, final, three_stage, variants
from figure_models import cost, reconstructions
from figure_parts import STYLE, Data, Missing, read
from matplotlib import style
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
FIGURES: dict[str, Callable[[Data], Figure]] = {
    "fig4a_three_stage": three_stage,
    "fig4b_blended": blended,
    "fig5_cost": cost,
    "fig6_autoencoder": autoencoder,
    "fig7_reconstructions": reconstructions,
    "fig8_variants": variants,
    "fig8_final": final,
}


def draw(data: Data, output: Path) -> list[Path]:
    """Write every figure that there are data for; say why another is missing."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in FIGURES.items():
        path = output / (f"{name}.png" if figure is cost else f"{name}_{data.preset}.png")
        try:
            with style.context(["default", STYLE]):
                figure(data).savefig(path, metadata={"Software": None})
        except Missing as missing:
            print(f"{path.name} skipped: {missing}")
            continue
        print(path)
        written.append(path)
    return written


def main(args: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--results", type=Path, default=ROOT / "scripts/results")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/reproduce")
    parser.add_argument("--frames", type=Path, default=ROOT / "data/carla")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--output", type=Path, default=ROOT / "runs/figures")
    output.add_argument("--record", action="store_true", help="write to scripts/figures")
    options = parser.parse_args(args)
    folder = ROOT / "scripts/figures" if options.record else options.output
    draw(read(options.results, options.preset, options.runs, options.frames), folder)


if __name__ == "__main__":
    main()
