"""The dense network as a teacher: of what the student puts out, and of what its branches compute.

The output is learnt as in Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network"
(2015), the features as in FitNets (Romero et al., 2015). A regressor from narrow to wide features,
which they train and throw away, is there already: the linear end `expand` of each branch, which
the collapse folds into the next layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.blending.feature_matching import mismatch
from branchprune.blending.projections import Expand
from branchprune.errors import PruneError
from branchprune.graph.inputs import copied, tensors
from branchprune.training.batch_keys import Keys
from branchprune.training.logit_cache import LogitCache
from branchprune.training.mixup import Mixup


class Teacher:
    """A frozen copy of a network as it is when this is made, in evaluation mode.

    It is no module, so that no optimizer, checkpoint or `plan` sees it.

    Args:
        network: The network to copy.
        looks: How many times to look at an example, each time as it is then; after that the mean of
            what came out is what the teacher says of it, which costs nothing. None: every time.
        keys: Which entry of an output is meant, of the student's, too, where it is no tensor.

    Attributes:
        network: The copy.
        memory: What came out, if it does not look every time.
    """

    def __init__(
        self, network: nn.Module, looks: int | None = None, keys: Keys | None = None
    ) -> None:
        self.network = copied(network).eval().requires_grad_(False)
        self.memory = None if looks is None else LogitCache(looks)
        self.keys = keys or Keys()

    def __call__(
        self, x: Tensor, layers: Sequence[str] = (), numbers: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the output for an input, and what some layers read to compute it, by layer.

        Args:
            x: The input.
            layers: Names of layers.
            numbers: Which examples these are, int64 (N,), for a teacher that remembers.

        Raises:
            PruneError: It remembers, and is not told which examples these are.
        """
        network, read = self.network.to(x.device), dict[str, Tensor]()
        if self.memory is not None and not layers:
            if numbers is None:
                raise PruneError(
                    f"numbers (=None): a teacher with looks (={self.memory.looks}) must be told "
                    "which examples these are"
                )
            return self.memory.recall(x, numbers, self._output), read
        with torch.no_grad(), _reading(network, layers, read):
            return self.keys.output_of(network(x)), read

    def _output(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.keys.output_of(self.network(x))


@contextmanager
def _reading(network: nn.Module, layers: Iterable[str], read: dict[str, Tensor]) -> Iterator[None]:
    """Note what layers read at their first call, for a `with` block.

    It is a copy, since later layers may work in place.
    """

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if name not in read:
            read[name] = tensors((inputs, named))[0].clone()

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def learn_from(
    teacher: Teacher,
    student: nn.Module,
    x: Tensor,
    features: bool = False,
    mix: Mixup | None = None,
    numbers: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Let a student and its teacher see the same input.

    Args:
        teacher: A copy of the network that the student was made from.
        student: A blended model, or any network without `features`.
        x: The input.
        features: Whether to compare the features of the branches, too.
        mix: How to mix the input for the student, and what the teacher makes of it; without
            features.
        numbers: Which examples these are, int64 (N,), for a teacher that remembers.

    Returns:
        The output of the student, that of the teacher, and the mean of `‖B ũ − u‖² / ‖u‖²` over
        all ends: B ũ is what a branch with a linear end B offers to the layers that read it, u
        what the teacher's layers read there. 0 without `features`, or where every α is 1.

    Raises:
        PruneError: `features` of a student that has no branches.
    """
    with _features(student) if features else nullcontext(dict[str, Tensor]()) as narrow:
        output = teacher.keys.output_of(student(mix(x) if mix else x))
    expected, wide = teacher(x, [*narrow], numbers)
    expected = mix(expected) if mix else expected
    terms = [_term(student, name, narrow[name], wide[name]) for name in narrow]
    return output, expected, torch.stack(terms).mean() if terms else x.new_zeros(())


def _features(student: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
    if not isinstance(student, Blended):
        kind = type(student).__name__
        raise PruneError(f"features: {kind} has no branches, it is not a blended model")
    return student.branch_features()


def _term(student: nn.Module, name: str, narrow: Tensor, wide: Tensor) -> Tensor:
    end = student.get_submodule(f"expand.{name}")
    assert isinstance(end, Expand) and isinstance(student, Blended)
    alphas = [*student.alpha.values()]
    live = [piece.branch is not None and alphas[piece.branch] < 1 for piece in end.pieces]
    return mismatch(end, narrow, wide, live)
