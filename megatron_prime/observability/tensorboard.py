"""Writes TensorBoard event files in TensorBoard's own format, which needs neither torch nor TensorFlow.

TensorBoard's own file writer works in a thread, which ends for good at the first error, as on a full disk.
"""

import io
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

# protobuf creates these classes at import time, where a type checker cannot see them.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from megatron_prime.observability.catalog import description_of
from megatron_prime.observability.durable import AppendedFile, make_private


class TensorBoardWriter:
    """Writes the scalars of each step to an event file, one file per attempt of the run."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        """Open a new event file; TensorBoard ignores what earlier files have from `resume_step` on."""
        make_private(folder)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(folder / name)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # Event files are append-only. A START event makes TensorBoard drop later steps of earlier files.
        start = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=resume_step, session_log=start))
        self._described: set[str] = set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the finite scalars of one step. After an OSError, the next call writes them too."""
        values = [self._value(name, value) for name, value in metrics.items() if math.isfinite(value)]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _value(self, name: str, value: float) -> Summary.Value:
        """Return a scalar, with the description of its metric where the file has not shown it yet."""
        if name in self._described:
            return Summary.Value(tag=name, simple_value=value)
        self._described.add(name)
        metadata = SummaryMetadata(summary_description=description_of(name))
        return Summary.Value(tag=name, simple_value=value, metadata=metadata)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _append(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.append(record.getvalue())
