"""Writes TensorBoard event files by TensorBoard's own writer, which needs neither torch nor TensorFlow."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

# protobuf creates these classes at import time, where a type checker cannot see them.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from megatron_prime.observability.durable import make_private
from megatron_prime.observability.metrics import description_of


class TensorBoardWriter:
    """Writes the scalars of each step to an event file, one file per attempt of the run."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        """Open a new event file; TensorBoard ignores what earlier files have from `resume_step` on."""
        make_private(folder)
        self._writer = EventFileWriter(str(folder))
        # Event files are append-only. A START event makes TensorBoard drop later steps of earlier files.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=resume_step, session_log=start))
        self._writer.flush()
        self._described: set[str] = set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the finite scalars of one step and flush them to the file."""
        values = [self._value(name, value) for name, value in metrics.items() if math.isfinite(value)]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def _value(self, name: str, value: float) -> Summary.Value:
        """Return a scalar, with the description of its metric where the file has not shown it yet."""
        if name in self._described:
            return Summary.Value(tag=name, simple_value=value)
        self._described.add(name)
        metadata = SummaryMetadata(summary_description=description_of(name))
        return Summary.Value(tag=name, simple_value=value, metadata=metadata)

    def close(self) -> None:
        """Flush and close the file; a second call does nothing."""
        self._writer.close()
