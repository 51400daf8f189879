"""Groups that are sampled and then verified while others are sampled: an engine's stream and a verifier's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from megatron_prime.rollout.engine import Engine, GroupStream
from megatron_prime.rollout.episode import Environments
from megatron_prime.rollout.group_filter import Group, split_groups
from megatron_prime.rollout.verification import RolloutVerifier, VerificationStream
from megatron_prime.types import Prompt, SamplingParams

POLL_S = 0.05
"""Time between two looks for verdicts while responses are being sampled."""
WAIT_S = 10.0
"""Longest wait for one thing alone, after which all ranks meet again: shorter than the deadline of a collective."""


class VerifiedGroups:
    """Prompts on their way to verified groups. Every method is collective, with equal results on all ranks."""

    def __init__(
        self, sampling: GroupStream, verification: VerificationStream, group_size: int, is_mixed: bool
    ) -> None:
        self._sampling = sampling
        self._verification = verification
        self._group_size = group_size
        self._is_mixed = is_mixed

    @property
    def is_batched(self) -> bool:
        """See `GroupStream.is_batched`."""
        return self._sampling.is_batched

    @property
    def num_in_flight(self) -> int:
        """Number of groups that are being sampled."""
        return self._sampling.num_in_flight

    @property
    def num_open(self) -> int:
        """Number of groups that are being sampled or verified."""
        return self._sampling.num_in_flight + self._verification.num_pending

    def submit(self, prompts: Sequence[Prompt]) -> None:
        """Begin with further prompts; groups are numbered from 0 in the order of their prompts."""
        self._sampling.submit(prompts)

    def finished(self, wait_s: float = WAIT_S) -> list[tuple[int, Group]]:
        """Wait until a group has been sampled or verified, at most about `wait_s`; return those that are verified.

        Raises:
            RuntimeError: the engine returned a wrong number of responses, or a group mixes policy versions.
        """
        if self._sampling.num_in_flight:
            for number, rollouts in self._sampling.finished(
                POLL_S if self._verification.num_pending else wait_s
            ):
                if len(rollouts) != self._group_size:
                    raise RuntimeError(
                        f"the engine returned {len(rollouts)} rollouts of a prompt instead of {self._group_size}"
                    )
                self._verification.submit(number, rollouts)
        verified = self._verification.finished(0.0 if self._sampling.num_in_flight else wait_s)
        return [
            (number, group)
            for number, rollouts in verified
            for group in split_groups(rollouts, self._group_size, allow_mixed_versions=self._is_mixed)
        ]


@contextmanager
def verified_groups(
    engine: Engine,
    verifier: RolloutVerifier,
    params: SamplingParams,
    group_size: int,
    stream_key: int,
    environments: Environments | None = None,
    *,
    allow_mixed_versions: bool = False,
) -> Iterator[VerifiedGroups]:
    """Return a stream of verified groups; leaving it aborts what is not finished. See `Engine.stream`."""
    with (
        engine.stream(params, group_size, stream_key, environments) as sampling,
        verifier.stream() as verification,
    ):
        yield VerifiedGroups(sampling, verification, group_size, allow_mixed_versions)
