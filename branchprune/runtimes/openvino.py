"""OpenVINO, on the processor."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from branchprune.errors import first_line
from branchprune.graph.inputs import Example
from branchprune.runtimes.onnx_model import onnx_model
from branchprune.runtimes.runtime import Opened, Step, arrays_of, needed, running, threads_of

PRECISION = "INFERENCE_PRECISION_HINT"
"""OpenVINO's property for what a processor computes in."""
PLACES = ("Exception from", "Check '", "FrontEnd API", "Model wasn't", "While validating", "--")
"""How lines of its errors begin that say where something failed."""


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

    def own_precision(self) -> str:
        """Return what it computes in on this processor by itself: "f32", "bf16" or "f16"."""
        found = self.core.get_property("CPU", PRECISION)
        name: str = found.get_type_name()
        return name

    def prepared(self, model: nn.Module, example: Example) -> Step:
        """Return what runs a model on an example; see `Runtime`."""
        return self.opened(onnx_model(model, example), type(model).__name__)(example)

    def opened(self, file: bytes | Path, what: str, precision: str | None = None) -> Opened:
        """Read a file of OpenVINO or ONNX.

        Args:
            file: Its path, or what is in an ONNX file.
            what: What it is called in messages.
            precision: What to compute in, "f32"; None: what it chooses by itself.

        Raises:
            PruneError: The runtime cannot read it, or later, cannot run it.
        """
        settings = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        if precision is not None:
            settings[PRECISION] = precision
        with running(what, self.name, telling_line):
            read = self.core.read_model(file if isinstance(file, bytes) else str(file))
            names = [each.any_name for each in read.inputs]
            compiled = self.core.compile_model(read, "CPU", settings)
            request = compiled.create_infer_request()
            used = {each.any_name for each in compiled.inputs}

        def on(example: Example) -> Step:
            with running(what, self.name, telling_line):
                given = zip(names, arrays_of(example), strict=True)
                feeds = {name: array for name, array in given if name in used}
                request.infer(feeds)
            return partial(request.infer, feeds)

        return on


def telling_line(error: Exception) -> str:
    """Return what an error of OpenVINO says, without the places in its source that come first."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(PLACES)]
    return told[0] if told else first_line(error)
