"""What the card of a compressed model says of how it was made and how well it agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from branchprune.artifacts.agreement import Agreement
from branchprune.artifacts.card import card as card_of
from branchprune.artifacts.facts import Facts
from branchprune.artifacts.header import header_of
from branchprune.artifacts.origin import Origin
from branchprune.few_images.compress import Compressed, counted


def facts_of(
    found: Compressed,
    size: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    origin: Origin | None = None,
    keep: float | Mapping[str, float] | None = None,
) -> Facts:
    """Return what is known of a compressed model.

    Args:
        found: What `compress` made.
        size: Height and width of the images.
        mean: What its images are normalised by, by channel; None: nothing.
        std: The same.
        origin: What makes the wide model.
        keep: What was asked to stay of the channels.
    """
    judged, before, after = found.agreement, found.plan.before, found.plan.after
    normalised = "in [0, 1]" if mean is None else f"`(x - {[*mean]}) / {[*(std or [1])]}`"
    matched = ", then what the dense layers read matched on mixtures of the images"
    matched *= bool(found.how.steps)
    notes = [
        f"Images: {size[0]}x{size[1]} (height x width), {normalised}.",
        f"Made by `branchprune compress` from {counted(found.images)} without labels, "
        f"{'in ' * bool(found.how.steps)}{found.how}: channels chosen by reconstruction, "
        f"linear ends by least squares{matched}. The collapse is exact to {found.error:.0e}.",
        f"On {counted(judged.images, 'held-out image')} {judged}.",
        *(f"**But** {doubt}." for doubt in found.doubts),
        "How accurate it is was not measured: that needs labels.",
    ]
    metric = {f"{judged.kind} between both models": _with_interval(judged)}
    metric = metric if math.isfinite(judged.value) else {}
    return Facts(origin, keep, metric, macs=(before.macs, after.macs), notes=tuple(notes))


def _with_interval(judged: Agreement) -> dict[str, Any]:
    ends = [judged.low, judged.high]
    known = {"interval": ends} if all(map(math.isfinite, ends)) and judged.images > 1 else {}
    return {"value": judged.value, **known, "images": judged.images}


def card(
    found: Compressed,
    source: str,
    size: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> str:
    """Return a model card in Markdown.

    Args:
        found: What `compress` made.
        source: What it was made of, as the user named it.
        size: See `facts_of`.
        mean: See `facts_of`.
        std: See `facts_of`.
    """
    header = header_of(found.model, facts_of(found, size, mean, std), "")
    return card_of(header, "small.safetensors", source)
