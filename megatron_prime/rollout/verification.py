"""Verification of rollouts, distributed over the ranks, with patience for a reward server that is away."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from megatron_prime.rollout.ranks import Ranks
from megatron_prime.sample import Sample
from megatron_prime.types import Decoder, FinishReason, Rollout

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
"""Limits of the time between two attempts to reach a server, which doubles."""

_LOG = logging.getLogger(__name__)


class VerifierAwayError(RuntimeError):
    """A reward server has not answered for as long as the run may wait; raised on every rank alike."""


class Outcome(Protocol):
    """The result of verifying one response."""

    @property
    def reward(self) -> float:
        """Reward in [0, 1]; NaN if the verifier failed or timed out."""
        ...

    @property
    def is_away(self) -> bool:
        """Whether the verifier is a server that gives no reward to anyone now."""
        ...

    @property
    def detail(self) -> str:
        """The reason for the reward, or the description of a failure; may be empty."""
        ...


Verify = Callable[[Sequence[Sample]], Sequence[Outcome]]
"""Maps each response to its outcome, in order."""


class RolloutVerifier:
    """Verifies rollouts; each rank verifies a share of them.

    Args:
        verify: returns the outcomes of this rank's share.
        tokenizer: decodes responses.
        ranks: the ranks that share the work; default this process alone.
        max_outage_s: seconds to wait for a reward server that is away.
    """

    def __init__(
        self,
        verify: Verify,
        tokenizer: Decoder,
        ranks: Ranks | None = None,
        max_outage_s: float = 0.0,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._verify = verify
        self._tokenizer = tokenizer
        self._ranks = ranks or Ranks()
        self._max_outage_s = max_outage_s
        self._is_stopping = is_stopping

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return the rollouts with their outcomes, on every rank. Collective; all ranks pass equal rollouts.

        Rollouts whose outcome an environment gave, or that failed with it, are returned as they are.

        Raises:
            RuntimeError: the verifier returned a wrong number of outcomes, or a reward outside [0, 1].
            VerifierAwayError: a reward server was away for max_outage_s, or while the run was asked to stop.
        """
        # The shares are strided, because neighbouring rollouts share a prompt, and all responses to a hard prompt may
        # be slow to verify.
        num_ranks = self._ranks.world_size
        asked = [row for row, rollout in enumerate(rollouts) if _needs_verification(rollout)]
        order = [row for first in range(num_ranks) for row in asked[first::num_ranks]]
        share = [rollouts[row] for row in self._ranks.share(order)]
        outcomes = self._outcomes([sample_of(rollout, self._tokenizer) for rollout in share])
        verdicts = self._ranks.gather_all([(float(outcome.reward), outcome.detail) for outcome in outcomes])
        outside = [reward for reward, _ in verdicts if reward < 0 or reward > 1]
        if outside:
            raise RuntimeError(f"the verifier returned rewards outside [0, 1]: {outside[:5]}")
        # The gathered verdicts are in the strided order; this maps them back to the rows.
        verdict_of_row = dict(zip(order, verdicts, strict=True))
        return [
            rollout.with_outcome(*verdict_of_row[row]) if row in verdict_of_row else rollout
            for row, rollout in enumerate(rollouts)
        ]

    def _outcomes(self, responses: Sequence[Sample]) -> list[Outcome]:
        """Verify this rank's share, and wait as long as any rank finds its server away. Collective.

        The ranks wait together, because one that waited alone would exceed the deadline of the others' collective.
        """
        outcomes = self._verified(responses)
        started, pause_s, is_waiting = time.monotonic(), FIRST_PAUSE_S, False
        while True:
            away = [row for row, outcome in enumerate(outcomes) if outcome.is_away]
            details = self._ranks.gather_all([outcomes[row].detail for row in away])
            if not details:
                if is_waiting and self._ranks.rank == 0:
                    _LOG.warning("the reward server is back")
                return outcomes
            # The ranks' clocks differ a little, a request may have reached one alone, and all must decide alike.
            clocks = self._ranks.gather_all([(time.monotonic() - started, self._is_stopping())])
            waited_s = max(waited for waited, _ in clocks) if is_waiting else 0.0
            if any(is_stopping for _, is_stopping in clocks):
                raise VerifierAwayError(
                    f"the run was asked to stop while the reward server was away: {details[0]}"
                )
            if waited_s >= self._max_outage_s:
                raise VerifierAwayError(
                    f"the reward server has been away for {waited_s:.0f} s (reward.http.max_outage_s): {details[0]}"
                )
            if not is_waiting and self._ranks.rank == 0:
                _LOG.warning(
                    "the reward server is away: %s. Waiting up to %.0f s (reward.http.max_outage_s)",
                    details[0],
                    self._max_outage_s,
                )
            is_waiting = True
            time.sleep(min(pause_s, self._max_outage_s - waited_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            # One response shows whether the server is back. A server that hangs would hold up all of them.
            if away and not self._verified([responses[away[0]]])[0].is_away:
                for row, outcome in zip(away, self._verified([responses[row] for row in away]), strict=True):
                    outcomes[row] = outcome

    def _verified(self, responses: Sequence[Sample]) -> list[Outcome]:
        outcomes = list(self._verify(responses))
        if len(outcomes) != len(responses):
            raise RuntimeError(
                f"the verifier returned {len(outcomes)} outcomes for {len(responses)} responses"
            )
        return outcomes


def _needs_verification(rollout: Rollout) -> bool:
    # An engine that is stopped aborts a response without a reason; an environment that fails names one.
    has_failed = rollout.finish_reason is FinishReason.ABORT and bool(rollout.reason)
    return not rollout.is_judged and not has_failed


def sample_of(rollout: Rollout, tokenizer: Decoder) -> Sample:
    """Return what a verifier may know of a rollout."""

    def text(start: int, end: int) -> str:
        return tokenizer.decode(list(rollout.response_ids[start:end]), skip_special_tokens=True)

    prompt = rollout.prompt
    turns, start = [], 0
    for turn in rollout.turns:
        turns.append((text(start, turn.policy_end), text(turn.policy_end, turn.end)))
        start = turn.end
    return Sample(
        response_text=turns[-1][0] if turns else text(0, len(rollout.response_ids)),
        answer=prompt.answer,
        source=prompt.source,
        ability=prompt.ability,
        messages=json.loads(prompt.messages or "[]"),
        metadata=json.loads(prompt.metadata or "{}"),
        response_ids=rollout.response_ids,
        finish_reason=rollout.finish_reason.value,
        turns=turns,
    )
