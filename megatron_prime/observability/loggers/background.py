"""A logger in a thread of its own: a service that is slow or away neither delays nor stops the run."""

import threading
from collections import deque
from collections.abc import Callable

from megatron_prime.observability.loggers.protocol import Logger, StepRecord

MAX_WAITING = 1000
"""Records that are kept while a service is away; beyond it, the oldest are dropped."""
CLOSE_TIMEOUT_S = 60.0
"""Seconds that the end of a run waits for a service."""


class BackgroundLogger:
    """Starts a logger in a thread and hands it the records in order.

    After a failure, the records are kept and tried again with the next one. One warning is given for all failures.

    Args:
        name: name of the backend, for warnings.
        connect: starts the logger; may take long, and may fail.
        warn: receives one line.
        close_timeout_s: time for what is left when the run ends.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Logger],
        warn: Callable[[str], None],
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._name = name
        self._connect = connect
        self._warn = warn
        self._close_timeout_s = close_timeout_s
        self._waiting: deque[StepRecord] = deque(maxlen=MAX_WAITING)
        self._news = threading.Condition()
        self._is_closing = False
        self._has_warned = False
        self._logger: Logger | None = None
        self._thread = threading.Thread(target=self._work, name=f"logger-{name}", daemon=True)
        self._thread.start()

    def log(self, record: StepRecord) -> None:
        """Take a record; returns at once."""
        with self._news:
            self._waiting.append(record)
            self._news.notify()

    def close(self) -> None:
        """Wait for what is left, with a deadline; a second call does nothing."""
        with self._news:
            is_first = not self._is_closing
            self._is_closing = True
            self._news.notify()
        if not is_first:
            return
        self._thread.join(self._close_timeout_s)
        if self._thread.is_alive():
            self._warn_once(f"it has not taken everything within {self._close_timeout_s:g} s")

    def _work(self) -> None:
        self._try(self._start)
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._is_closing)
                is_last = self._is_closing
            self._try(self._send)
            if is_last:
                break
        if self._logger is not None:
            self._try(self._logger.close)

    def _start(self) -> None:
        if self._logger is None:
            self._logger = self._connect()

    def _send(self) -> None:
        self._start()
        assert self._logger is not None
        while self._waiting:
            record = self._waiting[0]
            self._logger.log(record)
            with self._news:
                # A record may have been dropped from the full queue meanwhile.
                if self._waiting and self._waiting[0] is record:
                    self._waiting.popleft()

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a client library may raise anything, and the run must go on
            self._warn_once(f"{type(error).__name__}: {error}")

    def _warn_once(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            first_line = why.strip().splitlines()[0] if why.strip() else "no reason given"
            self._warn(
                f"logging.backends: {self._name} fails ({first_line}). Training continues, and run_dir/metrics.jsonl "
                "has every record; what is missing is sent when it works again. This warning is given once"
            )
