"""Verification by a language model: `reward.verifier = "judge"`, with the settings of `[reward.judge]`.

    POST {url}/chat/completions {"model": ..., "messages": [the rendered template], ...}
      -> the text of the reply -> the last match of score_pattern -> the mean of all votes, on a scale from 0 to 1

A reply without a score on the scale is asked for once more, and then left out; if that happens to more than half of the
votes, the response has no reward. Requests, retries and absence are those of `remote`. Replies with a score are kept on
disk if there is a folder for them, so that a resumed run, or another one, has the same rewards at no cost.
"""

import asyncio
import functools
import json
from typing import Any
from urllib.parse import urlsplit

import regex

from megatron_prime.config.redaction import HIDDEN
from megatron_prime.config.tables.reward import JudgeConfig
from megatron_prime.rewards.judge.replies import StoredReplies
from megatron_prime.rewards.judge.template import RequestTemplate
from megatron_prime.rewards.outcome import VerificationOutcome, VerificationStatus
from megatron_prime.rewards.remote import Exchange, NoRewardError, RemoteVerifier
from megatron_prime.sample import Sample

MAX_REPLY_BYTES = 1 << 22
"""Bytes of a reply, which repeats every letter in several bytes at worst."""
NUM_TRIES = 2
"""Requests for a vote until its reply has a score."""
SEARCHED_CHARS = 1 << 16
"""Characters of the end of a reply in which a score is searched."""
MAX_SEARCH_S = 1.0
"""Time limit of that search: some patterns take exponentially long on some texts, and the policy influences both."""
SHOWN_CHARS = 300
"""Characters of the end of a reply that the reason of an outcome shows."""


class Judge(RemoteVerifier):
    """Verifies batches of responses by a language model."""

    def __init__(self, config: JudgeConfig) -> None:
        """Read the template and the access token, and open the folder of replies; no request is sent yet.

        Raises:
            ValueError: If one of them is missing or unusable.
        """
        parts = urlsplit(config.url)
        path = f"{parts.path.rstrip('/')}/chat/completions"
        super().__init__(
            parts._replace(path=path).geturl(), config, "reward.judge", MAX_REPLY_BYTES, config.votes
        )
        self._settings = config
        self._template = RequestTemplate(config)
        self._pattern = regex.compile(config.score_pattern)
        self._replies = None
        if config.cache_dir is not None:
            self._replies = StoredReplies(config.cache_dir, config.max_cache_mib << 20)
        # Credentials say nothing about the reply, and must not change what it is found by.
        self._place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"

    async def _outcome(self, sample: Sample, exchange: Exchange) -> VerificationOutcome:
        settings = self._settings
        try:
            prompt = self._template.render(sample)
        except ValueError as error:
            raise NoRewardError(str(error)) from error
        fields = {
            **settings.parameters,
            "model": settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }
        votes = [self._vote(fields, number, exchange) for number in range(settings.votes)]
        # All of them end before a failure counts, so that the votes that there are need not be asked for again.
        results = await asyncio.gather(*votes, return_exceptions=True)
        replies: list[tuple[float | None, str]] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            replies.append(result)
        scores = [score for score, _ in replies if score is not None]
        num_missing = len(replies) - len(scores)
        last = next((text for score, text in replies if score is None), "")
        if 2 * num_missing > len(replies):
            raise NoRewardError(
                f"{num_missing} of {len(replies)} replies of the judge have no score from {settings.min_score:g} to "
                f"{settings.max_score:g}, such as: {self._end_of(last)}"
            )
        mean = sum(scores) / len(scores)
        reward = (mean - settings.min_score) / (settings.max_score - settings.min_score)
        shown = ", ".join(f"{score:g}" for score in scores)
        reason = f"the judge gives {shown} of {settings.max_score:g}: {self._end_of(replies[0][1])}"
        return VerificationOutcome(min(1.0, max(0.0, reward)), VerificationStatus.OK, reason)

    async def _vote(
        self, fields: dict[str, Any], number: int, exchange: Exchange
    ) -> tuple[float | None, str]:
        """Return the score of one vote, or None, and the text of its reply."""
        key = StoredReplies.key({"url": self._place, "request": fields, "vote": number})
        if self._replies is not None and not exchange.is_probe:
            stored = self._replies.get(key)
            score = None if stored is None else await self._score(stored)
            if stored is not None and score is not None:
                return score, stored
        text, score = "", None
        for _ in range(NUM_TRIES):
            text, is_whole = self._content(await self._reply(fields, exchange))
            score = await self._score(text) if is_whole else None
            if score is not None:
                if self._replies is not None:
                    self._replies.put(key, text)
                break
        return score, text

    def _content(self, reply: str) -> tuple[str, bool]:
        """Return the text of a reply and whether it is whole. Raises NoRewardError if it is no completion."""
        try:
            choice = json.loads(reply)["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            kind = type(error).__name__
            raise NoRewardError(
                f"the judge's reply is no chat completion ({kind}): {self._cut(reply)}"
            ) from error
        if text is None:  # a model that ran out of tokens while it was thinking
            return "", False
        if not isinstance(text, str):
            raise NoRewardError(f"the content of the judge's reply is no text: {self._cut(reply)}")
        # A server may repeat the request's headers in an answer, which is kept and shown.
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text, reason != "length"

    async def _score(self, text: str) -> float | None:
        """Return the score that a reply ends with; None without one on the scale.

        Raises:
            NoRewardError: If the search takes too long.
        """
        search = functools.partial(self._pattern.findall, concurrent=True, timeout=MAX_SEARCH_S)
        try:
            # In a thread, so that other requests go on.
            matches = await asyncio.to_thread(search, text[-SEARCHED_CHARS:])
        except TimeoutError as error:
            raise NoRewardError(
                f"reward.judge.score_pattern needs more than {MAX_SEARCH_S:g} s to search a reply, which ends with: "
                f"{self._end_of(text)}"
            ) from error
        try:
            score = float(matches[-1])
        except (IndexError, ValueError):
            return None
        return score if self._settings.min_score <= score <= self._settings.max_score else None

    def _end_of(self, text: str) -> str:
        return self._cut(" ".join(text.split())[-SHOWN_CHARS:], SHOWN_CHARS) or "(nothing)"
