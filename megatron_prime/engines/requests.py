"""Requests to a rollout engine: the random stream of each response, and the checks of `Engine.stream`'s arguments."""

import hashlib
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_prime.hf.shape import read_shape
from megatron_prime.types import Prompt, SamplingParams

_ATTEMPT = 1 << 32
"""Distance of the draw indices of two attempts: no call samples so many responses to a prompt."""


@dataclass(frozen=True, slots=True)
class StreamKey:
    """The identity of one response's random stream. All fields are in [0, 2**64).

    The key names the response and not its place in a batch, so that a response does not depend on batching, on the
    number of ranks, or on where a resumed run starts.
    """

    seed: int
    stream_key: int
    prompt_index: int
    draw_index: int
    """sample_index, plus group_size for every earlier occurrence of the prompt in the call; plus _ATTEMPT for every
    attempt at the response whose environment failed."""

    def uniforms(self, num_tokens: int) -> np.ndarray:
        """Return float64 [num_tokens] in [0, 1). A longer request starts with the numbers of a shorter one."""
        # Philox is counter-based: its 128-bit key names a stream, and streams of different keys are independent.
        key = int.from_bytes(self.digest(16), "little")
        return np.random.Generator(np.random.Philox(key=key)).random(num_tokens)

    def next_attempt(self) -> "StreamKey":
        """Return the key of another attempt at the same response."""
        return replace(self, draw_index=self.draw_index + _ATTEMPT)

    def digest(self, num_bytes: int) -> bytes:
        """Return a hash of the key."""
        packed = struct.pack("<4Q", self.seed, self.stream_key, self.prompt_index, self.draw_index)
        return hashlib.blake2b(packed, digest_size=num_bytes).digest()


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The limits of the sampled model."""

    vocab_size: int
    max_positions: int | None
    """Most tokens of prompt and response together; None when the model states no limit."""
    num_reserved: int = 0
    """Positions at the end of the context that the engine keeps for itself."""

    @staticmethod
    def of(model_path: Path, num_reserved: int = 0) -> "ModelLimits":
        """Return the limits of the model in a folder. Raises ValueError when its config.json can't be read."""
        shape = read_shape(model_path)
        return ModelLimits(shape.vocab_size, shape.max_position_embeddings, num_reserved)


def check_prompt(prompt: Prompt, params: SamplingParams, limits: ModelLimits) -> None:
    """Raise ValueError for a prompt that the model cannot respond to."""
    if not prompt.token_ids:
        raise ValueError(f"prompt {prompt.index} has no tokens")
    if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < limits.vocab_size:
        raise ValueError(
            f"prompt {prompt.index} has tokens outside the model's vocabulary of {limits.vocab_size}: are "
            "tokenizer and model from one checkpoint?"
        )
    _check_length(prompt, params, limits)


def check_sampling(params: SamplingParams, group_size: int, stream_key: int) -> None:
    """Raise ValueError for arguments of `Engine.stream` that are invalid for any model."""
    if params.max_response_tokens < 1:
        raise ValueError(f"max_response_tokens = {params.max_response_tokens} must be at least 1")
    if not 0 <= params.temperature < float("inf"):
        raise ValueError(f"temperature = {params.temperature} must be finite and not negative")
    if params.max_turns < 1:
        raise ValueError(f"max_turns = {params.max_turns} must be at least 1")
    if params.max_turn_tokens is not None and params.max_turn_tokens < 1:
        raise ValueError(f"max_turn_tokens = {params.max_turn_tokens} must be at least 1")
    if not 0 < params.top_p <= 1:
        raise ValueError(f"top_p = {params.top_p} must be in (0, 1]")
    if group_size < 1:
        raise ValueError(f"group_size = {group_size} must be at least 1")
    if not 0 <= stream_key < 1 << 64:
        raise ValueError(f"stream_key = {stream_key} must be in [0, 2**64)")


def _check_length(prompt: Prompt, params: SamplingParams, limits: ModelLimits) -> None:
    longest = len(prompt.token_ids) + params.max_response_tokens
    if limits.max_positions is not None and longest > limits.max_positions - limits.num_reserved:
        reserved = f", of which the engine reserves {limits.num_reserved}" if limits.num_reserved else ""
        raise ValueError(
            f"prompt {prompt.index} has {len(prompt.token_ids)} tokens; with max_response_tokens = "
            f"{params.max_response_tokens} that exceeds the model's max_position_embeddings = {limits.max_positions}"
            f"{reserved}: lower rollout.max_response_tokens or rollout.max_prompt_tokens"
        )
