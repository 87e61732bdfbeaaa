"""From a model to its graphs: one for training, one for evaluation.

`torch.fx` bakes `self.training` into the graph it records, so the model is traced in both modes.
In-place operations are replaced by their out-of-place forms, since both the wide path and its
twin read the same tensors.
"""

from __future__ import annotations

import inspect
import operator
import threading
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example, example_inputs, own_generators, training_mode
from branchprune.graph.layers import has_own_forward
from branchprune.graph.nodes import CHECKPOINTED, WHERE
from branchprune.graph.rules.registry import TAUGHT, is_layer
from branchprune.graph.tracing.factories import recorded_factories
from branchprune.graph.tracing.functionalize import make_out_of_place, refuse_assigned_state
from branchprune.graph.tracing.guards import (
    MACHINERY,
    Conditions,
    numbers_from_shapes,
    same_branch,
    same_number,
    source_line,
)
from branchprune.graph.tracing.side_effects import (
    Attributes,
    Draws,
    is_checkpointed,
    no_autocast,
    recorded_functions,
    refuse_generator,
    refuse_kept_nodes,
    refuse_lost_gradient,
)

_COLLECTS: dict[Any, tuple[str, type]] = {
    inspect.Parameter.VAR_POSITIONAL: ("*", tuple),
    inspect.Parameter.VAR_KEYWORD: ("**", dict),
}
"""How arguments without a name of their own are written, and what they come in."""


class _Tracer(fx.Tracer):
    """A tracer that remembers in which submodule it was when tracing failed.

    Args:
        fixed: Arguments of `forward` that keep these values and are no inputs of the graph.
        absent: Arguments that the example gives as None, and that have to stay None.
        opaque: Modules that are not looked into.
        conditions: Tells which branch of an `if` the example takes.
    """

    trace_asserts = True
    proxy_buffer_attributes = True

    def __init__(
        self,
        fixed: Mapping[str, Any],
        absent: Sequence[str],
        opaque: Collection[nn.Module],
        conditions: Conditions,
    ) -> None:
        super().__init__(autowrap_functions=tuple(TAUGHT))
        self.fixed, self.absent, self.opaque, self.conditions = fixed, absent, opaque, conditions
        self.inside: list[str] = []
        self.draws, self.locates = Draws(), False
        self.thread = threading.get_ident()

    def where(self) -> str:
        """Return the path of the module whose forward is being traced."""
        return self.inside[-1] if self.inside else "the model"

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Record what forward computes, unless that would change its gradient."""
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        if not torch.is_grad_enabled():
            part, inner = self.conditions.root, self.conditions.inner
            refuse_lost_gradient(proxy.node, part, inner, self.where())
        if is_checkpointed():
            proxy.node.meta[CHECKPOINTED] = True
        return proxy

    def create_arg(self, a: Any) -> Any:
        """Record an argument, unless it is a generator, of which the branch would have none."""
        refuse_generator(a, self.where())
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A parametrised module, or a user's subclass that only sets arguments, keeps the
        # behaviour of its class in torch.nn but lives in another namespace.
        if isinstance(m, torch.jit.ScriptModule):
            return True  # it has no Python code to look into
        alone = not any(m.children()) and not isinstance(m, nn.Sequential)
        leaf = alone and not has_own_forward(m)
        parametrised = torch.nn.utils.parametrize.is_parametrized(m)
        kept = parametrised or is_layer(m) or m in self.opaque
        return leaf or kept or super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Follow the branch that the example takes, and record a guard that it is taken."""
        try:
            value = bool(self.conditions.value_of(obj.node))
        except Exception:
            return super().to_bool(obj)
        arguments = (obj, value, *source_line())
        self.create_proxy("call_function", same_branch, arguments, {})
        return value

    def number_of(self, proxy: fx.Proxy) -> int | float:
        """Return the number that a size is for the example, and record a guard that it is."""
        value = self.conditions.value_of(proxy.node)
        if not isinstance(value, int | float):
            raise TypeError(f"a number is made of {type(value).__name__} {proxy.node.name}")
        arguments = (proxy, value, *source_line())
        self.create_proxy("call_function", same_number, arguments, {})
        return value

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        root_fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for i, argument in enumerate(args):
            name = str(argument.node.target) if isinstance(argument, fx.Proxy) else ""
            if name in self.fixed:
                self.graph.erase_node(argument.node)
                args[i] = self.fixed[name]
            elif name in self.absent:
                is_none = self.create_proxy("call_function", operator.is_, (argument, None), {})
                what = f"the argument {name}, which is None in the example"
                self.create_proxy("call_function", same_branch, (is_none, True, what, ""), {})
                args[i] = None
        return root_fn, args

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.thread != threading.get_ident():
            return forward(*args, **kwargs)
        if self.locates:
            self.draws.refuse(self.where())
        self.inside.append(self.path_of_module(m))
        if not torch.is_grad_enabled() and any(True for _ in m.parameters()):
            raise PruneError(
                f"forward runs {self.inside[-1]} under no_grad, which a trace loses: use "
                "requires_grad_(False) or detach() instead"
            )
        result = super().call_module(m, forward, args, kwargs)
        if self.locates:
            self.draws.refuse(self.where())
        self.inside.pop()
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.thread != threading.get_ident():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def trace(
    model: nn.Module, example: Example, inside: str = "", opaque: Collection[nn.Module] = ()
) -> dict[bool, fx.Graph]:
    """Record the graph of a model, or of a part of it, in training and in evaluation mode.

    Args:
        model: The network; its modes are restored afterwards.
        example: An example input of the part, which says which arguments of `forward` are given.
        inside: Path of the part; "" for the whole model. The graphs name modules by their paths
            in the whole model.
        opaque: Modules that are not looked into.

    Returns:
        The graphs by `training` flag; the same object twice if the modes do not differ.

    Raises:
        PruneError: `forward` does something that cannot be traced.
    """
    graphs = {}
    for training in (False, True):
        with training_mode(model, training):
            attributes = Attributes(model.get_submodule(inside))
            graphs[training] = _trace_once(model, example, inside, opaque)
            attributes.refuse()
    if str(graphs[True]) == str(graphs[False]):
        for node, twin in zip(graphs[False].nodes, graphs[True].nodes, strict=True):
            node.meta |= {k: v for k, v in twin.meta.items() if k == CHECKPOINTED}
        graphs[True] = graphs[False]
    for graph in dict.fromkeys(graphs.values()):
        refuse_kept_nodes(graph)
        make_out_of_place(graph, model)
        graph.lint()
    return graphs


def _trace_once(
    model: nn.Module, example: Example, inside: str, opaque: Collection[nn.Module]
) -> fx.Graph:
    part = model.get_submodule(inside)
    args, kwargs = example_inputs(example)
    try:
        bound = inspect.signature(part.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise PruneError(f"example does not fit {type(part).__name__}.forward: {error}") from error
    fixed = _left_out(part, bound)
    absent = [name for name, value in bound.arguments.items() if value is None]
    prefix = f"{inside}." if inside else ""
    conditions = Conditions(part, dict(bound.arguments), inner=bool(inside))
    tracer = _Tracer(fixed, absent, opaque, conditions)
    try:
        graph = _record(tracer, part)
    except PruneError:
        raise
    except Exception as error:
        flags = [name for name, v in bound.arguments.items() if isinstance(v, bool | str | None)]
        raise PruneError(_explain(part, tracer, error, flags)) from error
    refuse_assigned_state(part)
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # code that says so is patched by every later trace
        if node.op in ("call_module", "get_attr"):
            node.target = f"{prefix}{node.target}"
        around = [path for path in node.meta.get("nn_module_stack", {}) if path]
        if around:
            node.meta[WHERE] = prefix + around[-1].partition("@")[0]  # @1: its second call
    return graph


def _left_out(part: nn.Module, bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments of forward that the example leaves out, as a trace names them."""
    fixed: dict[str, Any] = {}
    for name, parameter in bound.signature.parameters.items():
        collects = _COLLECTS.get(parameter.kind)
        if collects is not None:
            stars, kind = collects
            if bound.arguments.get(name):
                raise PruneError(
                    f"the example gives {type(part).__name__}.forward arguments by {stars}{name}, "
                    "into which a trace does not see: name them in forward, or prune a part that "
                    "has names for them with `inside`"
                )
            fixed[f"{stars}{name}"] = kind()
        elif name not in bound.arguments and parameter.default is not parameter.empty:
            fixed[name] = parameter.default
    return fixed


def _record(tracer: _Tracer, part: nn.Module) -> fx.Graph:
    with (
        own_generators(part.parameters()),
        torch.enable_grad(),
        no_autocast(tracer.where),
        recorded_factories(),
        recorded_functions(),
        numbers_from_shapes(),
    ):
        tracer.draws = Draws()
        graph = tracer.trace(part)
        if tracer.locates:
            tracer.draws.refuse(tracer.where())
        moved = tracer.draws.moved()
    if moved:  # once more, now looking at every module, which takes longer
        tracer.locates = True
        return _record(tracer, part)
    return graph


def _explain(model: nn.Module, tracer: _Tracer, error: Exception, flags: Sequence[str]) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(MACHINERY)]
    where = tracer.inside[-1] if tracer.inside else type(model).__name__
    line = f" at `{users[-1].line}` ({users[-1].filename}:{users[-1].lineno})" if users else ""
    given = f" Leave {' and '.join(flags)} out of the example if the default will do." * bool(flags)
    return (
        f"the model cannot be traced in {where}{line}: {error}. Control flow that depends on the "
        f"values of arguments or tensors has to move out of forward. Or prune a submodule that can "
        f"be traced with `inside`, or leave one out with `opaque`.{given}"
    )
