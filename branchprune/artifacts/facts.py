"""What a file says of its model beside weights and widths: what made it, and how good it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from branchprune.artifacts.origin import Origin, origin_in
from branchprune.errors import PruneError

Keep = float | Mapping[str, float]
Metric = Mapping[str, float | Mapping[str, Any]]
NAME = "_facts"
"""Attribute of a loaded model that holds them, with the digest of the weights they are of."""
AS_JSON = ("keep", "metric", "macs", "notes")


@dataclass(frozen=True)
class Facts:
    """What is known of a model.

    Attributes:
        origin: What makes the wide model.
        keep: What was asked to stay of its channels; see `plan`.
        metric: How good it is: numbers by name, or dictionaries with "value", and perhaps
            "interval" (two numbers) and others.
        license: Of the weights, as SPDX names it: "mit".
        macs: Multiply-adds of the dense and of the small model.
        notes: Sentences on how it was made and what speaks against it, in Markdown.
    """

    origin: Origin | None = None
    keep: Keep | None = None
    metric: Metric = field(default_factory=dict)
    license: str | None = None
    macs: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise PruneError for what no header can hold; the argument is named."""
        shares = {**self.keep} if isinstance(self.keep, Mapping) else {"": self.keep}
        for name, share in shares.items() if self.keep is not None else ():
            if not (isinstance(name, str) and _is_share(share)):
                raise PruneError(f"keep (={self.keep!r}) must be in (0, 1], or such a one a layer")
        if self.license is not None and not _is_line(self.license):
            raise PruneError(f"license (={self.license!r}) must be a name in a line, such as 'mit'")
        if not isinstance(self.metric, Mapping):
            raise PruneError(f"metric (={self.metric!r}) must be numbers by name, {{'top1': 0.76}}")
        for name, value in self.metric.items():
            if not (_is_line(name) and _is_score(value)):
                raise PruneError(
                    f"metric (={name!r}: {value!r}) must be a finite number, or a dictionary with "
                    "such a 'value', and perhaps an 'interval' of two numbers"
                )

    def as_fields(self) -> dict[str, str]:
        """Return the fields of a header."""
        found = self.origin.as_fields() if self.origin else {}
        for key in AS_JSON:
            if (value := getattr(self, key)) not in (None, {}, ()):
                found[key] = json.dumps(value)
        return found | ({"license": self.license} if self.license is not None else {})

    def over(self, others: Facts) -> Facts:
        """Return these, with those of others where nothing is said here."""
        empty = Facts()
        silent = [f.name for f in fields(self) if getattr(self, f.name) == getattr(empty, f.name)]
        return replace(self, **{name: getattr(others, name) for name in silent})


def facts_in(header: Mapping[str, str], path: object) -> Facts:
    """Return what a header says.

    Args:
        header: Of a file that `save` or `export` has written.
        path: The file, for the message of an error.

    Raises:
        PruneError: A field is damaged.
    """
    origin = origin_in(header, path)
    try:
        read = {key: json.loads(header[key]) for key in AS_JSON if key in header}
        for key, make in (("macs", _two_counts), ("notes", _texts)):
            if key in read:
                read[key] = make(read[key])
        found = Facts(origin, license=header.get("license"), **read)
        found.check()
    except (ValueError, TypeError, RecursionError) as error:
        raise PruneError(f"{path} is damaged: its header cannot be read: {error}") from error
    return found


def remember(model: nn.Module, facts: Facts, digest: str) -> None:
    """Note in a model what its file says of it.

    Args:
        model: The model; it is changed.
        facts: What the file says.
        digest: That of the weights.
    """
    vars(model)[NAME] = (facts, digest)


def remembered(model: nn.Module, digest: str) -> Facts:
    """Return what is known of a model: of changed weights, what made the wide model alone.

    Args:
        model: The model.
        digest: That of its weights as they are.
    """
    facts, before = vars(model).get(NAME, (Facts(), digest))
    return facts if before == digest else Facts(facts.origin)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_score(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return _is_number(value)
    ends = value.get("interval", (0, 0))
    numbers = [value.get("value"), *(ends if isinstance(ends, list | tuple) else [None])]
    plain = all(_is_line(k) and (k == "interval" or _is_plain(v)) for k, v in value.items())
    return plain and len(numbers) == 3 and all(map(_is_number, numbers))


def _is_plain(value: Any) -> bool:
    return _is_number(value) or _is_line(value)


def _two_counts(value: Any) -> tuple[int, int]:
    dense, small = map(int, value)
    return dense, small


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("its notes are no texts")
    return tuple(value)
