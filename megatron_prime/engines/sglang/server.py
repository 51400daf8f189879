"""Supervises one SGLang server as a child process: starts, watches and restarts it, and ends it in any case."""

import functools
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from megatron_prime.engines.sglang import child
from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.engines.sglang.loader.serve import KEY_VARIABLE
from megatron_prime.observability.durable import make_private
from megatron_prime.rollout.engine import EngineError
from megatron_prime.workers.ports import free_port

STABLE_AFTER_S = 600.0
"""Uptime after which a server's earlier failures no longer count."""
GRACE_S = 10.0
"""Time from SIGTERM to SIGKILL."""
_POLL_S = 0.2
_MAX_BACKOFF_S = 30.0
_TAIL_BYTES = 3000


class ServerFailedError(EngineError):
    """A server could not be started or died too often; the message has the end of its log."""


class SupervisedServer:
    """Keeps one server process running until `close`.

    A thread starts the server, waits until it answers, and starts it again when it ends. Every start has a new `url`,
    by which clients notice a restart, unless the launch plan has a port; the server then has the weights of the plan's
    model_path.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        server_index: int,
        log_path: Path,
        *,
        on_event: Callable[[str], None] = lambda text: None,
        may_start: threading.Event | None = None,
    ) -> None:
        """Start in the background.

        Args:
            plan: the command line and environment.
            server_index: index among the engine's servers.
            log_path: the server's output is appended here.
            on_event: called with a message for the user at each restart, on the supervisor's thread.
            may_start: while it is cleared, the server is not started, and a start in progress is ended. By default it
                is always set.
        """
        self.index = server_index
        self.log_path = log_path
        self._plan = plan
        self._on_event = on_event
        self._lock = threading.Lock()
        self._url: str | None = None
        self._server_pid: int | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None
        self._num_starts = 0
        self._closing = threading.Event()
        self._may_start = may_start
        make_private(log_path.parent)
        self._thread = threading.Thread(target=self._supervise, name=f"sglang-{server_index}", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str | None:
        """Address of the running server; None until it answers."""
        with self._lock:
            return self._url

    @property
    def pid(self) -> int | None:
        """Process id of the server's main process, which is also its process group; None while there is none."""
        with self._lock:
            return self._server_pid

    @property
    def num_starts(self) -> int:
        """Number of times that the server became ready: 2 after one restart."""
        with self._lock:
            return self._num_starts

    def raise_if_failed(self) -> None:
        """Raise ServerFailedError if the supervisor gave up."""
        with self._lock:
            if self._failure is not None:
                raise ServerFailedError(self._failure)

    def restart(self) -> None:
        """End a server that hangs, which the supervisor then starts again. Does nothing while no server runs."""
        with self._lock:
            guardian, self._url = self._guardian, None
        if guardian is not None:
            _end(guardian)

    def ask_to_close(self) -> None:
        """Start to close without waiting, so that several servers can end at the same time."""
        self._closing.set()

    def close(self) -> None:
        """End the server and its supervisor, and wait until the processes are gone. May be called twice."""
        self._closing.set()
        self._thread.join()

    def _supervise(self) -> None:
        if self._plan.cores:
            # Processes inherit the cores of the thread that starts them. This rank may be bound to a few of the job's.
            os.sched_setaffinity(0, self._plan.cores)
        num_failures = 0
        while not self._closing.is_set():
            if self._is_held():
                self._closing.wait(_POLL_S)
                continue
            ready_at = self._run_once()
            if self._closing.is_set():
                break
            if ready_at is not None and time.monotonic() - ready_at >= STABLE_AFTER_S:
                num_failures = 0
            num_failures += 1
            # A wrong argument or too little memory fails at every start: give up instead of trying for ever.
            if num_failures > self._plan.settings.max_restarts:
                self._give_up(num_failures)
                break
            self._on_event(
                f"SGLang server {self.index} ended; restart {num_failures} of at most "
                f"{self._plan.settings.max_restarts} in a row (log: {self.log_path})"
            )
            self._closing.wait(min(2.0 ** (num_failures - 1), _MAX_BACKOFF_S))

    def _run_once(self) -> float | None:
        """Start the server and wait until it has ended. Returns the time at which it was ready, or None."""
        first = self._plan.first_port
        # Another process may take a free port first; the server then fails and is started again on another port.
        port = free_port(self._plan.host) if first is None else first + self.index
        url = f"http://{self._plan.host}:{port}"
        with self.log_path.open("ab") as log:
            guardian = subprocess.Popen(
                [sys.executable, child.__file__, str(GRACE_S), *self._plan.command(self.index, port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._plan.environment(self.index, os.environ) | self._plan.key_variables(url),
                # A Ctrl-C in the terminal must not reach the servers: the trainer ends them in order.
                start_new_session=True,
            )
        try:
            return self._watch(guardian, url)
        finally:
            _end(guardian)
            with self._lock:
                self._url = self._server_pid = self._guardian = None

    def _watch(self, guardian: subprocess.Popen[bytes], url: str) -> float | None:
        assert guardian.stdout is not None
        first_line = guardian.stdout.readline()
        with self._lock:
            self._guardian = guardian
            self._server_pid = int(first_line) if first_line.strip() else None
        deadline = time.monotonic() + self._plan.settings.startup_timeout_s
        ready_at: float | None = None
        while guardian.poll() is None and not self._closing.is_set():
            if ready_at is None and answers(url, self._plan.key_variables(url).get(KEY_VARIABLE, "")):
                if self._plan.has_keys and answers(url):
                    self._refuse_open_server()
                    return None
                ready_at = time.monotonic()
                with self._lock:
                    self._url = url
                    self._num_starts += 1
            if ready_at is None and (time.monotonic() > deadline or self._is_held()):
                return None
            self._closing.wait(_POLL_S)
        return ready_at

    def _is_held(self) -> bool:
        return self._may_start is not None and not self._may_start.is_set()

    def _refuse_open_server(self) -> None:
        with self._lock:
            self._failure = (
                f"SGLang server {self.index} answers calls without an API key, so that anybody who reaches it could "
                "replace its weights: remove the arguments from rollout.sglang.extra_args that start another HTTP "
                "server, such as --tokenizer-worker-num"
            )
        self._closing.set()

    def _give_up(self, num_failures: int) -> None:
        failure = (
            f"SGLang server {self.index} ended {num_failures} times in a row, rollout.sglang.max_restarts = "
            f"{self._plan.settings.max_restarts}; the end of {self.log_path}:\n{self._log_tail()}"
        )
        with self._lock:
            self._failure = failure

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace")


def answers(url: str, api_key: str = "", timeout_s: float = 2.0) -> bool:
    """Return whether a server has loaded its model and answers calls with a key at `url`, or without one."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        reply = httpx.get(
            f"{url}/model_info", headers=headers, timeout=timeout_s, trust_env=False, verify=_tls_context()
        )
        return reply.status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return the context of all calls of `answers`, because it takes longer to make one than to call."""
    return httpx.create_ssl_context(trust_env=False)


def _end(guardian: subprocess.Popen[bytes]) -> None:
    """End the guardian and its server, by closing the guardian's input, and wait for both."""
    assert guardian.stdin is not None
    guardian.stdin.close()
    try:
        # The guardian itself waits up to GRACE_S for the server to end.
        guardian.wait(2 * GRACE_S)
    except subprocess.TimeoutExpired:
        guardian.kill()
        guardian.wait()
    if guardian.stdout is not None:
        guardian.stdout.close()
