"""The records that pass between the layers.

Glossary: P prompts, G = group_size responses a prompt, B = P * G responses, T response tokens (right-padded to the
longest response of the batch). A *rollout* is one sampled response; a *group* is all rollouts of one prompt at one
policy version; a *batch* is what one step trains on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import torch


class Decoder(Protocol):
    """The part of a tokenizer that decodes tokens to text."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Return the text of the tokens."""
        ...


class FinishReason(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    """The model sampled an end-of-sequence token (which is part of the response)."""
    LENGTH = "length"
    """The response reached max_response_tokens: it is truncated."""
    ABORT = "abort"
    """The engine was told to stop; the response is partial."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem to solve."""

    index: int
    """Row in the data set, unique over its files; the key of every per-prompt random stream."""
    token_ids: tuple[int, ...]
    """What the engine is given: never empty, chat template applied."""
    answer: str
    """Ground truth, handed to the verifier as it stands in the data."""
    source: str = ""
    """Name of the data source, for metrics by source."""
    ability: str = ""
    """What it asks for, as the data names it ("math", "code"), for verifiers that go by it; "" where unsaid."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How an engine samples. temperature 0 is greedy."""

    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    prompt: Prompt
    sample_index: int
    """0 .. group_size - 1 within its group."""
    response_ids: tuple[int, ...]
    """Sampled token ids, the end-of-sequence token included; at least one."""
    rollout_logprobs: tuple[float, ...]
    """The engine's log-probability of each response token, at the sampling temperature, in nats."""
    finish_reason: FinishReason
    policy_version: int
    """Number of weight syncs whose weights sampled this response; its first token's where version_spans says more."""
    outcome_reward: float = float("nan")
    """Verified outcome in [0, 1]; NaN until verified, and after a verifier error (which never trains)."""
    version_spans: tuple[tuple[int, int, int], ...] = ()
    """(policy_version, first token, end token), in order and joining to all tokens, when a weight sync came amid
    the response; empty when policy_version sampled all of it."""
    routed_experts: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Integers [tokens - 1, layers, K]: the experts that the engine chose for each token of prompt and response but the
    last; None unless rollout.sglang.routing_replay asked for them."""

    def __post_init__(self) -> None:
        assert self.response_ids, "a response has at least one token"
        assert len(self.response_ids) == len(self.rollout_logprobs)

    def with_outcome(self, outcome_reward: float) -> "Rollout":
        """The same rollout, verified."""
        return replace(self, outcome_reward=outcome_reward)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """What one step trains on; every rank holds the same global batch."""

    rollouts: tuple[Rollout, ...]
    response_mask_BT: torch.Tensor
    """bool [B, T]; True on response tokens, right-padded."""
    rollout_logprobs_BT: torch.Tensor
    """float32 [B, T], nats, 0 on padding."""
    outcome_rewards_B: torch.Tensor
    """float32 [B] in [0, 1]."""
    group_ids_B: torch.Tensor
    """int64 [B]; rows with equal ids answer the same prompt."""
    step_ids_BT: torch.Tensor | None = None
    """int64 [B, T] reasoning step of each token, nondecreasing along T; only for step granularity."""
    stats: dict[str, float] = field(default_factory=dict)
    """How it was collected: prompts sampled, kept, truncated, rounds..."""
    outcome_penalties_B: torch.Tensor | None = None
    """float32 [B], at most 0: what over-long responses lose of their outcome in the advantages; None for nothing."""
    is_trained_B: torch.Tensor | None = None
    """bool [B]; False leaves a row out of both losses, not out of its group's baseline; None trains all."""

    @property
    def num_rows(self) -> int:
        """B, the number of responses."""
        return len(self.rollouts)

    @property
    def num_response_tokens(self) -> int:
        """Response tokens of the whole batch."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)

    def to(self, device: torch.device) -> "RolloutBatch":
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            response_mask_BT=self.response_mask_BT.to(device),
            rollout_logprobs_BT=self.rollout_logprobs_BT.to(device),
            outcome_rewards_B=self.outcome_rewards_B.to(device),
            group_ids_B=self.group_ids_B.to(device),
            step_ids_BT=None if self.step_ids_BT is None else self.step_ids_BT.to(device),
            outcome_penalties_B=None
            if self.outcome_penalties_B is None
            else self.outcome_penalties_B.to(device),
            is_trained_B=None if self.is_trained_B is None else self.is_trained_B.to(device),
        )

    def trained_rows(self, rows: Sequence[int]) -> list[int]:
        """Those of the rows that belong into a loss."""
        if self.is_trained_B is None:
            return list(rows)
        is_trained = self.is_trained_B.tolist()
        return [row for row in rows if is_trained[row]]

    @staticmethod
    def from_rollouts(
        rollouts: Sequence[Rollout],
        group_ids: Sequence[int],
        step_ids: Sequence[Sequence[int]] | None = None,
        stats: dict[str, float] | None = None,
    ) -> "RolloutBatch":
        """Pad rollouts into a batch. Raises ValueError when there is none."""
        if not rollouts:
            raise ValueError("a batch needs at least one rollout")
        longest = max(len(rollout.response_ids) for rollout in rollouts)
        mask_BT = torch.zeros(len(rollouts), longest, dtype=torch.bool)
        logprobs_BT = torch.zeros(len(rollouts), longest)
        steps_BT = None if step_ids is None else torch.zeros(len(rollouts), longest, dtype=torch.int64)
        for row, rollout in enumerate(rollouts):
            length = len(rollout.response_ids)
            mask_BT[row, :length] = True
            logprobs_BT[row, :length] = torch.tensor(rollout.rollout_logprobs)
            if steps_BT is not None and step_ids is not None:
                steps_BT[row, :length] = torch.tensor(step_ids[row])
                steps_BT[row, length:] = steps_BT[row, length - 1]
        return RolloutBatch(
            rollouts=tuple(rollouts),
            response_mask_BT=mask_BT,
            rollout_logprobs_BT=logprobs_BT,
            outcome_rewards_B=torch.tensor([rollout.outcome_reward for rollout in rollouts]),
            group_ids_B=torch.tensor(list(group_ids), dtype=torch.int64),
            step_ids_BT=steps_BT,
            stats=dict(stats or {}),
        )


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Blocks of HF-named tensors on their way into an engine, for one sync."""

    blocks: tuple["WeightBlock", ...]
    policy_version: int


@dataclass(frozen=True, slots=True)
class WeightBlock:
    """Entries [start, start + length) along `dim` of the HF tensor `hf_name`; all other dims are whole."""

    hf_name: str
    dim: int
    start: int
    tensor: torch.Tensor
