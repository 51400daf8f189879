"""Writes TensorBoard event files in TensorBoard's own format, which needs neither torch nor TensorFlow.

TensorBoard's own file writer works in a thread, which ends for good at the first error, as on a full disk.
"""

# protobuf creates its classes at import time, where a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false

import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.histogram import metadata as histogram
from tensorboard.plugins.scalar import metadata as scalar
from tensorboard.plugins.text import metadata as text
from tensorboard.util.tensor_util import make_tensor_proto

from megatron_prime.observability.catalog import description_of
from megatron_prime.observability.durable import AppendedFile, make_private
from megatron_prime.observability.loggers.event_files import PREFIX, drop_steps, encode_event
from megatron_prime.observability.loggers.hparams import hparam_values
from megatron_prime.observability.loggers.layout import layout_value
from megatron_prime.observability.loggers.markdown import samples_text, settings_text
from megatron_prime.observability.loggers.protocol import Details, RunInfo, StepRecord

NUM_BUCKETS = 30
"""Buckets of a histogram, as in TensorFlow's."""


class TensorBoardWriter:
    """Writes the scalars, histograms and texts of each step to an event file, one file per attempt of the run.

    Every value is a tensor with its kind, unit and description: TensorBoard's default reader shows the description of
    no other form.
    """

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        """Open a new event file, and remove what earlier files have from `resume_step` on."""
        make_private(folder)
        drop_steps(folder, resume_step)
        name = f"{PREFIX}{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(folder / name)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A TensorBoard that is running has read the removed steps already. This event makes its slower reader drop
        # them; the default one drops the steps of a tag at the next value of that tag.
        start = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=resume_step, session_log=start))
        self._described: set[str] = set()

    def log(self, step: int, metrics: Mapping[str, float], details: Details | None = None) -> None:
        """Write the finite values of one step. After an OSError, the next call writes them too."""
        values = [
            self._value(name, np.float32(value), scalar.create_summary_metadata)
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        if details is not None:
            for name, numbers in details.distributions.items():
                buckets = histogram_buckets(numbers)
                if len(buckets):
                    values.append(self._value(name, buckets, histogram.create_summary_metadata))
            if details.samples:
                values.append(self._text("rollout/samples", samples_text(details.samples)))
        self._append_values(step, values)

    def describe_run(self, info: RunInfo, step: int) -> None:
        """Write the layout of the charts, the settings, and the provenance of this attempt; `step` is its first one."""
        values = [layout_value(info.command)]
        if info.command == "train":  # The page would list other runs in the same table, without an accuracy.
            values += hparam_values(info)
        if info.config:
            values.append(self._text("run/config", settings_text(info.config)))
        if info.provenance:
            values.append(self._text("run/provenance", settings_text(info.provenance)))
        self._append_values(step, values)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _text(self, name: str, content: str) -> Summary.Value:
        return self._value(name, content.encode(), text.create_summary_metadata)

    def _value(
        self,
        name: str,
        content: bytes | np.ndarray | np.float32,
        metadata: Callable[[str, str], SummaryMetadata],
    ) -> Summary.Value:
        """Return a value, with its kind and description where the file has not shown them yet."""
        value = Summary.Value(tag=name, tensor=make_tensor_proto(content))
        if name not in self._described:
            self._described.add(name)
            value.metadata.CopyFrom(metadata("", description_of(name)))
        return value

    def _append_values(self, step: int, values: Iterable[Summary.Value]) -> None:
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _append(self, event: Event) -> None:
        self._file.append(encode_event(event))


class TensorBoardLogger:
    """Logs a run to `run_dir/tensorboard`. A record is on disk when `log` returns."""

    def __init__(self, info: RunInfo, resume_step: int) -> None:
        self._writer = TensorBoardWriter(info.run_dir / "tensorboard", resume_step)
        self._writer.describe_run(info, resume_step)

    def log(self, record: StepRecord) -> None:
        """Write one step. Raises OSError, after which the next call writes it too."""
        self._writer.log(record.step, record.metrics, record.details)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._writer.close()


def histogram_buckets(numbers: np.ndarray) -> np.ndarray:
    """Return (left edge, right edge, count) of the buckets of the finite numbers; no bucket without such numbers."""
    finite = np.asarray(numbers, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return np.zeros((0, 3))
    counts, edges = np.histogram(finite, bins=NUM_BUCKETS)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)
