"""The main loop of a worker process; see `frames` for what it exchanges with the process that started it."""

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from megatron_prime.workers.errors import describe_fault
from megatron_prime.workers.frames import DONE, TOKEN_BYTES, encode_frame, read_bytes, read_frame

MAX_MEMORY_BYTES = 8 * 2**30
"""Limit on the address space of a worker, so that code that needs more gets a MemoryError."""


def serve(load: Callable[[], Callable[[Any], Any]], timeout_s: float) -> None:
    """Answer requests until stdin is closed.

    The first reply, to no request, says that the worker is ready. If one request takes longer than `timeout_s`, an
    alarm of the kernel ends the process, so that it does not outlive a parent that was itself killed.

    Args:
        load: Imports and prepares what the worker runs, and returns a function from a request to a reply, both JSON
            values, which raises nothing. An exception of `load` is reported, and ends the process.
        timeout_s: Time limit of a request, in seconds.
    """
    _limit_memory()
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.dup(1)
    # Code that prints would corrupt the frames, and code that reads stdin would consume them.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def reply(message: Any) -> None:  # noqa: ANN401 - JSON values
        # The user's code may have forked: the copy must not answer, and not read further requests.
        if os.getpid() != pid:
            os._exit(1)
        os.write(replies, DONE)
        rest = memoryview(read_bytes(requests, TOKEN_BYTES) + encode_frame(message))
        while rest:
            rest = rest[os.write(replies, rest) :]

    pid = os.getpid()
    # The import comes after the descriptors are replaced, because an imported module may print as well.
    try:
        answer = load()
    except BaseException as error:  # noqa: BLE001 - a user's module may raise anything
        reply({"failed": describe_fault(error)})
        sys.exit(1)
    reply({"ready": True})
    while (request := read_frame(requests)) is not None:
        # The default action of SIGALRM ends the process even inside C code, where a Python handler would have to wait.
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        message = answer(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply(message)


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
