"""ExecuTorch, on the processor."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

from torch import nn

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, tensors
from branchprune.runtimes.captured import captured, quiet
from branchprune.runtimes.executorch_program import EXTRA, executorch_of
from branchprune.runtimes.onnx_model import check_float32
from branchprune.runtimes.runtime import Opened, Step, needed, running, threads_of

PLACE = re.compile(r"^\[\w+\.cpp:\d+\] ", re.MULTILINE)
"""How lines of its log begin: where they were written."""
OPERATOR = re.compile(r"kernel '(\S+)' not found")


class ExecuTorch:
    """Runs a model in ExecuTorch, by XNNPACK and, what that does not take, by its own kernels.

    Args:
        threads: Of the processor; all that runs in ExecuTorch shares them. None: those that it has,
            which are one for each core unless they were set.

    Attributes:
        name: "ExecuTorch".
        threads: See above.

    Raises:
        PruneError: `threads` is no number of threads, or the package is missing.
    """

    name = "ExecuTorch"

    def __init__(self, threads: int | None = None) -> None:
        with quiet():
            self.package = needed("executorch.runtime", "ExecuTorch", EXTRA)
            self.pool = needed("executorch.extension.pybindings.portable_lib", "ExecuTorch", EXTRA)
            now: int = self.pool._threadpool_get_thread_count()
        self.threads = now if threads is None else threads_of(threads)

    def version(self) -> str:
        """Return the version of ExecuTorch."""
        return str(needed("executorch.version", "ExecuTorch", EXTRA).__version__).partition("+")[0]

    def prepared(self, model: nn.Module, example: Example) -> Step:
        """Return what runs a model on an example; see `Runtime`."""
        check_float32(model)
        kind = type(model).__name__
        program = captured(model, example, to=self.name)
        return self.opened(executorch_of(program, kind), kind)(example)

    def opened(self, file: bytes | Path, what: str) -> Opened:
        """Read an ExecuTorch program.

        Args:
            file: Its path, or what is in it.
            what: What it is called in messages.

        Raises:
            PruneError: The runtime cannot read it, or later, cannot run it; or another is open,
                with other threads.
        """
        self._set_threads()
        with _running(what):
            program = self.package.Runtime.get().load_program(file)
            program.load_method("forward")

        def on(example: Example) -> Step:
            given = [each.detach().cpu().contiguous() for each in tensors(example)]

            def step() -> object:  # which keeps the program, as methods do not
                return program.load_method("forward").execute(given)

            with _running(what):
                step()
            return step

        return on

    def _set_threads(self) -> None:
        """Set the threads of the process, which what is open has by their address."""
        if (now := self.pool._threadpool_get_thread_count()) == self.threads:
            return
        gc.collect()
        if any(type(each) is self.package.Method for each in gc.get_objects()):
            raise PruneError(
                f"threads (={self.threads}): what is open in ExecuTorch runs with {now}, and all "
                "shares them: close it before, del program"
            )
        with redirect_stderr(StringIO()):
            self.pool._unsafe_reset_threadpool(self.threads)


@contextmanager
def _running(what: str) -> Iterator[None]:
    """Say of any error of ExecuTorch what it cannot run, in the words of its log."""
    with running(what, ExecuTorch.name), redirect_stderr(StringIO()) as log:
        try:
            yield
        except Exception as error:
            told = PLACE.sub("", log.getvalue()).strip()
            if operator := OPERATOR.match(told):
                told = f"it has nothing for the operator {operator[1]}"
            raise PruneError(told.partition("\n")[0] or first_line(error)) from error
