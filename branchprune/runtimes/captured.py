"""A model as the graph that torch.export makes of it, from which files are written."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, evaluating, example_inputs, on_device, own_buffers
from branchprune.runtimes.batch import DYNAMIC, Batch, batch_of, dynamic_dimensions, of_batch

CODE = re.compile(r'raised this error:\n(?:.*\n)*? *File "(.+)", line (\d+), in .+\n *(.+)')
"""Where torch says which line of forward it cannot follow."""
CONSTANT = re.compile(r"specialized it to be a constant \((\d+)\)")
LOGGERS = (
    "torch.onnx",
    "torch.export",
    "torch._export",
    "torch._dynamo",
    "torch.fx",
    "torch.utils._pytree",
)


def captured(
    model: nn.Module, example: Example, batch: Batch | None = None, to: str = "ONNX"
) -> ExportedProgram:
    """Return what torch.export makes of a model in evaluation mode.

    Args:
        model: The model; it is not changed, and the graph has its very parameters.
        example: Its inputs.
        batch: The batch of all later inputs; None: that of the example.
        to: What becomes of the graph, for messages.

    Raises:
        PruneError: torch.export cannot follow forward, or the batch is fixed there.
    """
    ready = evaluating(model)
    own = on_device(example, model)
    given = own
    if batch is not None:  # one of 1 would be a constant
        given = of_batch(own, max(2, batch_of(own)) if batch == DYNAMIC else batch)
    args, kwargs = example_inputs(given)
    with quiet(), own_buffers(ready):
        try:
            shapes = None
            if batch == DYNAMIC:
                free, named = dynamic_dimensions(own)
                shapes = inspect.signature(ready.forward).bind(*free, **named).arguments
            return _exported(ready, args, kwargs, shapes)
        except Exception as error:  # torch.export raises whatever its parts do
            raise PruneError(
                f"{type(model).__name__} cannot be exported to {to}: {_reason(error)}"
            ) from error


def changed_buffer(program: ExportedProgram) -> str | None:
    """Return a buffer that forward changes, as one that counts calls; None: there is none."""
    signature = program.graph_signature
    for node in program.graph.find_nodes(op="placeholder"):
        name = signature.inputs_to_buffers.get(node.name)
        if name is not None and any(_writes(user, node) for user in node.users):
            return str(name)
    changed = [*signature.buffers_to_mutate.values()]
    return str(changed[0]) if changed else None


def _writes(call: torch.fx.Node, tensor: torch.fx.Node) -> bool:
    """Return whether an operation changes a tensor."""
    schema = getattr(call.target, "_schema", None)
    given = {} if schema is None else dict(zip(schema.arguments, call.args, strict=False))
    return any(x is tensor and a.alias_info and a.alias_info.is_write for a, x in given.items())


def _exported(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: dict[str, Any] | None,
) -> ExportedProgram:
    """Return the graph of a model; by torch's compiler where running it makes none."""
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        with contextlib.suppress(Exception):
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=True)
        raise error


def _reason(error: Exception) -> str:
    """Return in a line why there is no graph."""
    text = str(error)
    if constant := CONSTANT.search(text):
        size = constant[1]
        return (
            f"forward takes no other batch than {size}, or compares it with the one of the call "
            f"before, and the batch is dynamic: give batch={size} or batch=1, or take it from the "
            "input there, x.shape[0]"
        )
    if text.startswith("Constraints violated"):
        return (
            "forward does something else for some batches, and the batch is dynamic: give batch=1"
        )
    if isinstance(error, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
        code = CODE.search(text)
        at = f", {Path(code[1]).name}:{code[2]}: {code[3]}" if code else ""
        return f"the way of forward depends on numbers in tensors{at}"
    return first_line(error)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print, log and warn of to themselves, for a `with` block."""
    logs = [logging.getLogger(name) for name in LOGGERS]
    levels = [log.level for log in logs]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            for log in logs:
                log.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
