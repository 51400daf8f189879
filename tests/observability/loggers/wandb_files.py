"""Reads the offline files of Weights & Biases, whose package has no reader: records in LevelDB's log format."""

import json
import struct
import time

from tests.support import deadlines

BLOCK = 32768
HEADER = 7


def records(path):
    from wandb.proto.wandb_internal_pb2 import Record  # takes seconds, and most tests do not need it

    data, parts = path.read_bytes(), []
    assert data.startswith(b":W&B")
    position = HEADER
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _checksum, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        parts.append(data[position + HEADER : position + HEADER + length])
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(b"".join(parts))
            parts = []


def history(path):
    """Return step -> values of a finished run. wandb's own process may write its last records after `finish`."""
    end = time.monotonic() + deadlines.seconds(20)
    while "exit" not in [record.WhichOneof("record_type") for record in records(path)]:
        assert time.monotonic() < end, f"{path} has no end"
        time.sleep(0.02)
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = record.history.step.num
            assert step not in found, f"step {step} twice"
            found[step] = values
    return found
