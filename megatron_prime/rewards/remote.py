"""Verification by servers over HTTP: requests with deadlines and retries, and whether a server is there at all.

At most max_concurrency requests run at a time, whichever threads ask, and each response has a deadline over all its
attempts. Failed connections and the statuses 429, 500, 502, 503 and 504 are retried with exponential backoff.

A reply must not harm the trainer and must belong to its request: each request has a connection of its own, since
surplus bytes on a connection would be read as the reply to the next request; a compressed reply is refused, since a few
bytes may expand to gigabytes; so is one of too many bytes.

A server that does not even answer a request that it has answered before is away. The outcomes of that batch say so, and
the caller decides how long to wait (rollout.verification). A response that alone gets no reply is an error, since the
server may break on it.
"""

import asyncio
import json
import logging
import math
import os
import random
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any, Self

import httpx

from megatron_prime.config.redaction import redact, secrets_of
from megatron_prime.config.tables.reward import RequestConfig
from megatron_prime.rewards.outcome import OutcomeCounts, VerificationOutcome, VerificationStatus
from megatron_prime.sample import Sample
from megatron_prime.workers.loop_thread import LoopThread

# At its level INFO, httpx logs the whole URL of every request.
logging.getLogger("httpx").setLevel(logging.WARNING)
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
MAX_NAMED_PAUSE_S = 60.0
"""Longest pause that a server may ask for by Retry-After."""
RETRIED_STATUSES = {429, 500, 502, 503, 504}
AWAY_STATUSES = {429, 502, 503, 504}
"""Replies of a proxy without a server behind it, or of a server that takes no requests; 500 is about the request."""


class NoRewardError(Exception):
    """A server gives no reward for a response; the message says why."""


class _TryAgainError(Exception):
    """A transient failure."""

    def __init__(self, text: str, is_away: bool, pause_s: float = 0.0) -> None:
        super().__init__(text)
        self.is_away = is_away
        self.pause_s = pause_s


class _GivenUpError(Exception):
    """No attempt at a request succeeded."""


@dataclass
class Exchange:
    """The requests for one response."""

    client: httpx.AsyncClient
    slots: asyncio.Semaphore
    """Limits the number of requests at a time, over all responses."""
    is_probe: bool = False
    """Whether they ask if the server is there, so that no stored reply may stand for its own."""
    last_error: str = field(default="", init=False)
    is_away: bool = field(default=False, init=False)
    """Whether the last failure may mean that the server is away."""


class RemoteVerifier(ABC):
    """Verifies batches of responses by a server, with the interface of `VerifierPool`. Threads may share it.

    Args:
        url: The server's address, which requests go to.
        config: Limits of the requests.
        table: Name of their table of the configuration, for messages.
        max_reply_bytes: Size of the longest reply.
        requests_per_response: Number of requests that a response needs, which run at the same time.

    Raises:
        ValueError: If token_variable names an environment variable that is not set or is no token.
    """

    def __init__(
        self,
        url: str,
        config: RequestConfig,
        table: str,
        max_reply_bytes: int,
        requests_per_response: int = 1,
    ) -> None:
        self._url = url
        self._shown = redact(url)
        self._secrets = secrets_of(url)
        self._config = config
        self._max_reply_bytes = max_reply_bytes
        self._responses = asyncio.Semaphore(max(1, config.max_concurrency // requests_per_response))
        self._requests = asyncio.Semaphore(config.max_concurrency)
        """Limits of what is in work at a time, over all callers."""
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        token = token_of(config, table)
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
            self._secrets.add(token)
        # Worker processes import this package, and have no use for the logs.
        from megatron_prime.observability.activity import VERIFIER, worker

        self._worker = worker(f"verifier {self._shown}", VERIFIER)
        self._counts = OutcomeCounts()
        self._answered: Sample | None = None
        """A response that the server has given a reward for."""
        self._lock = threading.Lock()
        # Both are there from the first batch on, and the client belongs to the loop's thread.
        self._loop: LoopThread | None = None
        self._client: httpx.AsyncClient | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, int]:
        """Number of outcomes by status, and as `restarts` the number of retries."""
        return self._counts.as_dict()

    def verify_all(self, samples: Sequence[Sample]) -> list[VerificationOutcome]:
        """Verify responses.

        Returns:
            One outcome per response, in order. Failures of the server are outcomes and never raise.
        """
        future = self._open_loop().submit(self._verify_all(samples))
        try:
            outcomes = future.result()
        except CancelledError:
            raise self._closed_error() from None
        except BaseException:
            future.cancel()  # Ctrl-C
            raise
        self._counts.add(outcomes)
        return outcomes

    def close(self) -> None:
        """End all batches, and close the connections; a second call does nothing."""
        with self._lock:
            self._is_closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.submit(self._close_client()).result()
            loop.close()

    def _open_loop(self) -> LoopThread:
        with self._lock:
            if self._is_closed:
                raise self._closed_error()
            if self._loop is None:
                self._loop = LoopThread(f"the verifier {self._shown}")
            return self._loop

    def _closed_error(self) -> RuntimeError:
        return RuntimeError(f"the verifier {self._shown} is closed")

    async def _close_client(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _open_client(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                headers=self._headers,
                limits=httpx.Limits(
                    max_connections=self._config.max_concurrency, max_keepalive_connections=0
                ),
                timeout=self._config.timeout_s,
                # Otherwise httpx would send the requests through a proxy that the environment names.
                trust_env=False,
            )
        return self._client

    @abstractmethod
    async def _outcome(self, sample: Sample, exchange: Exchange) -> VerificationOutcome:
        """Return the outcome of one response by `_reply`. May raise NoRewardError."""

    async def _verify_all(self, samples: Sequence[Sample]) -> list[VerificationOutcome]:
        client = self._open_client()

        async def verify(sample: Sample) -> VerificationOutcome:
            # The deadline begins when a slot is free: waiting for other requests does not count.
            async with self._responses:
                self._worker.begin()
                try:
                    return await self._verify_one(sample, Exchange(client, self._requests))
                finally:
                    self._worker.end()

        self._worker.submit(len(samples))
        outcomes = list(await asyncio.gather(*map(verify, samples)))
        for sample, outcome in zip(samples, outcomes, strict=True):
            if outcome.status is VerificationStatus.OK:
                self._answered = sample
                break
        unanswered = [row for row, outcome in enumerate(outcomes) if outcome.is_away]
        # A server that gave any reply is slow with the responses that ran into the deadline, not away.
        if all(outcome.status is VerificationStatus.TIMEOUT for outcome in outcomes):
            unanswered = [*range(len(outcomes))]
        if unanswered and await self._is_there(client):
            # It may have come back in the meantime; what it does not answer now is not its absence.
            again = await asyncio.gather(*(verify(samples[row]) for row in unanswered))
            for row, outcome in zip(unanswered, again, strict=True):
                outcomes[row] = replace(outcome, is_away=False)
        else:
            for row in unanswered:
                outcomes[row] = replace(outcomes[row], is_away=True)
        return outcomes

    async def _is_there(self, client: httpx.AsyncClient) -> bool:
        """Return whether the server answers a request again that it has given a reward for."""
        if self._answered is None:
            return False
        probe = Exchange(client, self._requests, is_probe=True)
        return (await self._verify_one(self._answered, probe)).status is VerificationStatus.OK

    async def _verify_one(self, sample: Sample, exchange: Exchange) -> VerificationOutcome:
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await self._outcome(sample, exchange)
        except NoRewardError as error:
            return self._error(str(error))
        except httpx.InvalidURL as error:
            # httpx reads the address of a redirection even though it does not follow it.
            return self._error(f"{self._shown} answered with a redirection to no address: {error}")
        except TimeoutError:
            detail = (
                f"no reward from {self._shown} within {self._config.timeout_s:g} s; {exchange.last_error}"
            )
            cut = self._cut(detail, 500)
            return VerificationOutcome(math.nan, VerificationStatus.TIMEOUT, cut, exchange.is_away)
        except _GivenUpError:
            failure = self._error(
                f"{self._shown} failed {1 + self._config.num_retries} times; last: {exchange.last_error}"
            )
            return replace(failure, is_away=exchange.is_away)

    async def _reply(self, fields: Mapping[str, Any], exchange: Exchange) -> str:
        """Send a request with these fields until it is answered, and return the text of the reply.

        Raises:
            NoRewardError: If the reply is of no use.
        """
        # json escapes lone surrogates, which a tokenizer may produce and which UTF-8 cannot encode.
        body = json.dumps(fields)
        pause_s = FIRST_PAUSE_S
        for attempt in range(1 + self._config.num_retries):
            try:
                async with exchange.slots:
                    return await self._request(body, exchange.client)
            except (_TryAgainError, httpx.TransportError) as error:
                exchange.last_error = self._cut(f"{type(error).__name__}: {error}")
                exchange.is_away = not isinstance(error, _TryAgainError) or error.is_away
                named_s = error.pause_s if isinstance(error, _TryAgainError) else 0.0
            if attempt < self._config.num_retries:
                self._counts.add_restart()
                # Jitter: requests that failed together must not all return together.
                await asyncio.sleep(max(pause_s * random.uniform(0.5, 1.0), named_s))
                pause_s = min(MAX_PAUSE_S, 2 * pause_s)
        raise _GivenUpError

    async def _request(self, body: str, client: httpx.AsyncClient) -> str:
        async with client.stream("POST", self._url, content=body) as reply:
            encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
            content = bytearray()
            # Read in chunks, so that a reply without end cannot fill the memory, and as they were sent: httpx expands
            # a compressed chunk as a whole.
            async for chunk in reply.aiter_raw():
                content += chunk
                if len(content) > self._max_reply_bytes:
                    break
        text = content.decode(errors="replace") if encoding == "identity" else f"({encoding})"
        if reply.status_code in RETRIED_STATUSES:
            raise _TryAgainError(
                f"status {reply.status_code}: {self._cut(text)}",
                reply.status_code in AWAY_STATUSES,
                _named_pause_s(reply.headers.get("Retry-After", "")),
            )
        if reply.status_code != 200:
            raise NoRewardError(f"{self._shown} answered with status {reply.status_code}: {self._cut(text)}")
        if len(content) > self._max_reply_bytes:
            raise NoRewardError(f"{self._shown} answered with more than {self._max_reply_bytes} bytes")
        if encoding != "identity":
            raise NoRewardError(
                f"{self._shown} answered with Content-Encoding: {encoding}, although it was asked for none: switch "
                "compression off"
            )
        return text

    def _error(self, detail: str) -> VerificationOutcome:
        return VerificationOutcome(math.nan, VerificationStatus.ERROR, self._cut(detail, 500))

    def _cut(self, text: str, length: int = 200) -> str:
        """Shorten a text for a message. A server may repeat the address that it was asked at, with its secrets."""
        # Redacted before it is cut, because a part of a secret would not be recognized.
        shown = redact(text[: 10 * length], self._secrets)[:length]
        # A reply must not write lines of its own, or move the cursor, in the log that shows it.
        return "".join(letter if letter.isprintable() else " " for letter in shown)


def token_of(config: RequestConfig, table: str) -> str:
    """Return the bearer token of requests; "" if they have none.

    Raises:
        ValueError: If token_variable names an environment variable that is not set or is no token.
    """
    if config.token_variable is None:
        return ""
    key = f"{table}.token_variable = {config.token_variable!r}"
    if not os.environ.get(config.token_variable):
        raise ValueError(f"{key}: this environment variable is not set")
    token = os.environ[config.token_variable].strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError(f"{key}: the variable must hold ASCII characters without spaces")
    return token


def _named_pause_s(retry_after: str) -> float:
    """Return the pause in seconds that a server asks for; 0 for dates, which depend on two clocks."""
    return min(float(retry_after), MAX_NAMED_PAUSE_S) if re.fullmatch(r"[0-9]{1,6}", retry_after) else 0.0
