"""TensorBoard's events, without which a run goes on where they cannot be written."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from io import BufferedWriter
from itertools import count
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from branchprune.errors import optional

numbers = count()
"""Of the files of a process, which TensorBoard reads in the order of their names."""


class EventsLogger(TensorBoardLogger):
    """Log to TensorBoard; say in one line that this is not possible, and go on without.

    Args:
        output: Folder of the run.
        stage: Folder in it.
        purge_step: Step from which on what an earlier process wrote does not count; None: all does.
        tell: Called with the line.
    """

    def __init__(
        self, output: Path, stage: str, purge_step: int | None, tell: Callable[[str], object]
    ) -> None:
        super().__init__(output, name="", version=stage)
        self.purge_step, self._tell, self.told = purge_step, tell, False

    def give_up(self, error: OSError) -> None:
        """Say, once, that there will be no more events."""
        if not self.told:
            self._tell(f"TensorBoard's files cannot be written any more: {error}; the run goes on")
        self.told = True

    @property
    def experiment(self) -> Any:
        """What writes; runs beside it are made by calling its type."""
        if self._experiment is None:
            kind = _writer_class(self.give_up)
            self._experiment = kind(self.log_dir, purge_step=self.purge_step)
        return self._experiment

    def save(self) -> None:
        """Write everything to the disk, with the hyperparameters."""
        try:
            super().save()
        except OSError as error:
            self.give_up(error)


class _Events:
    """Writes events at once; after an error it writes nothing.

    The writer of TensorBoard raises its errors in a thread, which prints them.

    Args:
        folder: Where to write.
        give_up: Called with an error.
    """

    def __init__(self, folder: str, give_up: Callable[[OSError], None]) -> None:
        record_writer = optional("tensorboard.summary.writer.record_writer", "a run")
        self.folder, self.give_up = folder, give_up
        where = f"{socket.gethostname()}.{os.getpid()}.{next(numbers):06}"
        self.path = Path(folder) / f"events.out.tfevents.{int(time.time()):010}.{where}"
        self.record_writer = record_writer.RecordWriter
        self.file: BufferedWriter | None = None
        self.failed = False
        event = optional("tensorboard.compat.proto.event_pb2", "a run").Event
        self.add_event(event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def get_logdir(self) -> str:
        """Return the folder."""
        return self.folder

    def add_event(self, event: Any) -> None:
        """Write an event."""
        self._try(lambda file: self.record_writer(file).write(event.SerializeToString()))

    def flush(self) -> None:
        """Write to the disk what is in memory."""
        if self.file is not None:
            self._try(lambda file: file.close())  # what comes then is added to the file
        self.file = None

    close = flush

    def reopen(self) -> None:
        """Go on after a `close`, which the next event does by itself."""

    def _try(self, write: Callable[[BufferedWriter], object]) -> None:
        if self.failed:
            return
        try:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("ab")
            write(self.file)
        except OSError as error:
            self.failed = True
            self.give_up(error)
            self._drop()

    def _drop(self) -> None:
        """Close the file without what is still in memory, which Python would try to write."""
        if self.file is not None:
            self.file.raw.close()
            self.file = None


def _writer_class(give_up: Callable[[OSError], None]) -> type:
    """Return torch's SummaryWriter, with events of our own."""
    tensorboard = optional("torch.utils.tensorboard", "a run")
    writer = tensorboard.writer

    class FileWriter(writer.FileWriter):  # type: ignore[misc, name-defined]
        def __init__(self, log_dir: str, *_: Any) -> None:
            self.event_writer = _Events(str(log_dir), give_up)

    class Writer(tensorboard.SummaryWriter):  # type: ignore[misc, name-defined]
        file_writer: Any
        purge_step: int | None

        def _get_file_writer(self) -> Any:
            if self.file_writer is None:
                self.file_writer = FileWriter(self.log_dir)
                self.all_writers = {self.log_dir: self.file_writer}
                self._purge()
            return self.file_writer

        def _purge(self) -> None:
            if self.purge_step is not None:
                log = writer.SessionLog(status=writer.SessionLog.START)
                self.file_writer.add_event(
                    writer.Event(step=self.purge_step, file_version="brain.Event:2")
                )
                self.file_writer.add_event(writer.Event(step=self.purge_step, session_log=log))
                self.purge_step = None

    return Writer
