"""Log-probs of given responses from SGLang servers that serve one fixed model each, without a training job."""

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from megatron_prime.config.server_keys import attached_keys
from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.access import key_of
from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.launch import LaunchPlan, install_receiver, served_folder
from megatron_prime.engines.sglang.server import SupervisedServer
from megatron_prime.rollout.engine import EngineError

_POLL_S = 0.2


class ServerAddress(Protocol):
    """A server that may have another address after each restart."""

    @property
    def url(self) -> str | None:
        """Address; None while the server is down."""
        ...

    def raise_if_failed(self) -> None:
        """Raise EngineError if the server will not come back."""
        ...


@dataclass(frozen=True, slots=True)
class FixedAddress:
    """The address of a server that somebody else runs."""

    url: str

    def raise_if_failed(self) -> None:
        """Do nothing."""


class ScoringServer:
    """One model that scores given tokens. Belongs to the event loop that first uses it.

    Args:
        name: of the model, for messages.
        server: where it is.
        key: returns the API key of the server at an address.
        settings: deadlines, and how many requests are in flight at once.
    """

    def __init__(
        self, name: str, server: ServerAddress, key: Callable[[str], str], settings: SGLangConfig
    ) -> None:
        self.name = name
        self._server = server
        self._key = key
        self._settings = settings
        self._client: SGLangClient | None = None
        self._places = asyncio.Semaphore(settings.concurrency)

    async def logprobs(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        """Return the log-prob of each response token at temperature 1, in nats.

        Raises:
            EngineError: the server is down, refuses, or answers something else.
        """
        async with self._places:
            answer = await (await self._answering()).generate(scoring_body(prompt_ids, response_ids))
        return parse_logprobs(answer, response_ids)

    async def check_health(self) -> None:
        """Return when the server computes; raise EngineError otherwise."""
        await (await self._answering()).check_health()

    async def wait_until_ready(self) -> None:
        """Return when the server answers, within startup_timeout_s. Raises EngineError."""
        deadline = time.monotonic() + self._settings.startup_timeout_s
        while True:
            try:
                await self.check_health()
                return
            except ServerUnreachableError as error:
                if time.monotonic() > deadline:
                    raise ServerUnreachableError(
                        f"the server of the {self.name} did not answer within rollout.sglang.startup_timeout_s = "
                        f"{self._settings.startup_timeout_s:g} s: {error}"
                    ) from error
            await asyncio.sleep(_POLL_S)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _answering(self) -> SGLangClient:
        self._server.raise_if_failed()
        url = self._server.url
        if url is None:
            raise ServerUnreachableError(f"the server of the {self.name} is down; it is being started")
        if self._client is None or self._client.url != url:
            before, self._client = (
                self._client,
                SGLangClient(
                    url,
                    api_key=self._key(url),
                    request_timeout_s=self._settings.request_timeout_s,
                    control_timeout_s=self._settings.control_timeout_s,
                ),
            )
            if before is not None:
                await before.aclose()
        return self._client


def scoring_body(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> dict[str, Any]:
    """Return the body of POST /generate that scores the response and samples nothing."""
    return {
        "input_ids": [*prompt_ids, *response_ids],
        "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
        "return_logprob": True,
        # The log-prob of the token at this place is left out, because the server would not compute the one before.
        "logprob_start_len": len(prompt_ids) - 1,
    }


def parse_logprobs(answer: Mapping[str, Any], response_ids: Sequence[int]) -> list[float]:
    """Return the log-probs of the response from the answer to `scoring_body`.

    Raises:
        ServerRefusedError: they are incomplete, of other tokens, or not finite.
    """
    try:
        entries = answer["meta_info"]["input_token_logprobs"][-len(response_ids) :]
        pairs = [(float(entry[0]), int(entry[1])) for entry in entries]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ServerRefusedError(f"an answer of SGLang has no log-probs ({error!r})") from error
    if [token for _, token in pairs] != list(response_ids):
        raise ServerRefusedError("SGLang's log-probs belong to other tokens than those asked for")
    if not all(math.isfinite(logprob) for logprob, _ in pairs):
        raise ServerRefusedError(
            "SGLang returned log-probs that are not finite: the served weights are broken"
        )
    return [logprob for logprob, _ in pairs]


class ModelServers:
    """The servers of several models, one for each, started here or attached to by rollout.sglang.urls in their order.

    Args:
        models: name -> HF checkpoint.
        settings: the section rollout.sglang.
        device: of servers that are started.
        dtype: of their weights.
        folder: for logs and files of the servers.
        warn: gets a line at each restart of a server.

    Raises:
        ValueError: there are URLs, but not one for each model, or no usable API key.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        settings: SGLangConfig,
        *,
        device: Literal["cpu", "cuda"],
        dtype: Literal["fp32", "bf16"],
        folder: Path,
        warn: Callable[[str], None],
    ) -> None:
        self._started: list[SupervisedServer] = []
        self.servers: dict[str, ScoringServer] = {}
        """Name of a model -> its server."""
        if settings.urls:
            if len(settings.urls) != len(models):
                raise ValueError(
                    f"rollout.sglang.urls names {len(settings.urls)} servers: name one of each model, in the order "
                    f"{', '.join(models)}"
                )
            for name, url, key in zip(models, settings.urls, attached_keys(settings), strict=True):
                self.servers[name] = ScoringServer(
                    name, FixedAddress(url.rstrip("/")), lambda _, key=key: key, settings
                )
            return
        secret = secrets.token_hex(32)
        # By the transport `disk` a server starts with the weights of its folder, after each restart too.
        update = {"num_servers": len(models), "weight_transport": "disk", "quantization": "none"}
        settings = settings.model_copy(update=update)
        plan = LaunchPlan(next(iter(models.values())), device, dtype, 0, settings, secret=secret)
        plan = replace(plan, loader_folder=install_receiver(folder / "loader"))
        for index, (name, path) in enumerate(models.items()):
            own = replace(plan, model_path=served_folder(path, folder / f"model-{index}"))
            log = folder / f"server-{name}.log"
            server = SupervisedServer(own, index, log, on_event=warn)
            self._started.append(server)
            self.servers[name] = ScoringServer(name, server, lambda url: key_of(secret, url), settings)

    async def wait_until_ready(self) -> None:
        """Return when all servers answer. Raises EngineError."""
        await asyncio.gather(*(server.wait_until_ready() for server in self.servers.values()))

    async def faults(self) -> dict[str, str]:
        """Return why a server does not compute, by its name; empty if all do."""
        names = list(self.servers)
        checks = (self.servers[name].check_health() for name in names)
        results = await asyncio.gather(*checks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, EngineError):
                raise result
        return {name: str(result) for name, result in zip(names, results, strict=True) if result is not None}

    async def aclose(self) -> None:
        """Close all connections."""
        for server in self.servers.values():
            await server.aclose()

    def close(self) -> None:
        """End the servers that were started here, and wait until they are gone."""
        for server in self._started:
            server.ask_to_close()
        for server in self._started:
            server.close()
