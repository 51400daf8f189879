"""Collective calls in which one rank, the driver, does the work on an event loop in a thread.

A rollout may take longer than the deadline of a collective, so the other ranks can't just wait in one for the result.
Instead all ranks meet every HEARTBEAT_S seconds and the driver says: keep waiting, help to resync a server, or here is
the result.
"""

import asyncio
import contextlib
import queue
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from megatron_prime.engines.sglang.client import ServerUnreachableError
from megatron_prime.rollout.engine import EngineError
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.workers.loop_thread import LoopThread

DRIVER = 0
HEARTBEAT_S = 20.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Pending:
    """The message that the work is still going on."""


@dataclass(frozen=True, slots=True)
class _Help:
    """The request that all ranks resync this server now."""

    server: int


@dataclass(frozen=True, slots=True)
class _Done(Generic[Result]):
    """The message that the work has finished."""

    result: Result


@dataclass(frozen=True, slots=True)
class _Failed:
    """The message that the work has raised an exception."""

    error: BaseException


class Driver:
    """Runs coroutines on the driver rank on behalf of all ranks."""

    def __init__(self, ranks: Ranks, resync: Callable[[int], None]) -> None:
        """Start the event loop on the driver.

        Args:
            ranks: this process among the training ranks, which all call `run` in the same order.
            resync: gives a server, by index, the current weights. Called on every rank at the same time, on the thread
                of `run`, while the driver's coroutine goes on; it may call `run` itself. A ServerUnreachableError on
                the driver asks for another try.
        """
        self._ranks = ranks
        self._resync = resync
        self._messages: queue.Queue[_Help | None] = queue.Queue()
        self._helped: Future[None] | None = None
        self._wanted: _Help | None = None
        """The request that `_helped` is the answer to."""
        self.loop_thread = LoopThread("the engine", EngineError) if self.is_driver else None

    @property
    def is_driver(self) -> bool:
        """Return whether this rank talks to the servers."""
        return self._ranks.rank == DRIVER

    async def ask_for_resync(self, server: int) -> None:
        """Have all ranks resync a server and wait for it; one resync at a time. Runs on the driver's loop."""
        # All ranks take part in a resync, so there can only be one at a time.
        while self._helped is not None:
            await asyncio.wait([asyncio.wrap_future(self._helped)])
        self._helped = Future()
        self._wanted = _Help(server)
        self._messages.put(self._wanted)
        try:
            await asyncio.wrap_future(self._helped)
        finally:
            self._helped = self._wanted = None

    def run(self, make_work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run make_work() on the driver and return its result on every rank. Collective.

        An exception is raised on every rank; on the other ranks it becomes an EngineError if its type is unknown there.
        """
        future: Future[Result] | None = None
        if self.loop_thread is not None:
            future = self.loop_thread.submit(make_work())
            # Wakes the main thread at once, which otherwise would notice the result at the next heartbeat.
            future.add_done_callback(lambda _: self._messages.put(None))
        while True:
            message = self._share(None if future is None else self._next_message(future))
            if isinstance(message, _Help):
                self._help(message.server)
            elif isinstance(message, _Failed):
                raise message.error
            elif isinstance(message, _Done):
                return message.result

    def close(self) -> None:
        """Stop the loop. May be called twice."""
        if self.loop_thread is not None:
            self.loop_thread.close()

    def _next_message(self, future: "Future[Result]") -> "_Pending | _Help | _Done[Result] | _Failed":
        message: _Help | None = None
        if not future.done():
            # None says that some future is done. With nested calls it may be another one than this.
            with contextlib.suppress(queue.Empty):
                message = self._messages.get(timeout=HEARTBEAT_S)
        # A request that was given up since must not be met: the trainer may have begun to change its weights.
        if message is not None and message is self._wanted:
            return message
        if not future.done():
            return _Pending()
        error = future.exception()
        return _Done(future.result()) if error is None else _Failed(error)

    def _share(self, message: object) -> object:
        shared: object = self._ranks.from_first(None if message is None else _portable(message))
        # The driver keeps its own object, which is an exception with its traceback.
        return shared if message is None else message

    def _help(self, server: int) -> None:
        """Run the resync on all ranks and agree on its outcome."""
        error: EngineError | None = None
        try:
            self._resync(server)
        except EngineError as fault:
            error = fault
        # Any rank may have failed: all must agree before the driver's coroutine goes on.
        faults = self._ranks.gather_all([] if error is None else [str(error)])
        helped = self._helped
        if helped is not None and not helped.done():
            if isinstance(error, ServerUnreachableError):
                helped.set_exception(error)
            elif faults:
                helped.set_exception(EngineError(f"resync of SGLang server {server} failed: {faults[0]}"))
            else:
                helped.set_result(None)


def _portable(message: object) -> object:
    """Return the message in a form that every rank can unpickle: unknown exceptions become EngineErrors."""
    if isinstance(message, _Failed) and not isinstance(message.error, (EngineError, ValueError, OSError)):
        return _Failed(EngineError(f"rank {DRIVER} failed: {message.error!r}"))
    return message
