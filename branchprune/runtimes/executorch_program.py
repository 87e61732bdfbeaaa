"""A model as an ExecuTorch program, in memory, in which XNNPACK does what it can."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import SymInt, Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils._pytree import tree_leaves

from branchprune.errors import PruneError, first_line
from branchprune.runtimes.captured import quiet
from branchprune.runtimes.runtime import needed

EXTRA = "executorch"
HEADER = "branchprune"
"""The method of a program that returns its header, as JSON."""
LARGEST_BATCH = 64
"""Of a program of any batch: ExecuTorch plans its memory for the largest."""
OPERATORS = re.compile(r"Missing out variants: \{(.+?)\}")


def executorch_of(
    program: ExportedProgram, kind: str, header: Mapping[str, str] | None = None
) -> bytes:
    """Return a graph of torch.export as an ExecuTorch program.

    Args:
        program: The graph; where its batch is free, the result takes up to `LARGEST_BATCH`.
        kind: What it is of, for messages.
        header: What the result says of itself, by its method "branchprune".

    Raises:
        PruneError: ExecuTorch cannot hold it, or the package is missing.
    """
    with quiet():
        exir = needed("executorch.exir", "ExecuTorch", EXTRA)
        xnnpack = needed(
            "executorch.backends.xnnpack.partition.xnnpack_partitioner", "ExecuTorch", EXTRA
        )
        _contiguous(program)
        try:
            edge = exir.to_edge_transform_and_lower(
                program,
                partitioner=[xnnpack.XnnpackPartitioner()],
                constant_methods={HEADER: json.dumps(dict(header))} if header else None,
                # A check that fixes the batch where channels are split, and refuses operators that
                # the runtime has.
                compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
            )
            _check(program, edge.exported_program())
            plan = exir.ExecutorchBackendConfig(sym_shape_eval_pass=_OfLargestBatch())
            found: bytes = edge.to_executorch(plan).buffer
        except Exception as error:  # its passes raise whatever they do
            raise PruneError(
                f"{kind} cannot be exported to ExecuTorch: {_reason(error)}"
            ) from error
    return found


def _contiguous(program: ExportedProgram) -> None:
    """Lay out all tensors as XNNPACK expects them; parameters of the model stay as they are."""
    for node in program.graph.find_nodes(op="placeholder"):
        if isinstance(value := node.meta.get("val"), Tensor):
            node.meta["val"] = value.contiguous()
    for name, tensor in program.state_dict.items():
        if not tensor.is_contiguous():
            laid = tensor.detach().contiguous()
            is_parameter = isinstance(tensor, nn.Parameter)
            program.state_dict[name] = nn.Parameter(laid) if is_parameter else laid


def _check(program: ExportedProgram, lowered: ExportedProgram) -> None:
    """Raise PruneError for what a lowered program computes otherwise."""
    if changed := lowered.graph_signature.user_inputs_to_mutate:
        names = ", ".join(changed.values())
        raise PruneError(f"forward changes its input {names}, and a file leaves that as it is")
    fixed = [size for size in lowered.range_constraints if not size.free_symbols]
    if program.range_constraints and fixed:
        raise PruneError(
            f"it takes no other batch than {fixed[0]} there, and the batch is dynamic: give batch=1"
        )


class _OfLargestBatch(PassBase):
    """Sets the sizes that memory is planned for.

    ExecuTorch's own pass takes them from the range of the batch, which torch narrows on the way, to
    batches for which it would choose the same kernels as for the example.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        for module in graph_module.modules():
            for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
                for spec in tree_leaves(node.meta.get("spec")):
                    if hasattr(spec, "stride"):
                        spec.shape = [*map(_largest, spec.shape)]
                        spec.stride = [*map(_largest, spec.stride)]
        return PassResult(graph_module, True)


def _largest(size: int | SymInt) -> int:
    if isinstance(size, int):
        return size
    expression: Any = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, LARGEST_BATCH)))


def _reason(error: Exception) -> str:
    """Return in a line why there is no program."""
    if operators := OPERATORS.search(str(error)):
        return f"it has nothing for the operator {operators[1]}"
    return first_line(error)
