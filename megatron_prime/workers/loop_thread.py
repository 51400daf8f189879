"""An asyncio event loop in a thread, for callers that are not coroutines themselves."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

_JOIN_S = 30.0

Result = TypeVar("Result")


class LoopThread:
    """An event loop in a daemon thread. Several threads may submit work.

    Args:
        owner: what the loop belongs to, for the message of the error.
        closed_error: the type of the error that `submit` raises once the loop is closed.
    """

    def __init__(self, owner: str, closed_error: type[Exception] = RuntimeError) -> None:
        self.loop = asyncio.new_event_loop()
        self._owner = owner
        self._closed_error = closed_error
        self._is_closing = False
        self._lock = threading.Lock()
        """Orders `submit` and `close`: what is submitted before it is cancelled by it, and nothing comes after it."""
        self._thread = threading.Thread(target=self.loop.run_forever, name=f"loop of {owner}", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run a coroutine on the loop. Raises closed_error if the loop is closed, where it would wait forever."""
        with self._lock:
            if not self._is_closing:
                return asyncio.run_coroutine_threadsafe(work, self.loop)
        work.close()
        raise self._closed_error(f"{self._owner} is closed: it cannot do any more work")

    def close(self) -> None:
        """Cancel all work, so that it frees what it holds, and stop the loop. May be called twice."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            cancelling = asyncio.run_coroutine_threadsafe(_cancel_others(), self.loop)
        with contextlib.suppress(TimeoutError):
            cancelling.result(_JOIN_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_JOIN_S)
        self.loop.close()


async def _cancel_others() -> None:
    """Cancel all tasks of the loop but this one, and wait for their end; their exceptions are raised elsewhere."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
