"""The main loop of a worker process; see `frames` for what it exchanges with the process that started it."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from megatron_prime.workers.errors import describe_fault
from megatron_prime.workers.frames import DONE, MORE, TOKEN_BYTES, encode_frame, read_bytes, read_frame

MAX_MEMORY_BYTES = 8 * 2**30
"""Limit on the address space of a worker, so that code that needs more gets a MemoryError."""
LIST_S = 0.02
"""Seconds after which the rest of a list of requests is left to the next one, so that no reply waits long."""


def serve(load: Callable[[], Callable[[Any], Any]], timeout_s: float, *, takes_lists: bool = False) -> None:
    """Answer requests until stdin is closed.

    The first reply, to no request, says that the worker is ready. If one request takes longer than `timeout_s`, an
    alarm of the kernel ends the process, so that it does not outlive a parent that was itself killed.

    Args:
        load: Imports and prepares what the worker runs, and returns a function from a request to a reply, both JSON
            values, which raises nothing. An exception of `load` is reported, and ends the process.
        timeout_s: Time limit of a request, in seconds.
        takes_lists: Whether every request is a list of them; see `frames`.
    """
    _limit_memory()
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.dup(1)
    # Code that prints would corrupt the frames, and code that reads stdin would consume them.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def mark(sign: bytes) -> None:
        # The user's code may have forked: the copy must not answer, and not read further requests.
        if os.getpid() != pid:
            os._exit(1)
        os.write(replies, sign)

    def reply(message: Any) -> None:  # noqa: ANN401 - JSON values
        mark(DONE)
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
        if takes_lists:
            reply(
                _answer_list(
                    request, lambda each: _answer_in_time(answer, each, timeout_s), lambda: mark(MORE)
                )
            )
        else:
            reply(_answer_in_time(answer, request, timeout_s))


def _answer_in_time(answer: Callable[[Any], Any], request: Any, timeout_s: float) -> Any:  # noqa: ANN401 - JSON values
    # The default action of SIGALRM ends the process even inside C code, where a Python handler would have to wait.
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    message = answer(request)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return message


def _answer_list(
    requests: Sequence[Any], answer: Callable[[Any], Any], go_on: Callable[[], None]
) -> list[Any]:
    """Return the replies to the first of the requests, and call `go_on` between two of them."""
    end = time.monotonic() + LIST_S
    messages = [answer(requests[0])]
    for request in requests[1:]:
        if time.monotonic() >= end:
            break
        go_on()
        messages.append(answer(request))
    return messages


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
