"""HTTP to one SGLang server: every call with a deadline, retries where a repetition is harmless, faults by kind."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import httpx

from megatron_prime.rollout.engine import EngineError

Answer = TypeVar("Answer")
PauseMode = Literal["abort", "retract", "in_place"]
HEALTH_TIMEOUT_S = 30.0
"""SGLang's own probe waits 20 s for its scheduler."""
_MAX_BODY_IN_ERROR = 600


class ServerUnreachableError(EngineError):
    """No answer: the server is down, hangs, or the connection broke. Another try or another server may do."""


class ServerRefusedError(EngineError):
    """The server answered and refused; the same call would be refused again."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the answer."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after which waits a call is repeated that got no answer."""

    num_tries: int = 4
    """The first included."""
    first_wait_s: float = 0.25
    factor: float = 2.0
    max_wait_s: float = 8.0
    jitter: float = 0.5
    """A wait is drawn from [1 - jitter, 1] of its length, so that many callers don't come back at once."""

    def wait_s(self, num_failures: int, draw: float) -> float:
        """Seconds to wait after num_failures (>= 1) failures; draw is uniform in [0, 1)."""
        longest = min(self.first_wait_s * self.factor ** (num_failures - 1), self.max_wait_s)
        return longest * (1 - self.jitter * draw)

    async def run(
        self,
        call: Callable[[], Awaitable[Answer]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> Answer:
        """`call` until it answers. Raises the last ServerUnreachableError; other errors at once."""
        for num_failures in range(1, self.num_tries):
            try:
                return await call()
            except ServerUnreachableError:
                await sleep(self.wait_s(num_failures, random.random()))
        return await call()


ONCE = RetryPolicy(num_tries=1)


class SGLangClient:
    """Calls of one server. Belongs to the event loop that first uses it.

    Raises, in every method: ServerUnreachableError when there is no answer by the deadline, ServerRefusedError when the
    server says no. Calls that would do harm when carried out twice are not repeated.
    """

    def __init__(
        self,
        url: str,
        *,
        request_timeout_s: float = 1800.0,
        control_timeout_s: float = 300.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Keep the parts; connects on the first call.

        Args:
            url: http://host:port of the server itself: a router does not pass control calls on.
            request_timeout_s: deadline of `generate`.
            control_timeout_s: deadline of the other calls.
            retry: of calls that may be repeated.
        """
        self.url = url.rstrip("/")
        self._request_timeout_s = request_timeout_s
        self._control_timeout_s = control_timeout_s
        self._retry = retry or RetryPolicy()
        # No limit here: the balancer bounds what is in flight. trust_env: a proxy must not see loopback calls.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(base_url=self.url, limits=limits, trust_env=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # -- sampling --------------------------------------------------------------------------------------------------

    async def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST /generate; `sglang_sampling.request_body` makes the body. Not repeated: the caller picks a server."""
        answer = await self._call("/generate", body, timeout_s=self._request_timeout_s, retry=ONCE)
        return _as_dict(answer, self.url, "/generate")

    async def abort_request(self, request_id: str) -> None:
        """Stop one request, which answers with what it has so far. Unknown ids are ignored."""
        await self._call("/abort_request", {"rid": request_id}, empty_answer=True)

    async def abort_all(self) -> None:
        """Stop every request, those of other clients too."""
        await self._call("/abort_request", {"abort_all": True}, empty_answer=True)

    async def pause_generation(self, mode: PauseMode) -> None:
        """Stop sampling until `continue_generation`.

        abort: requests end. retract: they wait and recompute their KV cache, so that tokens after an update are the new
        weights'. in_place: they keep their KV cache, which then mixes weights.
        """
        await self._call("/pause_generation", {"mode": mode})

    async def continue_generation(self) -> None:
        """Sample again."""
        await self._call("/continue_generation", {})

    async def flush_cache(self) -> None:
        """Forget all prefixes. Refused while requests run, unless generation is paused by abort or retract."""
        await self._call("/flush_cache", {}, empty_answer=True)

    # -- health ----------------------------------------------------------------------------------------------------

    async def model_info(self, *, retry: bool = True) -> dict[str, Any]:
        """What is served; has `weight_version`. Answers as soon as the server is ready."""
        policy = None if retry else ONCE
        answer = await self._call("/model_info", None, timeout_s=10.0, retry=policy)
        return _as_dict(answer, self.url, "/model_info")

    async def server_info(self) -> dict[str, Any]:
        """The server's arguments and limits."""
        return _as_dict(await self._call("/server_info", None, timeout_s=30.0), self.url, "/server_info")

    async def weight_version(self) -> str:
        """The version string that the server puts on its tokens."""
        return str((await self.model_info()).get("weight_version", ""))

    async def check_health(self) -> None:
        """Returns when the scheduler answers, after a second or so; raises as every method."""
        await self._call("/health", None, timeout_s=HEALTH_TIMEOUT_S, retry=ONCE, empty_answer=True)

    # -- weights ---------------------------------------------------------------------------------------------------

    async def update_weights_from_disk(
        self, model_path: str, weight_version: str, *, flush_cache: bool = True
    ) -> None:
        """Load an HF checkpoint that the server can read. After a refusal the old weights serve on."""
        body = {"model_path": model_path, "weight_version": weight_version, "flush_cache": flush_cache}
        await self._update("/update_weights_from_disk", body, retry=self._retry)

    async def begin_weight_update(self) -> None:
        """Open a session; updates from tensors and from a group are refused outside of one."""
        await self._update("/begin_weight_update", {})

    async def end_weight_update(self) -> None:
        """Close the session: quantised weights are finished."""
        await self._update("/end_weight_update", {})

    async def update_weights_from_tensor(
        self,
        payloads: Sequence[str],
        *,
        load_format: str | None = "flattened_bucket",
        flush_cache: bool = False,
        weight_version: str | None = None,
    ) -> None:
        """Copy tensors in.

        Args:
            payloads: base64 of SGLang's serialised tensors, one a tensor-parallel rank of the server.
            load_format: flattened_bucket, None for plain tensors, or the name of a custom weight loader.
            flush_cache: True with the last bucket alone.
            weight_version: set with the last bucket.
        """
        body = {
            "serialized_named_tensors": list(payloads),
            "load_format": load_format,
            "flush_cache": flush_cache,
            "weight_version": weight_version,
        }
        await self._update("/update_weights_from_tensor", body)

    async def init_weights_update_group(
        self,
        *,
        master_address: str,
        master_port: int,
        rank_offset: int,
        world_size: int,
        group_name: str = "weight_update_group",
        backend: str = "nccl",
    ) -> None:
        """Join a process group with the trainer. Answers only when all have joined: call all members at once."""
        body = {
            "master_address": master_address,
            "master_port": master_port,
            "rank_offset": rank_offset,
            "world_size": world_size,
            "group_name": group_name,
            "backend": backend,
        }
        await self._update("/init_weights_update_group", body)

    async def destroy_weights_update_group(self, group_name: str = "weight_update_group") -> None:
        """Leave a process group."""
        await self._update("/destroy_weights_update_group", {"group_name": group_name})

    async def update_weights_from_distributed(
        self,
        *,
        names: Sequence[str],
        dtypes: Sequence[str],
        shapes: Sequence[Sequence[int]],
        group_name: str = "weight_update_group",
        load_format: str | None = "flattened_bucket",
        flush_cache: bool = False,
        weight_version: str | None = None,
    ) -> None:
        """Receive tensors that the group's rank 0 broadcasts. Start this call and the broadcast together.

        A refusal (outside of a session, say) comes before the server receives: watch this call while broadcasting.
        """
        body = {
            "names": list(names),
            "dtypes": list(dtypes),
            "shapes": [list(shape) for shape in shapes],
            "group_name": group_name,
            "load_format": load_format,
            "flush_cache": flush_cache,
            "weight_version": weight_version,
        }
        await self._update("/update_weights_from_distributed", body)

    async def update_weight_version(self, weight_version: str) -> None:
        """Rename the weights that are there."""
        body = {"new_version": weight_version, "abort_all_requests": False}
        await self._update("/update_weight_version", body, retry=self._retry)

    async def weight_checksums(self) -> list[dict[str, str]]:
        """SGLang's checksums of its own (fused) parameters by name, one dict a tensor-parallel rank."""
        answer = await self._call("/weights_checker", {"action": "checksum"})
        ranks = _as_dict(answer, self.url, "/weights_checker").get("ranks", [])
        return [dict(rank["checksums"]) for rank in ranks]

    # -- memory ----------------------------------------------------------------------------------------------------

    async def release_memory_occupation(self, tags: Sequence[str] | None = None) -> None:
        """Give GPU memory back, by tag (weights, kv_cache, cuda_graph) or all. No-op on a CPU.

        The server ends unless it is idle; `pause_generation` by retraction makes it so. Not repeated.
        """
        await self._call("/release_memory_occupation", _tags(tags), retry=ONCE, empty_answer=True)

    async def resume_memory_occupation(self, tags: Sequence[str] | None = None) -> None:
        """Take it again. Weights come back without content: update them before the next request.

        The server ends over a tag that it has not given back. Not repeated.
        """
        await self._call("/resume_memory_occupation", _tags(tags), retry=ONCE, empty_answer=True)

    # -- the wire --------------------------------------------------------------------------------------------------

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
        """GET when body is None, else POST. Returns the decoded JSON, None where the answer has no content."""
        seconds = timeout_s or self._control_timeout_s

        async def once() -> object:
            try:
                # httpx bounds each read alone; a server that trickles must not escape the deadline.
                async with asyncio.timeout(seconds):
                    response = await self._http.request(
                        "GET" if body is None else "POST", path, json=body, timeout=httpx.Timeout(seconds)
                    )
            except (httpx.TimeoutException, TimeoutError) as error:
                raise ServerUnreachableError(f"{self.url}{path} gave no answer in {seconds:g} s") from error
            except httpx.TransportError as error:
                raise ServerUnreachableError(
                    f"{self.url}{path}: {error!r}; the server may have died"
                ) from error
            return self._decoded(response, path, empty_answer)

        return await (retry or self._retry).run(once)

    def _decoded(self, response: httpx.Response, path: str, empty_answer: bool) -> object:
        if response.status_code != httpx.codes.OK:
            text = f"{self.url}{path} answered {response.status_code}: {response.text[:_MAX_BODY_IN_ERROR]}"
            # 5xx come from a server that goes down, or a proxy before it: as good as no answer.
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


def _tags(tags: Sequence[str] | None) -> dict[str, list[str]]:
    return {} if tags is None else {"tags": list(tags)}
