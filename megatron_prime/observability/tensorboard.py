"""TensorBoard event files through TensorBoard's own writer, which needs no framework."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

# protobuf makes these classes when the modules are imported, where a type checker cannot see them.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoardWriter:
    """Scalars of each step into one event file a life of the run."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        """Open a new event file; readers drop what earlier files say about `resume_step` and later steps."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))
        # Event files are never rewritten: a START mark tells TensorBoard where this life of the run begins.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=resume_step, session_log=start))
        self._writer.flush()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the finite scalars of one step and flush them to the file."""
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        self._writer.close()
