"""The messages between a worker process and the process that started it.

    parent:  request                    token
    worker:             (work), DONE           token, reply

    parent:  [request, request, request]                                         token
    worker:             (work), MORE, (work), MORE, (work), DONE                        token, [reply, reply, reply]

A request on stdin and a reply on stdout is a frame: a 4-byte big-endian length followed by that many bytes of JSON.

The random token ties a reply to its request: bytes that a user's code, a library or a forked process writes to the
descriptor of the replies are no reply. The parent draws it when the code has returned, so that the code finds it
neither in its process nor in a pipe.

A list of requests saves exchanges where one takes longer than the work. MORE says that the worker goes on with the
next request, so that each has its own deadline, and that the parent knows which one a worker died in. A worker may stop
early: the replies are those to the first requests of the list.
"""

import json
import struct
from typing import IO, Any

HEADER = struct.Struct(">I")
TOKEN_BYTES = 16
DONE = b"\x06"
MORE = b"\x05"


def encode_frame(message: Any) -> bytes:  # noqa: ANN401 - JSON values
    """Encode one message as a frame."""
    body = json.dumps(message).encode()
    return HEADER.pack(len(body)) + body


def read_frame(stream: IO[bytes]) -> Any | None:  # noqa: ANN401 - JSON values
    """Return the next message, or None at the end of the stream."""
    header = read_bytes(stream, HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = read_bytes(stream, length)
    return json.loads(body) if len(body) == length else None


def read_bytes(stream: IO[bytes], num_bytes: int) -> bytes:
    """Return the next bytes of a stream without a buffer, fewer at its end; never read any that follow."""
    chunks = []
    while num_bytes > 0 and (chunk := stream.read(num_bytes)):
        chunks.append(chunk)
        num_bytes -= len(chunk)
    return b"".join(chunks)
