"""TensorBoard's event files: encoding of events, and removal of steps that a resumed run computes again."""

# protobuf creates its classes at import time, where a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false

import io
from collections.abc import Iterator
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from megatron_prime.observability.durable import replace_file

PREFIX = "events.out.tfevents."


def encode_event(event: Event) -> bytes:
    """Return the bytes of one event with its length and checksums."""
    return _framed(event.SerializeToString())


def drop_steps(folder: Path, resume_step: int) -> None:
    """Remove the summaries of `resume_step` and later from the event files of a folder.

    Event files are meant to be append-only, and a START event is meant to hide what a killed run has logged beyond its
    last checkpoint. But TensorBoard's default reader ignores that event, and shows old points until new ones of the
    same tag have passed them. A file that ends within an event, as a kill leaves it, loses that part.
    """
    for path in sorted(folder.glob(f"{PREFIX}*")):
        events = list(_events(path))
        kept = [event for event in events if not (event.HasField("summary") and event.step >= resume_step)]
        if len(kept) == len(events):
            continue
        if any(event.HasField("summary") for event in kept):
            replace_file(path, b"".join(encode_event(event) for event in kept))
        else:
            path.unlink()


def _events(path: Path) -> Iterator[Event]:
    for data in RawEventFileLoader(str(path)).Load():
        yield Event.FromString(data)


def _framed(data: bytes) -> bytes:
    record = io.BytesIO()
    RecordWriter(record).write(data)
    return record.getvalue()
