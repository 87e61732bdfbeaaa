"""What was pruned and how, in words, from the content of a result.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from branchprune.reports.quantities import epochs

_CRITERIA = {
    "l0": "how many weights are not 0",
    "l1": "L1 norm",
    "l2": "L2 norm",
    "linf": "the largest weight",
    "bn_scale": "the scale of their norms",
    "geometric_median": "distance from the others",
    "cosine": "how little they repeat others",
    "apoz": "how seldom they are 0",
    "entropy": "the entropy of their means",
    "hrank": "the rank of their maps",
    "taylor": "what they change in the loss",
    "fisher": "the Fisher information of their weights",
    "obd": "the curvature of the loss",
    "discrimination": "what they tell of the classes",
    "reconstruction": "how well the others follow from them",
}
"""By what channels are kept; a criterion of the user's is named by its import path."""
_PENALTIES = {
    "growing": "with a penalty that grows",
    "soft": "in which they were set to 0 and could return",
}
_ALGORITHMS = ("blend", "cut", "torch_pruning", "few_images")


@dataclass(frozen=True)
class Summary:
    """What a run did.

    The configuration in a result says it. Of older runs, whose configurations have other keys, only
    what the result itself shows is told.

    Args:
        result: The content of a `result.json`.
    """

    result: Mapping[str, Any]

    @cached_property
    def algorithm(self) -> str:
        """The key of the algorithm, such as "blend" or "cut"."""
        found = [name for name in _ALGORITHMS if name in self._sections]
        return found[0] if found else "blend" if "prune" in self.result["stages"] else "cut"

    @property
    def from_scratch(self) -> bool:
        """Whether the small model was trained from fresh weights."""
        return bool(self._sections.get("finetune", {}).get("fresh", False))

    @property
    def removed(self) -> str:
        """What a cut did to the channels that went; "" unless it is told of a cut."""
        criterion = self._sections.get("criterion", {})
        if self.algorithm != "cut" or criterion.get("name") == "random":
            return ""
        return "replaced by a linear fit of the others" if criterion.get("fit") else "left out"

    @property
    def line(self) -> str:
        """What was pruned, by which criterion and how, as "…: 34 of 84 channels kept by …"."""
        dense, small = (self.result["cost"][model]["channels"] for model in ("dense", "small"))
        kept = f"{small:,} of {dense:,} channels kept{self._chosen}"
        parts = kept, self._blocks, self._way, self._tuned
        return f"{self._subject}{', '.join(filter(None, parts))}."

    @cached_property
    def _configuration(self) -> dict[str, Any]:
        found = yaml.safe_load(self.result["configuration"])
        return found if isinstance(found, dict) else {}

    @cached_property
    def _sections(self) -> dict[str, dict[str, Any]]:
        """The sections of `prune` that are set."""
        prune = self._configuration.get("prune")
        given = prune.items() if isinstance(prune, dict) else ()
        return {name: value for name, value in given if isinstance(value, dict)}

    @property
    def _subject(self) -> str:
        sections = [self._configuration.get(key) for key in ("model", "data")]
        model, data = (s.get("class_path") if isinstance(s, dict) else None for s in sections)
        data = self.result.get("dataset") or (data or "").rpartition(".")[2]
        return f"{model} on {data}: " if model and data else ""

    @property
    def _chosen(self) -> str:
        if self.algorithm == "torch_pruning":
            return f" by Torch-Pruning ({self._sections['torch_pruning'].get('pruner')})"
        if self.algorithm not in self._sections:
            return ""
        name = self._sections.get("criterion", {}).get("name", "l1")
        return "" if name == "random" else f" by {_CRITERIA.get(name, name)}"

    @property
    def _blocks(self) -> str:
        names = self.result.get("left_out", ())
        several, faded = len(names) > 1, self._epochs("depth")
        told = f"without block{'s' * several} {' and '.join(names)}"
        told += f" ({'they' if several else 'it'} faded out in {faded})" if faded else ""
        return told if names else ""

    @property
    def _taken_back(self) -> str:
        """The stage of the round that lost too much; "" where none did."""
        *_, last = self.result["rounds"] or [{}]
        return "" if last.get("kept", True) else f"round_{last['round']:02}"

    @property
    def epochs_taken_back(self) -> int:
        """What was trained in a round that lost too much."""
        found: int = self.result["stages"].get(self._taken_back, {}).get("epochs", 0)
        return found

    @property
    def _way(self) -> str:
        trained, penalty = self._epochs("sparsify"), self._sections.get("sparsify", {})
        means = _PENALTIES.get(penalty.get("penalty", "bn_scale"), "with a penalty")
        before = f"after {trained} {means} " if trained else ""
        rounds = len(self.result["rounds"]) - bool(self._taken_back)
        if rounds:
            more = ", one more taken back" if self._taken_back else ""
            return f"{before}removed in {rounds} round{'s' * (rounds > 1)}{more}"
        if self.algorithm == "few_images":
            learnt = self._sections["few_images"]
            return f"matched on {learnt['images']:,} images for {learnt['steps']:,} steps"
        if self.algorithm != "blend":
            return f"{before}cut at once"
        blend, trained = self._sections.get("blend", {}), self._epochs("prune")
        for_ = f" for {trained}" if trained else ""
        if blend.get("levels") == [0.0]:
            return f"{before}trained{for_} with linear ends (α = 0 at once)"
        drawn = blend.get("mixing", "sum") != "sum"
        return f"{before}blended in{for_}{' by drawing a path' if drawn else ''}"

    @property
    def _tuned(self) -> str:
        trained = self._epochs(r"finetune|round_\d+")
        if not trained:
            return ""
        rewound = self._sections.get("cut", {}).get("rewind")
        tuned = "fine-tuned from early weights" if rewound else "fine-tuned"
        return f"{'trained from scratch' if self.from_scratch else tuned} for {trained}"

    def _epochs(self, stages: str) -> str:
        """Return how long the stages of a pattern trained; "" where none did, or none says."""
        records = {**self.result["stages"], self._taken_back: {}}.items()
        trained = sum(r.get("epochs", 0) for name, r in records if re.fullmatch(stages, name))
        return epochs(trained) if trained else ""
