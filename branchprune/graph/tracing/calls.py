"""Which calls are recorded as a whole: layers, autograd functions, and what users have taught."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from inspect import getattr_static
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from branchprune.errors import PruneError
from branchprune.graph.fast_path import without_fast_path, without_looking_at_masks
from branchprune.graph.held import leaves, tensors_in
from branchprune.graph.layers import CONVOLUTIONS, TRANSPOSED, has_own_forward
from branchprune.graph.macs_counter import MacsCounter
from branchprune.graph.rules.registry import is_layer
from branchprune.graph.rules.teach import TAUGHT
from branchprune.graph.tracing.arguments import unseen
from branchprune.graph.tracing.autocast import autocast_followed
from branchprune.graph.tracing.recorder import Recorder
from branchprune.graph.tracing.run_whole import LIBRARY, run_whole
from branchprune.graph.tracing.side_effects import Draws
from branchprune.graph.tracing.translate import Call
from branchprune.graph.tracing.without_numbers import BATCH_NORMS

Function = torch.autograd.Function
_COUNTED_BY_WIDTHS = (
    *CONVOLUTIONS,
    *TRANSPOSED,
    nn.Linear,
    *BATCH_NORMS,
    nn.LayerNorm,
    nn.GroupNorm,
)


_LOOKED_INTO = (
    nn.Sequential,
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
"""Modules of torch that are made of others."""


class Calls:
    """Records calls of modules and functions while forward runs.

    Args:
        recorder: Where.
        opaque: Modules that are not looked into.
        counted: Whether the multiply-adds of a module that is not looked into are counted.
    """

    def __init__(
        self,
        recorder: Recorder,
        opaque: Collection[nn.Module],
        counted: Callable[[nn.Module], bool],
    ) -> None:
        self.recorder, self.opaque, self.counted = recorder, opaque, counted
        named = [*recorder.part.named_modules(prefix=recorder.inside, remove_duplicate=False)]
        self.paths = {module: path for path, module in reversed(named)}
        self.wholes: set[nn.Module] = set()
        self.locates: Draws | None = None
        self.failed: str | None = None
        self._deep = False

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record calls, for a `with` block."""
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(nn.Module, "__call__", self._of_modules()))
            stack.enter_context(without_fast_path())
            stack.enter_context(without_looking_at_masks())
            apply = classmethod(self._of_functions(getattr_static(Function, "apply")))
            stack.enter_context(mock.patch.object(Function, "apply", apply))
            stack.enter_context(autocast_followed(self.recorder, self._is_ignored))
            for names in self._namespaces() if TAUGHT else ():
                taught = {k: v for k, v in names.items() if callable(v) and _is_taught(v)}
                wholes = {name: self._of_taught(function) for name, function in taught.items()}
                stack.enter_context(_renamed(names, wholes))
            yield

    def _namespaces(self) -> list[dict[str, Any]]:
        """Return the names that forward may use: globals of its modules, and attributes."""
        found: dict[int, dict[str, Any]] = {}
        for module in self.paths:
            for names in (_globals_of(module), vars(module)):
                found[id(names)] = names
        return [*found.values()]

    def sees(self) -> bool:
        """Return whether what runs now is looked into."""
        return not self._deep

    def _is_elsewhere(self) -> bool:
        return threading.get_ident() != self.recorder.thread

    def _is_ignored(self) -> bool:
        return self._is_elsewhere() or self._deep

    # Modules

    def _of_modules(self) -> Callable[..., Any]:
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = None if self._is_ignored() else self.paths.get(module)
            if path is None:
                return original(module, *args, **kwargs)
            return self._call(module, path, original, args, kwargs)

        return call

    def _call(
        self,
        module: nn.Module,
        path: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not torch.is_grad_enabled() and any(True for _ in module.parameters()):
            raise PruneError(
                f"forward runs {path} under no_grad, which a trace loses: use "
                "requires_grad_(False) or detach() instead"
            )
        if module is not self.recorder.part and self.is_whole(module):
            return self._whole(module, path, original, args, kwargs)
        self._locate()
        self.recorder.where.append(path)
        try:
            result = original(module, *args, **kwargs)
            self._locate()
        except Exception:
            self.failed = self.failed or path
            raise
        finally:
            self.recorder.where.pop()
        return result

    def _locate(self) -> None:
        """Refuse random draws of the module whose forward runs, if it is to be found."""
        if self.locates is not None:
            with torch._C.DisableTorchFunction():
                self.locates.refuse(self.recorder.location())

    def is_whole(self, module: nn.Module) -> bool:
        """Return whether a module is not looked into.

        A parametrised module, or a user's subclass that only sets arguments, keeps the behaviour
        of its class in torch.nn but lives in another namespace.
        """
        if isinstance(module, torch.jit.ScriptModule):
            return True  # it has no Python code to look into
        alone = not any(module.children()) and not isinstance(module, nn.Sequential)
        leaf = alone and not has_own_forward(module)
        parametrised = torch.nn.utils.parametrize.is_parametrized(module)
        library = module.__module__.startswith(LIBRARY) and not isinstance(module, _LOOKED_INTO)
        attention = isinstance(module, nn.MultiheadAttention) and not has_own_forward(module)
        known = library or attention or is_layer(module)
        return leaf or parametrised or known or module in self.opaque

    @unseen
    def _whole(
        self,
        module: nn.Module,
        path: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        recorder = self.recorder
        self.wholes.update(module.modules())
        nodes = recorder.nodes_of(args), recorder.node_of(kwargs)
        before = {id(t): t._version for t in args if isinstance(t, Tensor)}
        counter = MacsCounter() if self._is_counted(module) else None
        plain = recorder.plain(args), recorder.plain(kwargs)
        with self._inside(path), counter or nullcontext():
            result = run_whole(module, original, *plain)
        changed = next((t for t in args if isinstance(t, Tensor) and t is result), None)
        if changed is not None and changed._version == before[id(changed)]:
            changed = None
        call = Call("call_module", path, args, kwargs, changed)
        return recorder.note(call, nodes, result, counter)

    def _is_counted(self, module: nn.Module) -> bool:
        """Return whether a module's multiply-adds have to be counted, which takes time."""
        known = type(module) in _COUNTED_BY_WIDTHS and module not in self.opaque
        return not known and self.counted(module)

    @contextmanager
    def _inside(self, path: str) -> Iterator[None]:
        """Record nothing of what is called in a `with` block."""
        before, self._deep = self._deep, True
        try:
            yield
        except Exception:
            self.failed = self.failed or path
            raise
        finally:
            self._deep = before

    # Functions

    def _of_functions(self, original: Any) -> Callable[..., Any]:
        """Return `autograd.Function.apply`, recorded as a whole with its own backward.

        Without it, a trace sees the operations in its forward, whose gradients are others.
        """

        def apply(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
            bound = original.__get__(None, kind)
            given = [*leaves((args, kwargs))]
            if self._is_elsewhere() or not any(isinstance(leaf, Tensor) for leaf in given):
                return bound(*args, **kwargs)
            if kind is CheckpointFunction:
                return args[0](*args[2:])
            if any(callable(leaf) and not isinstance(leaf, Tensor) for leaf in given):
                raise PruneError(
                    f"forward gives the autograd function {kind.__name__} a function or a module, "
                    "into which a trace does not see: leave the module around it out with `opaque`"
                )
            return self._function(_Whole(kind), bound, args, kwargs)

        return apply

    def _of_taught(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_elsewhere() or not any(True for _ in tensors_in((args, kwargs))):
                return function(*args, **kwargs)
            return self._function(function, function, args, kwargs)

        return call

    @unseen
    def _function(
        self,
        target: Callable[..., Any],
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        recorder = self.recorder
        nodes = recorder.nodes_of(args), recorder.node_of(kwargs)
        with self._inside(recorder.location()):
            result = run(*recorder.plain(args), **recorder.plain(kwargs))
        return recorder.note(Call("call_function", target, args, kwargs), nodes, result)


class _Whole:
    """An `autograd.Function` as a function that a graph can hold and that can be pickled."""

    def __init__(self, kind: type[Function]) -> None:
        self.autograd_function, self.__name__ = kind, kind.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.autograd_function.apply(*args, **kwargs)


@contextmanager
def _renamed(names: dict[str, Any], others: dict[str, Any]) -> Iterator[None]:
    """Let names stand for something else, for a `with` block."""
    before = {name: names[name] for name in others}
    names.update(others)
    try:
        yield
    finally:
        names.update(before)


def _is_taught(function: Any) -> bool:
    return not isinstance(function, type) and any(function is each for each in TAUGHT)


def _globals_of(module: nn.Module) -> dict[str, Any]:
    forward = getattr_static(type(module), "forward", None)
    found: dict[str, Any] = getattr(forward, "__globals__", {})
    return found
