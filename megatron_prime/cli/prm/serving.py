"""The command `megatron-prime serve-prm`: an HTTP server in front of two SGLang servers, PRM and reference."""

import asyncio
import json
import signal
import threading
from collections.abc import Coroutine
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from megatron_prime.cli.arguments import Options
from megatron_prime.cli.prm.score_requests import ScoreRequest, ScoreRequests
from megatron_prime.config.run import PrimeConfig
from megatron_prime.engines.sglang.scoring import ModelServers, ScoringServer
from megatron_prime.observability import Progress
from megatron_prime.parallel.platform import num_gpus
from megatron_prime.rollout.engine import EngineError
from megatron_prime.viewer.server import LoopbackServer
from megatron_prime.workers.loop_thread import LoopThread

MAX_BODY_BYTES = 16 << 20
MAX_REQUESTS = 32
"""Requests that are answered at the same time; more are refused at once, and their clients may try again."""
HEALTH_S = 30.0


class ScoreServer(LoopbackServer):
    """Answers POST /score and GET /health on this machine alone.

    Args:
        requests: reads requests and makes the answers.
        servers: those of the models "prm" and "reference".
        loop: runs the calls of the models' servers.
        port: 0 for any free one.

    Raises:
        ValueError: the port is in use or not allowed.
    """

    def __init__(
        self, requests: ScoreRequests, servers: ModelServers, loop: LoopThread, port: int = 0
    ) -> None:
        super().__init__(_Handler, port)
        self.requests = requests
        self._servers = servers
        self._loop = loop
        self.places = threading.BoundedSemaphore(MAX_REQUESTS)

    def score(self, request: ScoreRequest) -> dict[str, Any]:
        """Return the answer to a request. Raises EngineError if a model's server fails."""
        return self.requests.answer(request, self.wait(self._log_ratios(request)))

    def faults(self) -> dict[str, str]:
        """Return why a model's server does not compute, by model; empty if both do."""
        return self.wait(self._servers.faults())

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - the result of any work
        """Run work on the loop of the models' clients and return its result."""
        return self._loop.submit(work).result()

    async def _log_ratios(self, request: ScoreRequest) -> list[list[float]]:
        models = [self._servers.servers[name] for name in ("prm", "reference")]
        of_models = await asyncio.gather(*(_logprobs(model, request) for model in models))
        return [
            [prm - reference for prm, reference in zip(*of_response, strict=True)]
            for of_response in zip(*of_models, strict=True)
        ]


async def _logprobs(model: ScoringServer, request: ScoreRequest) -> list[list[float]]:
    return await asyncio.gather(
        *(model.logprobs(request.prompt_ids, response) for response in request.responses)
    )


class _Handler(BaseHTTPRequestHandler):
    server: ScoreServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 60.0  # A client that sends nothing must not hold a thread for ever.

    def do_GET(self) -> None:
        """Answer /health: 200 if both models compute, otherwise 503 with the reasons."""
        if not self._is_known("/health"):
            return
        faults = self.server.faults()
        status = HTTPStatus.SERVICE_UNAVAILABLE if faults else HTTPStatus.OK
        self._reply(status, {"status": "unavailable", "faults": faults} if faults else {"status": "ok"})

    def do_POST(self) -> None:
        """Answer /score."""
        if not self._is_known("/score"):
            return
        if not self.server.places.acquire(blocking=False):
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_REQUESTS} requests are in work: try again in a second"
            )
            return
        try:
            self._score()
        finally:
            self.server.places.release()

    def _score(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request has no Content-Length")
            return
        if int(length) > MAX_BODY_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body may have {MAX_BODY_BYTES} bytes, not {length}"
            )
            return
        # Forms of other sites' pages cannot send this type.
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be application/json")
            return
        try:
            request = self.server.requests.read(self.rfile.read(int(length)))
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        try:
            self._reply(HTTPStatus.OK, self.server.score(request))
        except EngineError as error:
            self._refuse(HTTPStatus.BAD_GATEWAY, str(error))

    def _is_known(self, path: str) -> bool:
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "unknown host")
        elif self.path != path:
            self._refuse(HTTPStatus.NOT_FOUND, "there are POST /score and GET /health")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        # The body may not have been read, so the connection cannot be used again.
        self.close_connection = True
        self._reply(status, {"error": reason})

    def _reply(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        """Print nothing: the terminal belongs to the command."""


def serve_prm(config: PrimeConfig, options: Options) -> None:
    """Serve scores until Ctrl-C or SIGTERM, and end the SGLang servers that it has started."""
    progress = Progress()
    requests = ScoreRequests(config)
    device = "cuda" if config.platform.device != "cpu" and num_gpus() else "cpu"
    folder = config.run_dir / "serve_prm"
    loop = LoopThread("the score server")
    servers = ModelServers(
        config.model_paths("serve_prm"),
        config.rollout.sglang,
        device=device,
        dtype=config.platform.dtype,
        folder=folder,
        warn=progress.warn,
    )
    try:
        # Ctrl-C and SIGTERM end the wait for the servers as well.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with ScoreServer(requests, servers, loop, options.port) as server:
            progress.line(f"waiting for the SGLang servers of PRM and reference (logs in {folder})")
            server.wait(servers.wait_until_ready())
            # Without this address nobody finds the server, so it is printed in any case.
            print(f"serving {server.url}", flush=True)  # noqa: T201
            progress.line("POST /score, GET /health; Ctrl-C ends the server")
            server.serve_forever()
    except KeyboardInterrupt:
        progress.line("ending the servers")
    finally:
        loop.submit(servers.aclose()).result()
        loop.close()
        servers.close()
