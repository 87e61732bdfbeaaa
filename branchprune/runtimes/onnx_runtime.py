"""ONNX Runtime, on the processor."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from branchprune.graph.inputs import Example
from branchprune.runtimes.onnx_model import onnx_model
from branchprune.runtimes.runtime import Opened, Step, arrays_of, needed, running, threads_of

ERRORS_ONLY = 3
"""ONNX Runtime's level of what it logs."""


class OnnxRuntime:
    """Runs a model in ONNX Runtime, in float32 or what the model computes in.

    Args:
        threads: Of the processor, within an operator; None: one for each core.

    Attributes:
        name: "ONNX Runtime".
        threads: See above.

    Raises:
        PruneError: `threads` is no number of threads, or a package is missing.
    """

    name = "ONNX Runtime"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads_of(threads)
        self.package = needed("onnxruntime", "OnnxRuntime", "onnx")
        needed("onnx", "OnnxRuntime", "onnx")

    def version(self) -> str:
        """Return the version of ONNX Runtime."""
        return str(self.package.__version__)

    def prepared(self, model: nn.Module, example: Example) -> Step:
        """Return what runs a model on an example; see `Runtime`."""
        return self.opened(onnx_model(model, example), type(model).__name__)(example)

    def opened(self, file: bytes | Path, what: str) -> Opened:
        """Read an ONNX file.

        Args:
            file: Its path, or what is in it.
            what: What it is called in messages.

        Raises:
            PruneError: The runtime cannot read it, or later, cannot run it.
        """
        options = self.package.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        content = file if isinstance(file, bytes) else str(file)
        with running(what, self.name):
            session = self.package.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )

        def on(example: Example) -> Step:
            with running(what, self.name):
                names = [each.name for each in session.get_inputs()]
                feeds = dict(zip(names, arrays_of(example), strict=True))
                session.run(None, feeds)
            return partial(session.run, None, feeds)

        return on
