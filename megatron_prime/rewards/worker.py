"""The main program of a worker process of `VerifierPool`.

    main() with arguments VERIFIER MODULE TIMEOUT_S SETTINGS (JSON)

Requests arrive on stdin and outcomes leave on stdout as frames: a 4-byte big-endian length followed by that many bytes
of JSON. The first frame on stdout reports that the verifier is loaded. The worker ends when stdin is closed. If one
verification takes longer than TIMEOUT_S, an alarm of the kernel ends the worker, so that it does not outlive a pool
that was itself killed.
"""

import importlib
import json
import math
import os
import resource
import signal
import struct
import sys
import traceback
from typing import IO, Any

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 64 * 2**20
MAX_MEMORY_BYTES = 8 * 2**30
"""Limit on the address space of a worker, so that a verifier that needs more gets a MemoryError."""


def encode_frame(message: Any) -> bytes:  # noqa: ANN401 - JSON values
    """Encode one message as a frame."""
    body = json.dumps(message).encode()
    return HEADER.pack(len(body)) + body


def read_frame(stream: IO[bytes]) -> Any | None:  # noqa: ANN401 - JSON values
    """Return the next message, or None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = stream.read(length)
    return json.loads(body) if len(body) == length else None


def main() -> None:
    """Verify requests until stdin is closed."""
    verifier_name, module, timeout_s, settings = sys.argv[1:5]
    _limit_memory()
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    # A verifier that prints would corrupt the frames, and one that reads stdin would consume them.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    # The import comes after the descriptors are replaced, because an imported module may print as well.
    from megatron_prime.rewards import verifier as registry

    try:
        importlib.import_module(module)
        verifier = registry.get(verifier_name, json.loads(settings))
        if isinstance(verifier, registry.WarmUp):
            verifier.warm_up()
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        replies.write(encode_frame({"failed": _description(error)}))
        replies.flush()
        sys.exit(1)
    replies.write(encode_frame({"ready": os.getpid()}))
    replies.flush()
    while (request := read_frame(requests)) is not None:
        # The default action of SIGALRM ends the process even inside C code, where a Python handler would have to wait.
        signal.setitimer(signal.ITIMER_REAL, float(timeout_s))
        outcome = registry.run_verifier(verifier, request["response_text"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        # JSON has no NaN; the receiver restores it from None.
        reward = None if math.isnan(outcome.reward) else outcome.reward
        replies.write(
            encode_frame({"reward": reward, "status": outcome.status.value, "detail": outcome.detail})
        )
        replies.flush()


def _description(error: Exception) -> str:
    """Return an error in one line, with the last place in its traceback."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text[:500]} ({place.filename}, line {place.lineno})"


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
