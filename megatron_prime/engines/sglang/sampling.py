"""Requests to SGLang and its answers, strictly checked: it ignores unknown fields, and a bad token id ends it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_prime.engines.conversation import SampledTurn
from megatron_prime.engines.requests import ModelLimits, StreamKey
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import FinishReason, SamplingParams


def check_stop_tokens(params: SamplingParams, limits: ModelLimits) -> None:
    """Raise ValueError for stop tokens outside the model's vocabulary: they would end the server."""
    if any(not 0 <= token < limits.vocab_size for token in params.stop_token_ids):
        raise ValueError(
            f"stop_token_ids = {params.stop_token_ids} must lie in the vocabulary of {limits.vocab_size}"
        )


_NO_OTHER_CHANGES = {
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
}
"""Options, switched off, that would change the distribution of the tokens or their log-probs.

A server may have other defaults (--preferred-sampling-params) for what a request leaves out.
"""


def request_body(
    input_ids: Sequence[int],
    max_tokens: int,
    params: SamplingParams,
    request_id: str,
    *,
    seed: int | None = None,
    return_routing: bool = False,
) -> dict[str, Any]:
    """Return the body of POST /generate for one turn.

    Args:
        input_ids: a valid prompt, and the turns and replies so far.
        max_tokens: most tokens of the turn.
        params: valid sampling parameters; their limits are not used.
        request_id: unique among the server's requests.
        seed: in [0, 2**31), for servers with deterministic inference. They mix in the position of each token, so that
            the turns of a response share one.
        return_routing: whether to ask for the experts of each token.
    """
    sampling: dict[str, Any] = {
        "max_new_tokens": max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stop_token_ids": list(params.stop_token_ids),
        **_NO_OTHER_CHANGES,
    }
    if seed is not None:
        sampling["sampling_seed"] = seed
    body = {
        "rid": request_id,
        "input_ids": list(input_ids),
        "sampling_params": sampling,
        "return_logprob": True,
    }
    return body | {"return_routed_experts": True} if return_routing else body


def seed_of(key: StreamKey) -> int:
    """Return a response's seed for deterministic inference, in [0, 2**31)."""
    return int.from_bytes(key.digest(4), "little") >> 1


def parse_completion(
    answer: Mapping[str, Any],
    version_of: Callable[[str], int],
    num_input_tokens: int = 0,
    routing: RoutingReader | None = None,
) -> SampledTurn:
    """Parse an answer of POST /generate, with the experts of all tokens if there is a reader.

    A span's version is NO_WEIGHTS for weights that are not from a sync of this run.

    Args:
        answer: the decoded JSON.
        version_of: returns the policy version of weights by the name that the server states.
        num_input_tokens: length of the input; needed with a reader.
        routing: reader of the experts.

    Raises EngineError for anything but a complete and plausible answer, so that no wrong number reaches the trainer.
    """
    try:
        meta = answer["meta_info"]
        token_ids = tuple(int(token) for token in answer["output_ids"])
        pairs = [(float(entry[0]), int(entry[1])) for entry in meta.get("output_token_logprobs") or []]
        finish_type = str(meta["finish_reason"]["type"])
        spans = _version_spans(meta, len(token_ids), version_of)
        experts = None
        if routing is not None and token_ids:
            experts = routing.read(meta, num_input_tokens + len(token_ids))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EngineError(f"an answer of SGLang is incomplete ({error!r}): {str(answer)[:300]}") from error
    # The trainer computes log-probs of token_ids; paired with those of other tokens they would train nonsense.
    if tuple(token for _, token in pairs) != token_ids:
        raise EngineError(f"SGLang's log-probs belong to other tokens than its answer: {str(answer)[:300]}")
    # Rounding may put the log-prob of a certain token a little above 0.
    if any(not math.isfinite(logprob) or logprob > 1e-3 for logprob, _ in pairs):
        raise EngineError("SGLang returned invalid log-probs (NaN or above 0): the served weights are broken")
    if finish_type not in set(FinishReason):
        raise EngineError(f"SGLang ended a response for an unknown reason {finish_type!r}")
    logprobs = tuple(logprob for logprob, _ in pairs)
    return SampledTurn(token_ids, logprobs, FinishReason(finish_type), spans, experts)


def _version_spans(
    meta: Mapping[str, Any], num_tokens: int, version_of: Callable[[str], int]
) -> tuple[tuple[int, int, int], ...]:
    spans = [
        (version_of(str(span["version"])), int(span["start"]), int(span["end"]))
        for span in meta.get("weight_versions") or []
        if int(span["end"]) > int(span["start"])
    ]
    if not spans:
        return ((version_of(str(meta["weight_version"])), 0, num_tokens),)
    ends = [0, *(end for _, _, end in spans)]
    if [start for _, start, _ in spans] != ends[:-1] or ends[-1] != num_tokens:
        raise ValueError(f"version spans {spans} don't add up to {num_tokens} tokens")
    return tuple(spans)
