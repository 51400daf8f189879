"""Records and protocols shared by all packages.

Glossary: P prompts, G = group_size responses per prompt, B = P * G responses, T response tokens (right-padded to the
longest response of the batch). A *rollout* is one sampled response; a *group* is all rollouts of one prompt at one
policy version; a *batch* is all rollouts that one step trains on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import torch


class Decoder(Protocol):
    """A tokenizer's method for converting tokens to text."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Return the text of `token_ids`."""
        ...


class FinishReason(StrEnum):
    """The reason why a response ended."""

    STOP = "stop"
    """The model sampled an end-of-sequence token, which is part of the response."""
    LENGTH = "length"
    """The response reached max_response_tokens and is truncated."""
    ABORT = "abort"
    """The engine was stopped; the response is incomplete."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem of the data set."""

    index: int
    """Row in the data set, counted over all its files; seeds the random stream of the prompt."""
    token_ids: tuple[int, ...]
    """Input of the engine, with the chat template applied; never empty."""
    answer: str
    """Ground truth, passed to the verifier unchanged."""
    source: str = ""
    """Name of the data source, for metrics per source; "" if unknown."""
    ability: str = ""
    """Kind of problem as named in the data ("math", "code"), which may select the verifier; "" if unknown."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling options of an engine; temperature 0 decodes greedily."""

    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    prompt: Prompt
    sample_index: int
    """Index of the response in its group, 0 .. group_size - 1."""
    response_ids: tuple[int, ...]
    """Sampled token ids, at least one, including the end-of-sequence token."""
    rollout_logprobs: tuple[float, ...]
    """Log-probability of each response token under the engine, at the sampling temperature, in nats."""
    finish_reason: FinishReason
    policy_version: int
    """Version of the weights, counted in weight syncs, that sampled the response (its first token, if version_spans
    is not empty)."""
    outcome_reward: float = float("nan")
    """Verified outcome in [0, 1]; NaN before verification and after a verifier error. Such a response is never
    trained on."""
    version_spans: tuple[tuple[int, int, int], ...] = ()
    """(policy_version, first token, end token) of each part of a response that a weight sync interrupted, in order and
    covering all tokens; empty if policy_version sampled the whole response."""
    routed_experts: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Integers [tokens - 1, layers, K]: the top-K experts that the engine chose for each token of prompt and response
    except the last; None unless rollout.sglang.routing_replay is enabled."""
    reason: str = ""
    """The verifier's reason for the outcome, or the description of its error; "" before verification."""

    def __post_init__(self) -> None:
        assert self.response_ids, "a response has at least one token"
        assert len(self.response_ids) == len(self.rollout_logprobs)

    def with_outcome(self, outcome_reward: float, reason: str = "") -> "Rollout":
        """Return a copy with the given outcome and the reason for it."""
        return replace(self, outcome_reward=outcome_reward, reason=reason)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """All rollouts that one step trains on; every rank holds the same global batch."""

    rollouts: tuple[Rollout, ...]
    response_mask_BT: torch.Tensor
    """bool [B, T]; True on response tokens, False on the padding at the right."""
    rollout_logprobs_BT: torch.Tensor
    """float32 [B, T], in nats; 0 on padding."""
    outcome_rewards_B: torch.Tensor
    """float32 [B] in [0, 1]."""
    group_ids_B: torch.Tensor
    """int64 [B]; rows with equal ids form one group."""
    step_ids_BT: torch.Tensor | None = None
    """int64 [B, T]; reasoning step of each token, nondecreasing along T. None unless rewards have step granularity."""
    stats: dict[str, float] = field(default_factory=dict)
    """Statistics of the collection; see `CollectionTally.stats`."""
    outcome_penalties_B: torch.Tensor | None = None
    """float32 [B], at most 0; added to the outcomes of overlong responses in the advantages. None for no penalty."""
    is_trained_B: torch.Tensor | None = None
    """bool [B]; False excludes a row from both losses, but not from the baseline of its group. None trains all rows."""

    @property
    def num_rows(self) -> int:
        """Number of responses, B."""
        return len(self.rollouts)

    @property
    def num_response_tokens(self) -> int:
        """Number of response tokens in the batch."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)

    def to(self, device: torch.device) -> "RolloutBatch":
        """Return a copy of the batch with its tensors on `device`."""
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
        """Return the subset of `rows` that enters the losses."""
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
        """Pad rollouts into a batch.

        Args:
            rollouts: the rows of the batch.
            group_ids: group of each row.
            step_ids: reasoning step of each token of each row; None leaves step_ids_BT empty.
            stats: statistics of the collection.

        Raises:
            ValueError: there are no rollouts.
        """
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
                # The padding repeats the last step, so that the ids do not decrease along T.
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
class WeightBlock:
    """The slice of the HF tensor `hf_name` that starts at `start` along `dim`; all other dims are whole."""

    hf_name: str
    dim: int
    start: int
    tensor: torch.Tensor
