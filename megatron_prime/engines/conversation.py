"""A response while it grows: turns that the engine samples, and the replies of an environment between them.

prompt | turn | reply | turn | reply | turn
       '-------------- response --------------'

All tokens after the prompt are the response and count against its budget. The tokens of a turn are kept as they were
sampled; the engine continues from `input_ids`. Without an environment the first turn is the whole response.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from megatron_prime.rollout.episode import Reply
from megatron_prime.types import FinishReason, Prompt, Rollout, SamplingParams, Turn

VersionSpans = tuple[tuple[int, int, int], ...]
"""(policy_version, first token, end token) of the parts of a text, in order and covering all of it."""


@dataclass(frozen=True, slots=True)
class SampledTurn:
    """One turn of the policy as an engine has sampled it."""

    token_ids: Sequence[int]
    """At least one."""
    logprobs: Sequence[float]
    finish_reason: FinishReason
    """LENGTH if the turn reached its budget."""
    version_spans: VersionSpans
    """The policy versions of its tokens; positions count from the beginning of the turn."""
    routed_experts: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """See Rollout.routed_experts; only of a response of one turn."""

    @property
    def versions(self) -> frozenset[int]:
        """All versions that sampled the turn."""
        return frozenset(version for version, _, _ in self.version_spans)


class Conversation:
    """The tokens of a response so far, and how it ended."""

    def __init__(self, prompt: Prompt, params: SamplingParams) -> None:
        self.prompt = prompt
        self.finish_reason: FinishReason | None = None
        """The reason why the response ended; None while it goes on."""
        self.last_turn: SampledTurn | None = None
        self._params = params
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._turns: list[Turn] = []
        self._spans: list[tuple[int, int, int]] = []
        self._outcome: float | None = None
        self._reason = ""

    @property
    def num_tokens(self) -> int:
        """Number of tokens after the prompt."""
        return len(self._token_ids)

    @property
    def input_ids(self) -> tuple[int, ...]:
        """All tokens so far, from which the engine samples the next turn."""
        return (*self.prompt.token_ids, *self._token_ids)

    @property
    def turn_budget(self) -> int:
        """Most tokens of the next turn."""
        left = self._params.max_response_tokens - self.num_tokens
        return min(left, self._params.max_turn_tokens or left)

    @property
    def versions(self) -> frozenset[int]:
        """All policy versions that sampled a token."""
        return frozenset(version for version, _, _ in self._spans)

    def add_turn(self, turn: SampledTurn) -> None:
        """Append a turn of the policy; `end` or `add_reply` follows."""
        assert self.finish_reason is None and 0 < len(turn.token_ids) <= self.turn_budget
        start = self.num_tokens
        self._token_ids += turn.token_ids
        self._logprobs += turn.logprobs
        for version, first, end in turn.version_spans:
            self._add_span(version, start + first, start + end)
        self._turns.append(Turn(self.num_tokens, self.num_tokens))
        self.last_turn = turn

    def end(self) -> None:
        """End the response with its last turn."""
        assert self.last_turn is not None
        self.finish_reason = self.last_turn.finish_reason

    def add_reply(self, reply: Reply) -> None:
        """Append the reply to the last turn; or end, as the environment has it or because a budget is used up.

        A reply that is not followed by a turn is dropped: it would be evidence for no decision of the policy.
        """
        assert self.finish_reason is None and self.last_turn is not None
        turn = replace(self._turns[-1], reward=reply.reward)
        self._outcome, self._reason = reply.outcome, reply.reason
        if self.last_turn.finish_reason is not FinishReason.STOP:
            self.finish_reason = self.last_turn.finish_reason
        elif reply.is_done:
            self.finish_reason = FinishReason.STOP
        elif self._is_last_turn(reply):
            self.finish_reason = FinishReason.LENGTH
        else:
            turn = replace(turn, end=turn.end + len(reply.token_ids))
            self._token_ids += reply.token_ids
            self._logprobs += [0.0] * len(reply.token_ids)
            # The version that was asked last stands for the tokens that no version has sampled.
            self._add_span(self._spans[-1][0], self._spans[-1][2], turn.end)
        self._turns[-1] = turn

    def fail(self, reason: str) -> None:
        """End the response because its environment failed: it has no outcome, and is never trained on."""
        self.finish_reason = FinishReason.ABORT
        self._outcome, self._reason = float("nan"), reason

    def rollout(self, sample_index: int, policy_version: int) -> Rollout:
        """Return the response, which has ended.

        Args:
            sample_index: index of the response in its group.
            policy_version: version of a response whose environment failed before the first turn. Its only token is the
                prompt's last one, because a rollout has at least one.
        """
        assert self.finish_reason is not None
        spans = self._spans or [(policy_version, 0, 1)]
        rollout = Rollout(
            prompt=self.prompt,
            sample_index=sample_index,
            response_ids=array("i", self._token_ids or self.prompt.token_ids[-1:]),
            rollout_logprobs=array("f", self._logprobs or [0.0]),
            finish_reason=self.finish_reason,
            policy_version=spans[0][0],
            version_spans=tuple(spans) if len(spans) > 1 else (),
            routed_experts=self.last_turn.routed_experts if self.last_turn is not None else None,
            turns=self._turns_of_rollout(),
            reason=self._reason,
        )
        if self._outcome is None:
            return rollout
        return replace(rollout, outcome_reward=self._outcome, is_judged=True)

    def _is_last_turn(self, reply: Reply) -> bool:
        has_room = self.num_tokens + len(reply.token_ids) < self._params.max_response_tokens
        return not has_room or len(self._turns) >= self._params.max_turns

    def _add_span(self, version: int, start: int, end: int) -> None:
        if self._spans and self._spans[-1][0] == version:
            start = self._spans.pop()[1]
        self._spans.append((version, start, end))

    def _turns_of_rollout(self) -> tuple[Turn, ...]:
        # One turn without a reply or a reward says nothing that the response does not.
        is_plain = self._turns == [Turn(self.num_tokens, self.num_tokens)]
        return () if is_plain else tuple(self._turns)
