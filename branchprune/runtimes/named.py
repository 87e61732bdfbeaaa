"""Runtimes by the names that commands and configurations give them."""

from __future__ import annotations

from collections.abc import Callable

from branchprune.errors import PruneError
from branchprune.runtimes.executorch import ExecuTorch
from branchprune.runtimes.onnx_runtime import OnnxRuntime
from branchprune.runtimes.openvino import OpenVino
from branchprune.runtimes.pytorch import PyTorch
from branchprune.runtimes.runtime import Runtime
from branchprune.runtimes.torch_compile import TorchCompile

RUNTIMES: dict[str, Callable[[int | None], Runtime]] = {
    "pytorch": PyTorch,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "torch-compile": TorchCompile,
    "executorch": ExecuTorch,
}


def runtime_of(name: str | None, threads: int | None) -> Runtime | None:
    """Return a runtime by its name; None: none was asked for.

    Raises:
        PruneError: There is none of that name, its package is missing, or there are threads without
            one.
    """
    if name is None:
        if threads is not None:
            raise PruneError(f"threads (={threads}) are those of a runtime: name one as runtime")
        return None
    if name not in RUNTIMES:
        raise PruneError(f"runtime (={name!r}) must be one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name](threads)
