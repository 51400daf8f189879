r"""Verification by a user's HTTP server: `reward.verifier = "http://host:8000/verify"`.

    POST {"response": "... \\boxed{42}", "answer": "42", ...}  ->  200 {"reward": 1.0}

Each response is one request, with the further fields of `Sample` that reward.http.fields names; `remote` sends it. A
status that is not retried, or a reply without a reward in [0, 1], is an `error` outcome immediately; a server that
cannot give a reward replies {"error": "why"}, which counts whatever else the reply has. Errors and timeouts are counted
and never trained on. The server must be deterministic, because a request may be repeated after its reply was lost.
"""

import json
from typing import Any

from megatron_prime.config.tables.reward import HttpRewardConfig
from megatron_prime.rewards.outcome import VerificationOutcome, VerificationStatus
from megatron_prime.rewards.remote import Exchange, NoRewardError, RemoteVerifier
from megatron_prime.sample import Sample

MAX_REPLY_BYTES = 1 << 16


class HttpEndpoint(RemoteVerifier):
    """Verifies batches of responses by a user's server."""

    def __init__(self, url: str, config: HttpRewardConfig) -> None:
        """Read the access token; no request is sent yet.

        Raises:
            ValueError: If reward.http.token_variable names an environment variable that is not set or is no token.
        """
        super().__init__(url, config, "reward.http", MAX_REPLY_BYTES)
        self._fields = config.fields

    async def _outcome(self, sample: Sample, exchange: Exchange) -> VerificationOutcome:
        fields = {"response": sample.response_text, "answer": sample.answer}
        fields |= sample.json_fields(self._fields)
        text = await self._reply(fields, exchange)
        try:
            reply = json.loads(text, object_pairs_hook=_without_repetitions)
        except (ValueError, RecursionError) as error:
            raise NoRewardError(
                f"the reward server's reply is not JSON ({error}): {self._cut(text)}"
            ) from error
        if isinstance(reply, dict) and reply.get("error"):
            reason = reply["error"] if isinstance(reply["error"], str) else text
            raise NoRewardError(f"the reward server gives no reward: {self._cut(reason)}")
        reward = reply.get("reward") if isinstance(reply, dict) else None
        # bool is a subclass of int, but true is more likely a mistake of the server than a reward of 1.
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0.0 <= reward <= 1.0:
            raise NoRewardError(f'the reward server\'s reply has no "reward" in [0, 1]: {self._cut(text)}')
        return VerificationOutcome(float(reward), VerificationStatus.OK)


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key occurs twice")
    return fields
