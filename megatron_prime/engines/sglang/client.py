"""HTTP client of one SGLang server: every call has a deadline, harmless calls are retried, errors have types."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import httpx

from megatron_prime.config.redaction import redact
from megatron_prime.rollout.engine import EngineError

Answer = TypeVar("Answer")
PauseMode = Literal["abort", "retract", "in_place"]
HEALTH_TIMEOUT_S = 30.0
"""SGLang's own probe waits 20 s for its scheduler."""
_MAX_BODY_IN_ERROR = 600


class ServerUnreachableError(EngineError):
    """The server gave no answer: it is down, hangs, or the connection broke. Another try or server may succeed."""


class ServerRefusedError(EngineError):
    """The server answered and refused; the same call would be refused again."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the answer."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The number and timing of repetitions of a call that got no answer."""

    num_tries: int = 4
    """Number of tries, including the first."""
    first_wait_s: float = 0.25
    factor: float = 2.0
    max_wait_s: float = 8.0
    jitter: float = 0.5
    """Waits are drawn from [1 - jitter, 1] of their length, so that many callers do not return at the same time."""

    def wait_s(self, num_failures: int, draw: float) -> float:
        """Return the seconds to wait after num_failures (>= 1) failures; `draw` is uniform in [0, 1)."""
        longest = min(self.first_wait_s * self.factor ** (num_failures - 1), self.max_wait_s)
        return longest * (1 - self.jitter * draw)

    async def run(
        self,
        call: Callable[[], Awaitable[Answer]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> Answer:
        """Repeat `call` until it answers. Raises the last ServerUnreachableError, and other errors at once."""
        for num_failures in range(1, self.num_tries):
            try:
                return await call()
            except ServerUnreachableError:
                await sleep(self.wait_s(num_failures, random.random()))
        return await call()


ONCE = RetryPolicy(num_tries=1)


class SGLangClient:
    """Client of one server. Belongs to the event loop that first uses it.

    Every method raises ServerUnreachableError when there is no answer by the deadline and ServerRefusedError when the
    server refuses. Calls that would do harm when executed twice are not repeated.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        request_timeout_s: float = 1800.0,
        control_timeout_s: float = 300.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Make a client, which connects on the first call.

        Args:
            url: http://host:port of the server itself; a router does not forward control calls.
            api_key: key of the server; empty for a server without one.
            request_timeout_s: deadline of `generate`.
            control_timeout_s: deadline of all other calls.
            retry: policy for the calls that may be repeated.
        """
        self.url = url.rstrip("/")
        self._request_timeout_s = request_timeout_s
        self._control_timeout_s = control_timeout_s
        self._retry = retry or RetryPolicy()
        # The balancer limits the requests in flight. trust_env is off so that calls never go to a proxy.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._secrets = [api_key] if api_key else []
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, limits=limits, trust_env=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST /generate with the body of `sampling.request_body`. Not repeated: the caller picks another server."""
        answer = await self._call("/generate", body, timeout_s=self._request_timeout_s, retry=ONCE)
        return _as_dict(answer, self.url, "/generate")

    async def abort(self, request_id: str) -> None:
        """End a request, which is then answered with the tokens so far. Does nothing if the server does not have it."""
        await self._call("/abort_request", {"rid": request_id}, retry=ONCE, empty_answer=True)

    async def pause_generation(self, mode: PauseMode) -> None:
        """Stop sampling until `continue_generation`.

        Modes: with "abort" running requests end. With "retract" they wait and compute their KV cache anew, so that all
        tokens after an update come from the new weights. With "in_place" they keep their KV cache, which then mixes
        weights.
        """
        await self._call("/pause_generation", {"mode": mode})

    async def continue_generation(self) -> None:
        """Resume sampling."""
        await self._call("/continue_generation", {})

    async def model_info(self, *, retry: bool = True) -> dict[str, Any]:
        """Return facts about the served model, with `weight_version`. Answers as soon as the server is ready."""
        policy = None if retry else ONCE
        # The HTTP process answers this call itself, so that it is quick even while the scheduler is busy.
        answer = await self._call("/model_info", None, timeout_s=10.0, retry=policy)
        return _as_dict(answer, self.url, "/model_info")

    async def weight_version(self) -> str:
        """Return the version string that the server attaches to its tokens."""
        return str((await self.model_info()).get("weight_version", ""))

    async def check_health(self) -> None:
        """Return when the scheduler answers, which takes about a second; raise like every method otherwise."""
        await self._call("/health", None, timeout_s=HEALTH_TIMEOUT_S, retry=ONCE, empty_answer=True)

    async def update_weights_from_disk(
        self, model_path: str, weight_version: str, *, flush_cache: bool = True
    ) -> None:
        """Load an HF checkpoint that the server can read. After a refusal the server keeps its old weights."""
        body = {
            "model_path": model_path,
            "weight_version": weight_version,
            "flush_cache": flush_cache,
            # By default a server that was started with dummy weights would make up new ones.
            "load_format": "auto",
        }
        await self._update("/update_weights_from_disk", body, retry=self._retry)

    async def begin_weight_update(self) -> None:
        """Open an update session; updates from tensors are refused outside of one."""
        await self._update("/begin_weight_update", {})

    async def end_weight_update(self) -> None:
        """Close the update session; SGLang then post-processes quantized weights."""
        await self._update("/end_weight_update", {})

    async def update_weights_from_tensor(
        self,
        payloads: Sequence[str],
        *,
        load_format: str,
        flush_cache: bool,
        weight_version: str,
    ) -> None:
        """Update weights from tensors in the request.

        Args:
            payloads: base64 of SGLang's serialized named tensors, one per tensor-parallel rank of the server.
            load_format: name of a custom weight loader.
            flush_cache: forget all cached prefixes afterwards, which old weights have computed.
            weight_version: version string to serve afterwards.
        """
        body = {
            "serialized_named_tensors": list(payloads),
            "load_format": load_format,
            "flush_cache": flush_cache,
            "weight_version": weight_version,
        }
        await self._update("/update_weights_from_tensor", body)

    async def weight_checksums(self) -> list[dict[str, str]]:
        """Return SGLang's checksums of its own (fused) parameters by name, one dict per tensor-parallel rank."""
        answer = await self._call("/weights_checker", {"action": "checksum"})
        ranks = _as_dict(answer, self.url, "/weights_checker").get("ranks", [])
        return [dict(rank["checksums"]) for rank in ranks]

    async def release_memory_occupation(self, tags: Sequence[str]) -> None:
        """Free GPU memory by tag (weights, kv_cache, cuda_graph). Does nothing on a CPU.

        A server that is not idle crashes; `pause_generation("retract")` makes it idle. Not repeated.
        """
        await self._call("/release_memory_occupation", {"tags": list(tags)}, retry=ONCE, empty_answer=True)

    async def resume_memory_occupation(self, tags: Sequence[str]) -> None:
        """Allocate freed memory again. Weights come back without content: update them before the next request.

        A server crashes when it has not freed the tag before. Not repeated.
        """
        await self._call("/resume_memory_occupation", {"tags": list(tags)}, retry=ONCE, empty_answer=True)

    async def _update(self, path: str, body: Mapping[str, Any], retry: RetryPolicy = ONCE) -> None:
        answer = _as_dict(await self._call(path, body, retry=retry), self.url, path)
        if answer.get("success") is not True:
            raise ServerRefusedError(f"{self.url}{path} failed: {answer.get('message')}", httpx.codes.OK)

    async def _call(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        empty_answer: bool = False,
    ) -> object:
        """GET if body is None, otherwise POST. Returns the decoded JSON, or None for calls with an empty answer."""
        seconds = timeout_s or self._control_timeout_s

        async def once() -> object:
            try:
                # The timeouts of httpx bound each read; a server that sends byte after byte would never exceed them.
                async with asyncio.timeout(seconds):
                    response = await self._http.request(
                        "GET" if body is None else "POST", path, json=body, timeout=httpx.Timeout(seconds)
                    )
            except (httpx.TimeoutException, TimeoutError) as error:
                raise ServerUnreachableError(f"{self.url}{path} gave no answer in {seconds:g} s") from error
            except httpx.TransportError as error:
                raise ServerUnreachableError(
                    f"{self.url}{path}: {redact(repr(error), self._secrets)}; the server may have died"
                ) from error
            return self._decoded(response, path, empty_answer)

        return await (retry or self._retry).run(once)

    def _decoded(self, response: httpx.Response, path: str, empty_answer: bool) -> object:
        if response.status_code != httpx.codes.OK:
            # A server, or a proxy in front of it, may repeat what it was sent.
            body = redact(response.text, self._secrets)[:_MAX_BODY_IN_ERROR]
            text = f"{self.url}{path} answered {response.status_code}: {body}"
            if response.status_code == httpx.codes.UNAUTHORIZED:
                text += (
                    ": the key in rollout.sglang.api_key_file is not this server's"
                    if self._secrets
                    else ": name a file with the server's API key in rollout.sglang.api_key_file"
                )
            # A server that is shutting down, or a proxy in front of it, answers 5xx: treat it like no answer.
            if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise ServerUnreachableError(text)
            raise ServerRefusedError(text, response.status_code)
        if empty_answer:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise ServerRefusedError(f"{self.url}{path} answered no JSON", response.status_code) from error


def _as_dict(answer: object, url: str, path: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise ServerRefusedError(
            f"{url}{path} answered {type(answer).__name__}, not an object", httpx.codes.OK
        )
    return answer
