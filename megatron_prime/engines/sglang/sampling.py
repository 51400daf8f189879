"""Requests to and answers from SGLang, checked here: it ignores unknown fields, and a bad token id kills it."""

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_prime.config.tables.rollout import SGLANG_RESERVED_POSITIONS
from megatron_prime.engines.local.sampling import StreamKey, check_sampling
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.hf.shape import read_shape
from megatron_prime.rollout.engine import NO_WEIGHTS, EngineError
from megatron_prime.types import FinishReason, Prompt, Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model can take."""

    vocab_size: int
    max_positions: int | None
    """Tokens of prompt and response together; None when the model states no limit."""

    @staticmethod
    def of(model_path: Path) -> "ModelLimits":
        """Return the limits of the model in a folder. Raises ValueError when its config.json cannot be read."""
        shape = read_shape(model_path)
        return ModelLimits(shape.vocab_size, shape.max_position_embeddings)


def check_request(
    prompts: Sequence[Prompt], params: SamplingParams, group_size: int, stream_key: int, limits: ModelLimits
) -> None:
    """Raises ValueError for arguments of `Engine.generate` that make no sense or that the model can't serve."""
    check_sampling(params, group_size, stream_key)
    if any(not 0 <= token < limits.vocab_size for token in params.stop_token_ids):
        raise ValueError(
            f"stop_token_ids = {params.stop_token_ids} must lie in the vocabulary of {limits.vocab_size}"
        )
    for prompt in prompts:
        if not prompt.token_ids:
            raise ValueError(f"prompt {prompt.index} has no tokens")
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < limits.vocab_size:
            raise ValueError(
                f"prompt {prompt.index} has tokens outside the model's vocabulary of {limits.vocab_size}: was it made "
                "with this model's tokenizer?"
            )
        _check_length(prompt, params, limits)


def _check_length(prompt: Prompt, params: SamplingParams, limits: ModelLimits) -> None:
    longest = len(prompt.token_ids) + params.max_response_tokens
    if limits.max_positions is not None and longest > limits.max_positions - SGLANG_RESERVED_POSITIONS:
        raise ValueError(
            f"prompt {prompt.index} has {len(prompt.token_ids)} tokens; with max_response_tokens = "
            f"{params.max_response_tokens} that exceeds the model's max_position_embeddings = {limits.max_positions}, "
            f"of which SGLang reserves {SGLANG_RESERVED_POSITIONS}: lower rollout.max_response_tokens or "
            "max_prompt_tokens"
        )


def request_body(
    prompt: Prompt,
    params: SamplingParams,
    request_id: str,
    *,
    max_response_tokens: int | None = None,
    seed: int | None = None,
    return_routing: bool = False,
) -> dict[str, Any]:
    """Body of POST /generate for one response.

    Args:
        prompt: checked.
        params: checked.
        request_id: for aborts.
        max_response_tokens: instead of that of params.
        seed: in [0, 2**31), for servers with deterministic inference.
        return_routing: ask for the experts of each token.
    """
    sampling: dict[str, Any] = {
        "max_new_tokens": max_response_tokens or params.max_response_tokens,
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
    """A response's seed for deterministic inference, in [0, 2**31)."""
    packed = struct.pack("<4Q", key.seed, key.stream_key, key.prompt_index, key.draw_index)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=4).digest(), "little") >> 1


@dataclass(frozen=True, slots=True)
class Completion:
    """What a server answered to one request."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    version_spans: tuple[tuple[int, int, int], ...]
    """(version, first token, end token); NO_WEIGHTS for weights that no sync of ours has named."""
    routed_experts: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """See Rollout.routed_experts."""

    @property
    def versions(self) -> frozenset[int]:
        """All versions that sampled it."""
        return frozenset(version for version, _, _ in self.version_spans)

    def rollout(self, prompt: Prompt, sample_index: int) -> Rollout:
        """As the trainer sees it. Needs at least one token."""
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
    answer: Mapping[str, Any], num_prompt_tokens: int = 0, routing: RoutingReader | None = None
) -> Completion:
    """Read an answer of POST /generate, with the experts of its tokens and the prompt's where there is a reader.

    Raises EngineError when it is not what we asked for, so that no wrong number reaches the trainer.
    """
    try:
        meta = answer["meta_info"]
        token_ids = tuple(int(token) for token in answer["output_ids"])
        pairs = [(float(entry[0]), int(entry[1])) for entry in meta.get("output_token_logprobs") or []]
        finish_type = str(meta["finish_reason"]["type"])
        spans = _version_spans(meta, len(token_ids))
        experts = None
        if routing is not None and token_ids:
            experts = routing.read(meta, num_prompt_tokens + len(token_ids))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EngineError(
            f"an answer of SGLang lacks what we asked for ({error!r}): {str(answer)[:300]}"
        ) from error
    if tuple(token for _, token in pairs) != token_ids:
        raise EngineError(f"SGLang's log-probs belong to other tokens than its answer: {str(answer)[:300]}")
    if any(not math.isfinite(logprob) or logprob > 1e-3 for logprob, _ in pairs):
        raise EngineError("SGLang returned log-probs that are no log-probs: the served weights are broken")
    if finish_type not in set(FinishReason):
        raise EngineError(f"SGLang ended a response for an unknown reason {finish_type!r}")
    logprobs = tuple(logprob for logprob, _ in pairs)
    return Completion(token_ids, logprobs, FinishReason(finish_type), spans, experts)


def _version_spans(meta: Mapping[str, Any], num_tokens: int) -> tuple[tuple[int, int, int], ...]:
    spans = [
        (parse_version(span["version"]), int(span["start"]), int(span["end"]))
        for span in meta.get("weight_versions") or []
        if int(span["end"]) > int(span["start"])
    ]
    if not spans:
        return ((parse_version(meta["weight_version"]), 0, num_tokens),)
    ends = [0, *(end for _, _, end in spans)]
    if [start for _, start, _ in spans] != ends[:-1] or ends[-1] != num_tokens:
        raise ValueError(f"version spans {spans} don't join to {num_tokens} tokens")
    return tuple(spans)


def parse_version(text: str) -> int:
    """A server's weight_version as a policy version; NO_WEIGHTS unless it is a decimal number."""
    return int(text) if text.isascii() and text.isdecimal() else NO_WEIGHTS
