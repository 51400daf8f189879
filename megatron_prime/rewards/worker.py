"""The main program of a worker process of `VerifierPool`.

    main() with arguments VERIFIER MODULE TIMEOUT_S SETTINGS (JSON)

    pool:    request                 token
    worker:            verify, DONE         token, reply

A request on stdin and a reply on stdout is a frame: a 4-byte big-endian length followed by that many bytes of JSON. The
first reply, to no request, says that the verifier is loaded. The worker ends when stdin is closed. If one verification
takes longer than TIMEOUT_S, an alarm of the kernel ends the worker, so that it does not outlive a pool that was itself
killed.

The random token ties a reply to its request: bytes that a verifier, a library or a forked process writes to the
descriptor of the replies are no verdict. The pool draws it when the verifier has returned, so that code under test
finds it neither in this process nor in a pipe.
"""

import importlib
import json
import os
import resource
import signal
import struct
import sys
from typing import IO, Any

HEADER = struct.Struct(">I")
TOKEN_BYTES = 16
DONE = b"\x06"
MAX_MEMORY_BYTES = 8 * 2**30
"""Limit on the address space of a worker, so that a verifier that needs more gets a MemoryError."""


def encode_frame(message: Any) -> bytes:  # noqa: ANN401 - JSON values
    """Encode one message as a frame."""
    body = json.dumps(message).encode()
    return HEADER.pack(len(body)) + body


def read_frame(stream: IO[bytes]) -> Any | None:  # noqa: ANN401 - JSON values
    """Return the next message, or None at the end of the stream."""
    header = _read(stream, HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = _read(stream, length)
    return json.loads(body) if len(body) == length else None


def _read(stream: IO[bytes], num_bytes: int) -> bytes:
    """Return the next bytes of a stream without a buffer, fewer at its end; never read any that follow."""
    chunks = []
    while num_bytes > 0 and (chunk := stream.read(num_bytes)):
        chunks.append(chunk)
        num_bytes -= len(chunk)
    return b"".join(chunks)


def main() -> None:
    """Verify requests until stdin is closed."""
    verifier_name, module, timeout_s, settings = sys.argv[1:5]
    _limit_memory()
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.dup(1)
    # A verifier that prints would corrupt the frames, and one that reads stdin would consume them.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def reply(message: Any) -> None:  # noqa: ANN401 - JSON values
        # The function under test may have forked: the copy must not answer, and not read further requests.
        if os.getpid() != pid:
            os._exit(1)
        os.write(replies, DONE)
        rest = memoryview(_read(requests, TOKEN_BYTES) + encode_frame(message))
        while rest:
            rest = rest[os.write(replies, rest) :]

    pid = os.getpid()
    # The import comes after the descriptors are replaced, because an imported module may print as well.
    from megatron_prime.rewards import verifier as registry
    from megatron_prime.rewards.outcome import describe_error, outcome_of_error

    try:
        importlib.import_module(module)
        verifier = registry.get(verifier_name, json.loads(settings))
        if isinstance(verifier, registry.WarmUp):
            verifier.warm_up()
    except BaseException as error:  # noqa: BLE001 - a user's module may raise anything
        reply({"failed": "\n".join(describe_error(error))})
        sys.exit(1)
    reply({"ready": True})
    while (request := read_frame(requests)) is not None:
        # The default action of SIGALRM ends the process even inside C code, where a Python handler would have to wait.
        signal.setitimer(signal.ITIMER_REAL, float(timeout_s))
        try:
            outcome = registry.run_verifier(verifier, request["response_text"], request["answer"])
        except BaseException as error:  # noqa: BLE001 - such as asyncio.CancelledError
            outcome = outcome_of_error(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply(outcome.as_message())


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
