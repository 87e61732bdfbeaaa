"""The card of a compressed model: what it is, what of, how it was made, how good it is."""

from __future__ import annotations

from collections.abc import Sequence

from branchprune.few_images.compress import Compressed, counted


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
        size: Height and width of the images.
        mean: What its images are normalised by, by channel; None: nothing.
        std: The same.
    """
    before, after, judged = found.plan.before, found.plan.after, found.agreement
    rows = [
        f"| {what} | {getattr(before, key):,} | {getattr(after, key):,} | "
        f"{getattr(after, key) / getattr(before, key):.1%} |"
        for what, key in (("parameters", "params"), ("multiply-adds for one image", "macs"))
    ]
    normalised = "in [0, 1]" if mean is None else f"`(x - {[*mean]}) / {[*(std or [1])]}`"
    matched = ", then what the dense layers read matched on mixtures of the images"
    matched *= bool(found.how.steps)
    return "\n".join(
        [
            f"# {type(found.model).__name__}, made small from {source}",
            "",
            "| | dense | small | left |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"Images: {size[0]}x{size[1]} (height x width), {normalised}.",
            "",
            f"Made by `branchprune compress` from {counted(found.images)} without labels, "
            f"{'in ' * bool(found.how.steps)}{found.how}: channels chosen by reconstruction, "
            f"linear ends by least squares{matched}. The collapse is exact to {found.error:.0e}.",
            "",
            f"On {counted(judged.images, 'held-out image')} {judged}.",
            "",
            *(line for doubt in found.doubts for line in (f"**But** {doubt}.", "")),
            "How accurate it is was not measured: that needs labels. It was made to do what the "
            "dense model does on images like these, its mistakes included.",
            "",
            "Read it with `branchprune.load(model, file).eval()`, where `model` is of the dense "
            "class.",
            "",
        ]
    )
