"""Histograms and sample responses of a step, from tensors that the trainer has anyway."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_prime.observability.loggers.protocol import Details, Sample
from megatron_prime.parallel.platform import move_together
from megatron_prime.training.trainer import TrainedBatch
from megatron_prime.types import Decoder, Rollout

MAX_VALUES = 4096
"""Values of a histogram: with this many tokens, a bucket that holds 1 % of them is known to a tenth of itself or so."""
NUM_SAMPLES = 4
"""Responses that are shown as text."""


@dataclass(frozen=True)
class _Taken:
    """Values of a step that may still be on their way from the device."""

    lengths: list[int]
    """Tokens of each response."""
    tags: list[str]
    """The histograms of tokens."""
    num_tokens: int
    """Values of each of them."""
    values: torch.Tensor
    """On the host: those of all histograms, and then the sum of the process rewards of each shown response."""
    shown: list[Rollout]


class StepDetails:
    """Takes the details of every `every`-th step, from the first one on, and keeps them until they are logged.

    Args:
        tokenizer: of the policy.
        every: steps between details; 0 takes none.
        seed: of the choice of tokens and responses.
    """

    def __init__(self, tokenizer: Decoder, every: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._every = every
        self._seed = seed
        self._step = -1
        self._taken: _Taken | None = None

    def note(self, step: int, trained: TrainedBatch) -> None:
        """Take the details of a step if they are due; a BatchObserver. Steps count from 1."""
        self._taken = None
        if self._every and (step - 1) % self._every == 0:
            self._step = step
            self._taken = _taken(trained, np.random.default_rng([self._seed, step]))

    def of(self, step: int) -> Details:
        """Return the details of a step; empty if none were due. The host must have waited for the device."""
        if self._taken is None or step != self._step:
            return Details()
        taken = self._taken
        num_values = len(taken.tags) * taken.num_tokens
        tokens, rewards = taken.values[:num_values], taken.values[num_values:]
        found = dict(zip(taken.tags, tokens.view(-1, taken.num_tokens).numpy(), strict=True))
        lengths = np.asarray(taken.lengths[:MAX_VALUES], dtype=np.float64)
        sums = rewards.tolist() or [None] * len(taken.shown)
        samples = [self._sample(rollout, reward) for rollout, reward in zip(taken.shown, sums, strict=True)]
        return Details({"rollout/response_tokens": lengths, **found}, samples)

    def _sample(self, rollout: Rollout, process_reward: float | None) -> Sample:
        return Sample(
            prompt=self._tokenizer.decode(list(rollout.prompt.token_ids), skip_special_tokens=False),
            response=self._tokenizer.decode(list(rollout.response_ids), skip_special_tokens=True),
            outcome=rollout.outcome_reward,
            source=rollout.prompt.source,
            num_tokens=len(rollout.response_ids),
            finish_reason=rollout.finish_reason.value,
            process_reward=process_reward,
        )


def _taken(trained: TrainedBatch, rng: np.random.Generator) -> _Taken:
    """Start copying a bounded number of values: the same tokens for each histogram, and rewards of some responses."""
    batch = trained.batch
    lengths = [len(rollout.response_ids) for rollout in batch.rollouts]
    rows, columns = chosen_tokens(batch.rollouts, rng)
    shown = np.sort(rng.choice(len(lengths), size=min(NUM_SAMPLES, len(lengths)), replace=False))
    old_BT, ref_BT, rewards_BT = trained.old.logprobs_BT, trained.ref_logprobs_BT, trained.process_rewards_BT
    indices = [torch.from_numpy(index) for index in (rows, columns, shown)]
    rows_N, columns_N, shown_S = move_together(indices, old_BT.device)
    at = rows_N, columns_N
    values = {
        "advantage/tokens": trained.advantages_BT[at],
        "rollout/logprob_difference": old_BT[at] - batch.rollout_logprobs_BT[at],
    }
    if ref_BT is not None:
        values["policy/ref_log_ratio"] = old_BT[at] - ref_BT[at]
    sums = []
    if rewards_BT is not None:
        values["prm/process_rewards"] = rewards_BT[at]
        sums = [rewards_BT[shown_S].masked_fill(~batch.response_mask_BT[shown_S], 0.0).sum(dim=1)]
    # One copy, for which the host does not wait here: it will have ended when the details are read.
    flat = torch.cat([part.float() for part in (*values.values(), *sums)]).to("cpu", non_blocking=True)
    return _Taken(lengths, [*values], len(rows), flat, [batch.rollouts[row] for row in shown])


def chosen_tokens(rollouts: Sequence[Rollout], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of at most MAX_VALUES tokens of the policy, evenly chosen with replacement if of more.

    The turns are known on the host, so that no mask has to come from the device.
    """
    # Every stretch of tokens that the policy wrote, as its row, first column and end.
    stretches = np.array(
        [(row, *ends) for row, rollout in enumerate(rollouts) for ends in rollout.policy_spans]
    )
    lengths = stretches[:, 2] - stretches[:, 1]
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    flat = np.arange(total) if total <= MAX_VALUES else np.sort(rng.integers(total, size=MAX_VALUES))
    numbers = np.searchsorted(ends, flat, side="right")
    return stretches[numbers, 0], stretches[numbers, 1] + flat - (ends - lengths)[numbers]
