r"""Verification by a user's HTTP server: `reward.verifier = "http://host:8000/verify"`.

    POST {"response": "... \\boxed{42}", "answer": "42", ...}  ->  200 {"reward": 1.0}

Each response is one request, with the further fields of `Sample` that reward.http.fields names. At most
reward.http.max_concurrency requests run at a time, and each has a deadline over all its attempts. Failed connections
and the statuses 429, 500, 502, 503 and 504 are retried with exponential backoff. Any other status, or a reply without a
reward in [0, 1], is an `error` outcome immediately; a server that cannot give a reward replies {"error": "why"}, which
counts whatever else the reply has. Errors and timeouts are counted and never trained on. The server must be
deterministic, because a request may be repeated after its reply was lost.

A reply must not harm the trainer and must belong to its request: each request has a connection of its own, since
surplus bytes on a connection would be read as the reply to the next request; a compressed reply is refused, since a few
bytes may expand to gigabytes; so is one of more than MAX_REPLY_BYTES, or one that names a key twice.

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
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import httpx

from megatron_prime.config.redaction import redact, secrets_of
from megatron_prime.config.tables.reward import HttpRewardConfig
from megatron_prime.rewards.outcome import OutcomeCounts, VerificationOutcome, VerificationStatus
from megatron_prime.sample import Sample

# At its level INFO, httpx logs the whole URL of every request.
logging.getLogger("httpx").setLevel(logging.WARNING)
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
MAX_REPLY_BYTES = 1 << 16
RETRIED_STATUSES = {429, 500, 502, 503, 504}
AWAY_STATUSES = {429, 502, 503, 504}
"""Replies of a proxy without a server behind it, or of a server that takes no requests; 500 is about the request."""


class _TryAgainError(Exception):
    """A transient failure."""

    def __init__(self, text: str, is_away: bool) -> None:
        super().__init__(text)
        self.is_away = is_away


class HttpEndpoint:
    """Verifies batches of responses by a server, with the interface of `VerifierPool`."""

    def __init__(self, url: str, config: HttpRewardConfig) -> None:
        """Read the access token; no request is sent yet.

        Raises:
            ValueError: If reward.http.token_variable names an environment variable that is not set or is no token.
        """
        self._url = url
        self._shown = redact(url)
        self._secrets = secrets_of(url)
        self._config = config
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if config.token_variable is not None:
            if not os.environ.get(config.token_variable):
                raise ValueError(
                    f"reward.http.token_variable = {config.token_variable!r}: this environment variable is not set"
                )
            token = os.environ[config.token_variable].strip()
            if not re.fullmatch(r"[!-~]+", token):
                raise ValueError(
                    f"reward.http.token_variable = {config.token_variable!r}: the variable must hold ASCII characters "
                    "without spaces"
                )
            self._headers["Authorization"] = f"Bearer {token}"
            self._secrets.add(token)
        # Worker processes import this package, and have no use for the logs.
        from megatron_prime.observability.activity import VERIFIER, worker

        self._worker = worker(f"verifier {self._shown}", VERIFIER)
        self._counts = OutcomeCounts()
        self._answered: Sample | None = None
        """A response that the server has given a reward for."""
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
        # Each batch has an event loop of its own, so the client, whose connections belong to a loop, lives as long as
        # a batch.
        outcomes = asyncio.run(self._verify_all(samples))
        self._counts.add(outcomes)
        for sample, outcome in zip(samples, outcomes, strict=True):
            if outcome.status is VerificationStatus.OK:
                self._answered = sample
                break
        return outcomes

    def close(self) -> None:
        """Send no further request of a batch; connections are closed after each batch."""
        self._is_closed = True

    async def _verify_all(self, samples: Sequence[Sample]) -> list[VerificationOutcome]:
        slots = asyncio.Semaphore(self._config.max_concurrency)
        limits = httpx.Limits(max_connections=self._config.max_concurrency, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            # With trust_env, httpx would send the requests through a proxy that the environment names.
            headers=self._headers,
            limits=limits,
            timeout=self._config.timeout_s,
            trust_env=False,
        ) as client:

            async def verify(sample: Sample) -> VerificationOutcome:
                # The deadline begins when a slot is free: waiting for other requests does not count.
                async with slots:
                    if self._is_closed:
                        raise RuntimeError("this HttpEndpoint was closed during a batch")
                    self._worker.begin()
                    try:
                        return await self._verify_one(client, sample)
                    finally:
                        self._worker.end()

            self._worker.submit(len(samples))
            outcomes = list(await asyncio.gather(*map(verify, samples)))
            unanswered = [row for row, outcome in enumerate(outcomes) if outcome.is_away]
            # A server that gave any reply is slow with the responses that ran into the deadline, not away.
            if all(outcome.status is VerificationStatus.TIMEOUT for outcome in outcomes):
                unanswered = [*range(len(outcomes))]
            if unanswered and await self._is_there(client, samples, outcomes):
                # It may have come back in the meantime; what it does not answer now is not its absence.
                again = await asyncio.gather(*(verify(samples[row]) for row in unanswered))
                for row, outcome in zip(unanswered, again, strict=True):
                    outcomes[row] = replace(outcome, is_away=False)
            else:
                for row in unanswered:
                    outcomes[row] = replace(outcomes[row], is_away=True)
            return outcomes

    async def _is_there(
        self,
        client: httpx.AsyncClient,
        samples: Sequence[Sample],
        outcomes: Sequence[VerificationOutcome],
    ) -> bool:
        """Return whether the server answers a request again that it has given a reward for."""
        answered = self._answered
        for sample, outcome in zip(samples, outcomes, strict=True):
            if outcome.status is VerificationStatus.OK:
                answered = sample
        if answered is None:
            return False
        return (await self._verify_one(client, answered)).status is VerificationStatus.OK

    async def _verify_one(self, client: httpx.AsyncClient, sample: Sample) -> VerificationOutcome:
        last_error, is_away = "", False
        try:
            async with asyncio.timeout(self._config.timeout_s):
                for attempt in range(1 + self._config.num_retries):
                    if attempt:
                        self._counts.add_restart()
                        pause = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
                        # Jitter: requests that failed together must not all return together.
                        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    try:
                        return await self._request(client, sample)
                    except (_TryAgainError, httpx.TransportError) as error:
                        last_error = self._cut(f"{type(error).__name__}: {error}")
                        is_away = not isinstance(error, _TryAgainError) or error.is_away
        except httpx.InvalidURL as error:
            # httpx reads the address of a redirection even though it does not follow it.
            return self._error(f"{self._shown} answered with a redirection to no address: {error}")
        except TimeoutError:
            detail = f"no reward from {self._shown} within {self._config.timeout_s:g} s; {last_error}"
            return VerificationOutcome(math.nan, VerificationStatus.TIMEOUT, self._cut(detail, 500), is_away)
        failure = self._error(
            f"{self._shown} failed {1 + self._config.num_retries} times; last: {last_error}"
        )
        return replace(failure, is_away=is_away)

    async def _request(self, client: httpx.AsyncClient, sample: Sample) -> VerificationOutcome:
        fields = {"response": sample.response_text, "answer": sample.answer}
        fields |= {name: getattr(sample, name) for name in self._config.fields}
        # json escapes lone surrogates, which a tokenizer may produce and which UTF-8 cannot encode.
        body = json.dumps(fields)
        async with client.stream("POST", self._url, content=body) as reply:
            encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
            content = bytearray()
            # Read in chunks, so that a reply without end cannot fill the memory, and as they were sent: httpx expands
            # a compressed chunk as a whole.
            async for chunk in reply.aiter_raw():
                content += chunk
                if len(content) > MAX_REPLY_BYTES:
                    break
        text = content.decode(errors="replace") if encoding == "identity" else f"({encoding})"
        if reply.status_code in RETRIED_STATUSES:
            raise _TryAgainError(
                f"status {reply.status_code}: {self._cut(text)}", reply.status_code in AWAY_STATUSES
            )
        if reply.status_code != 200:
            return self._error(f"{self._shown} answered with status {reply.status_code}: {self._cut(text)}")
        if len(content) > MAX_REPLY_BYTES:
            return self._error(f"{self._shown} answered with more than {MAX_REPLY_BYTES} bytes")
        if encoding != "identity":
            return self._error(
                f"{self._shown} answered with Content-Encoding: {encoding}, although it was asked for none: switch "
                "compression off"
            )
        return self._outcome(text)

    def _outcome(self, text: str) -> VerificationOutcome:
        try:
            reply = json.loads(text, object_pairs_hook=_without_repetitions)
        except (ValueError, RecursionError) as error:
            return self._error(f"the reward server's reply is not JSON ({error}): {self._cut(text)}")
        if isinstance(reply, dict) and reply.get("error"):
            reason = reply["error"] if isinstance(reply["error"], str) else text
            return self._error(f"the reward server gives no reward: {self._cut(reason)}")
        reward = reply.get("reward") if isinstance(reply, dict) else None
        # bool is a subclass of int, but true is more likely a mistake of the server than a reward of 1.
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0.0 <= reward <= 1.0:
            return self._error(f'the reward server\'s reply has no "reward" in [0, 1]: {self._cut(text)}')
        return VerificationOutcome(float(reward), VerificationStatus.OK)

    def _error(self, detail: str) -> VerificationOutcome:
        return VerificationOutcome(math.nan, VerificationStatus.ERROR, self._cut(detail, 500))

    def _cut(self, text: str, length: int = 200) -> str:
        """Shorten a text for a message. A server may repeat the address that it was asked at, with its secrets."""
        # Redacted before it is cut, because a part of a secret would not be recognized.
        shown = redact(text[: 10 * length], self._secrets)[:length]
        # A reply must not write lines of its own, or move the cursor, in the log that shows it.
        return "".join(letter if letter.isprintable() else " " for letter in shown)


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key occurs twice")
    return fields
