"""A reward server that judges as the verifier exact_match does, and that can go away."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from megatron_prime.rewards import get
from megatron_prime.rewards.verifier import run_verifier
from megatron_prime.sample import Sample


class RewardServer:
    """Answers requests in threads of this process while the `with` block runs.

    Args:
        port: a free port, which the server of a later attempt can take again; 0 for any.
        goes_away: called with every request; once it returns True, connections are refused.
    """

    def __init__(self, port: int = 0, goes_away: Callable[[], bool] = lambda: False) -> None:
        self._goes_away = goes_away
        self._is_away = threading.Event()
        outer, verifier = self, get("exact_match")

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer._leaves():
                    self.close_connection = True
                    return
                reward = run_verifier(verifier, Sample(asked["response"], asked["answer"])).reward
                body = json.dumps({"reward": reward}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/verify"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _leaves(self) -> bool:
        if not self._is_away.is_set() and self._goes_away():
            self._is_away.set()
            threading.Thread(target=self._server.shutdown, daemon=True).start()
        return self._is_away.is_set()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.01)
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
