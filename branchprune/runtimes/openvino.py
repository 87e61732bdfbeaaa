"""OpenVINO, on the processor."""

from __future__ import annotations

from functools import partial

from torch import nn

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, tensors
from branchprune.runtimes.onnx_model import onnx_model
from branchprune.runtimes.runtime import Step, needed, threads_of


class OpenVino:
    """Runs a model in OpenVINO, which reads it as ONNX.

    It computes in bfloat16 by itself where the processor has units for that.

    Args:
        threads: Of the processor; None: one for each core.

    Attributes:
        name: "OpenVINO".
        threads: See above.

    Raises:
        PruneError: `threads` is no number of threads, or a package is missing.
    """

    name = "OpenVINO"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads_of(threads)
        self.package = needed("openvino", "OpenVino", "openvino")
        self.core = self.package.Core()

    def version(self) -> str:
        """Return the version of OpenVINO."""
        return str(self.package.__version__)

    def prepared(self, model: nn.Module, example: Example) -> Step:
        """Return what runs a model on an example; see `Runtime`."""
        file = onnx_model(model, example)
        settings = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        try:
            read = self.core.read_model(file)
            names = [each.any_name for each in read.inputs]
            compiled = self.core.compile_model(read, "CPU", settings)
            request = compiled.create_infer_request()
            arrays = [each.detach().cpu().numpy() for each in tensors(example)]
            used = {each.any_name for each in compiled.inputs}
            feeds = {n: x for n, x in zip(names, arrays, strict=True) if n in used}
            request.infer(feeds)
        except Exception as error:  # of the runtime's own classes
            raise PruneError(
                f"OpenVINO cannot run {type(model).__name__}: {first_line(error)}"
            ) from error
        step: Step = partial(request.infer, feeds)
        return step
