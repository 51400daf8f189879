"""Records and protocols shared by all packages.

Glossary: P prompts, G = group_size responses per prompt, B = P * G responses, T response tokens (right-padded to the
longest response of the batch). A *rollout* is one sampled response; a *group* is all rollouts of one prompt at one
policy version; a *batch* is all rollouts that one step trains on.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Protocol

import numpy as np
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
    messages: str = field(default="", repr=False)
    """Chat messages behind token_ids as a JSON list; "" where no verifier or environment of the run reads them."""
    metadata: str = field(default="", repr=False)
    """The row's other columns as a JSON object; "" as above."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling options of an engine; temperature 0 decodes greedily."""

    max_response_tokens: int
    """Most tokens of a response, an environment's replies included."""
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a turn."""
    max_turns: int = 1
    """Most turns of the policy, where an environment replies."""
    max_turn_tokens: int | None = None
    """Most tokens of one turn; None for what max_response_tokens leaves."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A part of a response of several turns: tokens that the policy wrote, then those of the environment's reply.

    Positions count the tokens of the response from 0. A turn begins where the one before it ends.
    """

    policy_end: int
    """End of the policy's tokens, of which there is at least one."""
    end: int
    """End of the reply: at least policy_end, and equal to it where the environment did not reply."""
    reward: float = 0.0
    """Reward that the environment gave for the turn, besides the outcome of the response."""


def policy_spans(turns: Sequence[Turn], num_tokens: int) -> list[tuple[int, int]]:
    """Return first position and end of each stretch of a response that the policy wrote: all of it without turns."""
    starts = (0, *(turn.end for turn in turns[:-1]))
    ends = [turn.policy_end for turn in turns] or [num_tokens]
    return list(zip(starts, ends, strict=True))


def scored_spans(turns: Sequence[Turn], num_tokens: int, scored_tokens: str) -> list[tuple[int, int]]:
    """Return first position and end of each stretch of a response that a PRM scores by `prm.scored_tokens`."""
    if scored_tokens == "all":
        return [(0, num_tokens)]
    if scored_tokens == "policy":
        return policy_spans(turns, num_tokens)
    return [(turn.policy_end, turn.end) for turn in turns]


def policy_mask(turns: Sequence[Turn], num_tokens: int) -> list[bool]:
    """Return whether the policy wrote each token of a response."""
    mask = [False] * num_tokens
    for start, end in policy_spans(turns, num_tokens):
        mask[start:end] = [True] * (end - start)
    return mask


def scored_tokens_BT(  # noqa: N802
    response_mask_BT: torch.Tensor, policy_mask_BT: torch.Tensor, scored_tokens: str
) -> torch.Tensor:
    """Return a bool tensor, true on the tokens that a PRM scores by `prm.scored_tokens`.

    Args:
        response_mask_BT: bool.
        policy_mask_BT: bool, those of its tokens that the policy wrote.
        scored_tokens: "all", "policy" or "environment".

    Raises:
        ValueError: scored_tokens is none of these.
    """
    if scored_tokens == "all":
        return response_mask_BT
    if scored_tokens == "policy":
        return policy_mask_BT
    if scored_tokens == "environment":
        return response_mask_BT & ~policy_mask_BT
    raise ValueError(f"scored_tokens is {scored_tokens!r}; it must be 'all', 'policy' or 'environment'")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    prompt: Prompt
    sample_index: int
    """Index of the response in its group, 0 .. group_size - 1."""
    response_ids: Sequence[int]
    """Sampled token ids, at least one, including the end-of-sequence token; with an environment, its replies too.
    Engines give an array of type "i", which takes 4 bytes for a token where a tuple takes 40."""
    rollout_logprobs: Sequence[float]
    """Log-probability of each response token under the engine, at the sampling temperature, in nats; 0 for tokens of an
    environment. Engines give an array of type "f"."""
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
    turns: tuple[Turn, ...] = ()
    """The turns of a response to an environment, in order and covering all tokens; empty if the policy wrote all of it
    in one turn."""
    is_judged: bool = False
    """Whether the environment gave the outcome, so that no verifier is asked."""
    num_failed_episodes: int = 0
    """Number of environments that failed under this response; it was begun again after each, if not too many failed."""
    environment_s: float = field(default=0.0, compare=False)
    """Time that the response waited for its environment, in seconds."""

    def __post_init__(self) -> None:
        assert self.response_ids, "a response has at least one token"
        assert len(self.response_ids) == len(self.rollout_logprobs)
        start = 0
        for turn in self.turns:
            assert start < turn.policy_end <= turn.end, (
                "the policy writes in each turn, before the environment"
            )
            start = turn.end
        assert start in (0, len(self.response_ids)), "turns cover all tokens"

    @property
    def policy_mask(self) -> list[bool]:
        """Whether the policy wrote each token."""
        return policy_mask(self.turns, len(self.response_ids))

    @property
    def policy_spans(self) -> list[tuple[int, int]]:
        """First position and end of each stretch of tokens that the policy wrote."""
        return policy_spans(self.turns, len(self.response_ids))

    @property
    def num_policy_tokens(self) -> int:
        """Number of tokens that the policy wrote."""
        return sum(end - start for start, end in self.policy_spans)

    @property
    def tokens_by_version(self) -> Counter[int]:
        """Number of tokens that each policy version sampled."""
        if not self.version_spans:
            return Counter({self.policy_version: self.num_policy_tokens})
        counts: Counter[int] = Counter()
        for version, first, end in self.version_spans:
            for start, stop in self.policy_spans:
                counts[version] += max(0, min(end, stop) - max(first, start))
        return counts

    def with_outcome(self, outcome_reward: float, reason: str = "") -> "Rollout":
        """Return a copy with the given outcome and the reason for it."""
        return replace(self, outcome_reward=outcome_reward, reason=reason)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """All rollouts that one step trains on; every rank holds the same global batch."""

    rollouts: tuple[Rollout, ...]
    response_mask_BT: torch.Tensor
    """bool [B, T]; True on response tokens, those of an environment included, False on the padding at the right."""
    policy_mask_BT: torch.Tensor
    """bool [B, T]; True on the response tokens that the policy wrote: the ones that its loss trains. The first token of
    a response is one."""
    rollout_logprobs_BT: torch.Tensor
    """float32 [B, T], in nats; 0 on padding."""
    outcome_rewards_B: torch.Tensor
    """float32 [B] in [0, 1]."""
    group_ids_B: torch.Tensor
    """int64 [B]; rows with equal ids form one group."""
    step_ids_BT: torch.Tensor | None = None
    """int32 [B, T]; reasoning step of each token, nondecreasing along T. None unless rewards have step granularity."""
    turn_ids_BT: torch.Tensor | None = None
    """int32 [B, T]; turn of each token, from 0 and nondecreasing along T; a reply belongs to the turn before it. None
    if every response has one turn."""
    turn_rewards_BT: torch.Tensor | None = None
    """float32 [B, T]; an environment's reward for a turn on the last token that the policy wrote in it, else 0. None if
    there is none."""
    stats: dict[str, float] = field(default_factory=dict)
    """Statistics of the collection; see `CollectionTally.stats`."""
    throughput: dict[str, float] = field(default_factory=dict)
    """Counts of the collection that depend on timing, so that they differ between equal runs."""
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
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        distinct = {id(tensor): tensor for tensor in tensors.values()}
        moved = {key: tensor.to(device) for key, tensor in distinct.items()}
        return replace(self, **{name: moved[id(tensor)] for name, tensor in tensors.items()})

    def scored_mask_BT(self, scored_tokens: str) -> torch.Tensor:  # noqa: N802
        """Return the tokens that a PRM scores by `prm.scored_tokens`, bool [B, T]."""
        return scored_tokens_BT(self.response_mask_BT, self.policy_mask_BT, scored_tokens)

    def unit_ids_BT(self, granularity: str) -> torch.Tensor | None:  # noqa: N802
        """Return the unit of each token whose process rewards are summed at a granularity; None if it has no units."""
        if granularity != "turn":
            return self.step_ids_BT
        # Without ids every response has one turn.
        return (
            torch.zeros_like(self.response_mask_BT, dtype=torch.int32)
            if self.turn_ids_BT is None
            else self.turn_ids_BT
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
        shape = len(rollouts), max(len(rollout.response_ids) for rollout in rollouts)
        # Numpy writes arrays and tuples into a row at once, and touches no memory of the padding.
        mask = np.zeros(shape, dtype=np.bool_)
        logprobs_BT = np.zeros(shape, dtype=np.float32)
        steps_BT = None if step_ids is None else np.zeros(shape, dtype=np.int32)
        for row, rollout in enumerate(rollouts):
            length = len(rollout.response_ids)
            mask[row, :length] = True
            logprobs_BT[row, :length] = rollout.rollout_logprobs
            if steps_BT is not None and step_ids is not None:
                steps_BT[row, :length] = step_ids[row]
                # The padding repeats the last step, so that the ids do not decrease along T.
                steps_BT[row, length:] = steps_BT[row, length - 1]
        mask_BT = torch.from_numpy(mask)
        turn_ids_BT, turn_rewards_BT = _turns(rollouts, shape)
        # Without turns both masks are one tensor, which is moved to the device once.
        policy_BT = mask_BT if turn_ids_BT is None else _policy_mask(rollouts, mask_BT)
        return RolloutBatch(
            rollouts=tuple(rollouts),
            response_mask_BT=mask_BT,
            policy_mask_BT=policy_BT,
            rollout_logprobs_BT=torch.from_numpy(logprobs_BT),
            outcome_rewards_B=torch.tensor([rollout.outcome_reward for rollout in rollouts]),
            group_ids_B=torch.tensor(list(group_ids), dtype=torch.int64),
            step_ids_BT=None if steps_BT is None else torch.from_numpy(steps_BT),
            turn_ids_BT=turn_ids_BT,
            turn_rewards_BT=turn_rewards_BT,
            stats=dict(stats or {}),
        )


def _policy_mask(rollouts: Sequence[Rollout], mask_BT: torch.Tensor) -> torch.Tensor:
    """Return the response mask without the replies."""
    policy_BT = mask_BT.clone()
    for row, rollout in enumerate(rollouts):
        for turn in rollout.turns:
            policy_BT[row, turn.policy_end : turn.end] = False
    return policy_BT


def _turns(
    rollouts: Sequence[Rollout], shape: tuple[int, int]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return turn_ids_BT and turn_rewards_BT of a batch; None where they say nothing."""
    turns = [(row, *each) for row, rollout in enumerate(rollouts) for each in enumerate(rollout.turns)]
    if not turns:
        return None, None
    ids_BT = torch.zeros(shape, dtype=torch.int32)
    rewards_BT = torch.zeros(shape)
    for row, number, turn in turns:
        # The padding belongs to the last turn, so that the ids do not decrease along T.
        ids_BT[row, turn.end :] = number + 1
        if number + 1 == len(rollouts[row].turns):
            ids_BT[row, turn.end :] = number
        rewards_BT[row, turn.policy_end - 1] = turn.reward
    has_rewards = any(turn.reward for _, _, turn in turns)
    return ids_BT, rewards_BT if has_rewards else None


@dataclass(frozen=True, slots=True)
class WeightBlock:
    """The slice of the HF tensor `hf_name` that starts at `start` along `dim`; all other dims are whole."""

    hf_name: str
    dim: int
    start: int
    tensor: torch.Tensor
