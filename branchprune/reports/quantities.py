"""Numbers as a report shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Format = Literal["percent", "number"]

_SPACE = "\u00a0"
"""Between a number and its unit, where no line may break."""
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
_TIMES = ((60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def score(value: float, form: Format) -> str:
    """Return a metric, of which "percent" says that it is a fraction."""
    text = f"{100 * value:.2f}{_SPACE}%" if form == "percent" else f"{value:.4g}"
    return text.replace("-", "−")


def difference(before: float, after: float, form: Format) -> str:
    """Return how far a metric has moved, as the difference of the numbers that are shown."""
    if form == "percent":
        text = f"{round(100 * after, 2) - round(100 * before, 2):+.2f}{_SPACE}points"
    else:
        text = f"{float(f'{after:.4g}') - float(f'{before:.4g}'):+.4g}"
    return text.replace("-", "−")


def share(value: float, sign: str = "") -> str:
    """Return a fraction in percent; "+" as `sign` writes that of positive ones, too."""
    return f"{100 * value:{sign}.1f}{_SPACE}%".replace("-", "−")


def change(old: float, new: float) -> str:
    """Return by how many percent a number has changed."""
    return share(new / old - 1, "+") if old else "–"


def power(value: float) -> str:
    """Return a small number as 1.2 × 10⁻¹⁵."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    if not exponent or not value:
        return mantissa
    return f"{mantissa}{_SPACE}×{_SPACE}10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def count(value: float) -> str:
    """Return a number of things, as 1.23 M."""
    return _scaled(value, _COUNTS)


def size(value: float) -> str:
    """Return a number of bytes, as 1.23 MB."""
    return _scaled(value, _SIZES)


def duration(seconds: float) -> str:
    """Return seconds, as 12.3 ms."""
    return _scaled(seconds, _TIMES)


def epochs(number: float) -> str:
    """Return a number of epochs, as 8 epochs."""
    return f"{number:,.4g}{_SPACE}epoch{'s' * (number != 1)}"


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    factor, unit = next((unit for unit in units if value >= unit[0]), units[-1])
    value /= factor
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}{_SPACE * bool(unit)}{unit}"
