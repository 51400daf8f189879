"""Verification of rollouts, distributed over the ranks, with patience for a reward server that is away."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from megatron_prime.rollout.background_verifier import (
    MAX_SHARES,
    BackgroundVerifier,
    Status,
    Verdict,
    Verify,
)
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.sample import Sample
from megatron_prime.types import Decoder, FinishReason, Rollout

MEET_EVERY_S = 5.0
"""Time after which the ranks meet while they wait for nothing but verdicts, far below the deadline of a collective."""
MEET_WHEN_AWAY_S = 1.0
"""The same while a reward server is away."""

_LOG = logging.getLogger(__name__)


class VerifierAwayError(RuntimeError):
    """A reward server has not answered for as long as the run may wait; raised on every rank alike."""


class RolloutVerifier:
    """Verifies rollouts; each rank verifies a share of them, in threads.

    Args:
        verify: returns the outcomes of a part of this rank's share; several threads call it at the same time.
        tokenizer: decodes responses.
        ranks: the ranks that share the work; default this process alone.
        max_outage_s: seconds to wait for a reward server that is away.
        is_stopping: returns whether this rank was asked to stop, which ends that wait.
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
        self.ranks = ranks or Ranks()
        self.max_outage_s = max_outage_s
        self.is_stopping = is_stopping
        self._executor = ThreadPoolExecutor(MAX_SHARES, thread_name_prefix="verification")

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return the rollouts with their outcomes, on every rank. Collective; all ranks pass equal rollouts.

        See `VerificationStream.finished` for the errors.
        """
        with self.stream() as stream:
            stream.submit(0, rollouts)
            while True:
                for _, verified in stream.finished(MEET_EVERY_S):
                    return verified

    @contextmanager
    def stream(self) -> Iterator["VerificationStream"]:
        """Return a stream of groups to verify; leaving it gives up those that are not verified."""
        background = BackgroundVerifier(self._verify, self._executor)
        try:
            yield VerificationStream(self, background)
        finally:
            background.close()

    def sample_of(self, rollout: Rollout) -> Sample:
        """Return what a verifier may know of a rollout."""
        return sample_of(rollout, self._tokenizer)


class VerificationStream:
    """Groups that are being verified. All ranks call its methods with equal arguments."""

    def __init__(self, owner: RolloutVerifier, background: BackgroundVerifier) -> None:
        self._owner = owner
        self._background = background
        self._groups: dict[int, list[Rollout]] = {}
        self._missing: dict[int, set[int]] = {}
        """Number of a group -> its responses without a verdict."""
        self._num_asked = 0
        self._is_away = False

    @property
    def num_pending(self) -> int:
        """Number of groups that were submitted and that `finished` has not returned yet."""
        return len(self._groups)

    def submit(self, number: int, rollouts: Sequence[Rollout]) -> None:
        """Begin to verify a group; rollouts whose outcome an environment gave, or that failed with it, are left alone.

        Args:
            number: of the group, unique in the stream.
            rollouts: of the group, equal on all ranks.
        """
        assert number not in self._groups
        ranks = self._owner.ranks
        asked = [row for row, rollout in enumerate(rollouts) if _needs_verification(rollout)]
        self._groups[number] = list(rollouts)
        self._missing[number] = set(asked)
        # Neighbours share a prompt, and all responses to a hard one may be slow to verify: each rank takes some.
        first = (ranks.rank - self._num_asked) % ranks.world_size
        self._num_asked += len(asked)
        self._background.put(
            [
                ((number, row), self._owner.sample_of(rollouts[row]))
                for row in asked[first :: ranks.world_size]
            ]
        )

    def finished(self, wait_s: float) -> list[tuple[int, list[Rollout]]]:
        """Return the groups that have been verified since the last call, with their numbers. Collective.

        Args:
            wait_s: longest time to wait, as long as this rank has a response to verify.

        Raises:
            RuntimeError: a verifier failed as a whole, or returned a wrong number of outcomes, or a reward outside
                [0, 1]. The error is raised on every rank.
            VerifierAwayError: a reward server was away for max_outage_s, or while the run was asked to stop.
        """
        if not self._groups:
            return []
        found, status = self._background.take(MEET_WHEN_AWAY_S if self._is_away else wait_s)
        gathered = self._owner.ranks.gather([(found, status, self._owner.is_stopping())])
        self._raise_fault([status for [(_, status, _)] in gathered])
        self._wait_for_servers([(status, is_stopping) for [(_, status, is_stopping)] in gathered])
        for [(verdicts, _, _)] in gathered:
            self._add(verdicts)
        done = [number for number, missing in self._missing.items() if not missing]
        for number in done:
            del self._missing[number]
        return [(number, self._groups.pop(number)) for number in done]

    def _add(self, verdicts: Sequence[Verdict]) -> None:
        outside = [reward for _, reward, _ in verdicts if reward < 0 or reward > 1]
        if outside:
            raise RuntimeError(f"the verifier returned rewards outside [0, 1]: {outside[:5]}")
        for (number, row), reward, detail in verdicts:
            self._groups[number][row] = self._groups[number][row].with_outcome(reward, detail)
            self._missing[number].remove(row)

    def _raise_fault(self, statuses: Sequence[Status]) -> None:
        for rank, status in enumerate(statuses):
            if status.fault:
                raise self._background.fault or RuntimeError(
                    f"verification failed on rank {rank}: {status.fault}"
                )

    def _wait_for_servers(self, statuses: Sequence[tuple[Status, bool]]) -> None:
        """Decide, on all ranks alike, whether to wait for reward servers that are away; raise if not."""
        away = [status for status, _ in statuses if status.away_s is not None]
        is_first = self._owner.ranks.rank == 0
        if not away:
            if self._is_away and is_first:
                _LOG.warning("the reward server is back")
            self._is_away = False
            return
        detail, limit_s = away[0].away_detail, self._owner.max_outage_s
        if any(is_stopping for _, is_stopping in statuses):
            raise VerifierAwayError(f"the run was asked to stop while the reward server was away: {detail}")
        waited_s = max(status.away_s or 0.0 for status in away)
        if waited_s >= limit_s:
            raise VerifierAwayError(
                f"the reward server has been away for {waited_s:.0f} s (reward.http.max_outage_s): {detail}"
            )
        if not self._is_away and is_first:
            _LOG.warning(
                "the reward server is away: %s. Waiting up to %.0f s (reward.http.max_outage_s)",
                detail,
                limit_s,
            )
        self._is_away = True


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
