"""Requests to SGLang and its answers, strictly checked: it ignores unknown fields, and a bad token id ends it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_prime.engines.requests import ModelLimits, StreamKey
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import FinishReason, Prompt, Rollout, SamplingParams


def check_stop_tokens(params: SamplingParams, limits: ModelLimits) -> None:
    """Raise ValueError for stop tokens outside the model's vocabulary: they would end the server."""
    if any(not 0 <= token < limits.vocab_size for token in params.stop_token_ids):
        raise ValueError(
            f"stop_token_ids = {params.stop_token_ids} must lie in the vocabulary of {limits.vocab_size}"
        )


def request_body(
    prompt: Prompt,
    params: SamplingParams,
    request_id: str,
    *,
    seed: int | None = None,
    return_routing: bool = False,
) -> dict[str, Any]:
    """Return the body of POST /generate for one response.

    Args:
        prompt: a valid prompt.
        params: valid sampling parameters.
        request_id: unique among the server's requests.
        seed: in [0, 2**31), for servers with deterministic inference.
        return_routing: whether to ask for the experts of each token.
    """
    sampling: dict[str, Any] = {
        "max_new_tokens": params.max_response_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stop_token_ids": list(params.stop_token_ids),
    }
    if seed is not None:
        sampling["sampling_seed"] = seed
    body = {
        "rid": request_id,
        "input_ids": list(prompt.token_ids),
        "sampling_params": sampling,
        "return_logprob": True,
    }
    return body | {"return_routed_experts": True} if return_routing else body


def seed_of(key: StreamKey) -> int:
    """Return a response's seed for deterministic inference, in [0, 2**31)."""
    return int.from_bytes(key.digest(4), "little") >> 1


@dataclass(frozen=True, slots=True)
class Completion:
    """A server's answer to one request."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    version_spans: tuple[tuple[int, int, int], ...]
    """(version, first token, end token); the version is NO_WEIGHTS for weights that are not from a sync of this run."""
    routed_experts: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """See Rollout.routed_experts."""

    @property
    def versions(self) -> frozenset[int]:
        """All versions that sampled the response."""
        return frozenset(version for version, _, _ in self.version_spans)

    def rollout(self, prompt: Prompt, sample_index: int) -> Rollout:
        """Return the rollout; the response must have at least one token."""
        return Rollout(
            prompt=prompt,
            sample_index=sample_index,
            response_ids=self.token_ids,
            rollout_logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            policy_version=self.version_spans[0][0],
            version_spans=self.version_spans if len(self.version_spans) > 1 else (),
            routed_experts=self.routed_experts,
        )


def parse_completion(
    answer: Mapping[str, Any],
    version_of: Callable[[str], int],
    num_prompt_tokens: int = 0,
    routing: RoutingReader | None = None,
) -> Completion:
    """Parse an answer of POST /generate, with the experts of all tokens if there is a reader.

    Args:
        answer: the decoded JSON.
        version_of: returns the policy version of weights by the name that the server states.
        num_prompt_tokens: length of the prompt; needed with a reader.
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
            experts = routing.read(meta, num_prompt_tokens + len(token_ids))
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
    return Completion(token_ids, logprobs, FinishReason(finish_type), spans, experts)


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
