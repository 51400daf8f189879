"""Histograms and sample responses of a step, from tensors that the trainer has anyway."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megatron_prime.observability.loggers.protocol import Details, Sample
from megatron_prime.parallel.platform import move_together
from megatron_prime.training.trainer import TrainedBatch

MAX_VALUES = 4096
"""Values of a histogram: with this many tokens, a bucket that holds 1 % of them is known to a tenth of itself or so."""
NUM_SAMPLES = 4
"""Responses that are shown as text."""


class StepDetails:
    """Takes the details of every `every`-th step, from the first one on, and keeps them until they are logged.

    Args:
        tokenizer: of the policy.
        every: steps between details; 0 takes none.
        seed: of the choice of tokens and responses.
    """

    def __init__(self, tokenizer: Any, every: int, seed: int) -> None:  # noqa: ANN401 - transformers has no public type
        self._tokenizer = tokenizer
        self._every = every
        self._seed = seed
        self._step = -1
        self._details = Details()

    def __call__(self, step: int, trained: TrainedBatch) -> None:
        """Take the details of a step if they are due. Steps count from 1."""
        if self._every and (step - 1) % self._every == 0:
            rng = np.random.default_rng([self._seed, step])
            self._step = step
            self._details = Details(distributions(trained, rng), self._samples(trained, rng))

    def of(self, step: int) -> Details:
        """Return the details of a step; empty if none were due."""
        return self._details if step == self._step else Details()

    def _samples(self, trained: TrainedBatch, rng: np.random.Generator) -> list[Sample]:
        rollouts = trained.batch.rollouts
        rows = sorted(rng.choice(len(rollouts), size=min(NUM_SAMPLES, len(rollouts)), replace=False).tolist())
        rewards_BT = trained.process_rewards_BT
        sums = None
        if rewards_BT is not None:
            sums = (
                rewards_BT[rows].masked_fill(~trained.batch.response_mask_BT[rows], 0.0).sum(dim=1).tolist()
            )
        return [
            Sample(
                prompt=self._tokenizer.decode(
                    list(rollouts[row].prompt.token_ids), skip_special_tokens=False
                ),
                response=self._tokenizer.decode(list(rollouts[row].response_ids), skip_special_tokens=True),
                outcome=rollouts[row].outcome_reward,
                source=rollouts[row].prompt.source,
                num_tokens=len(rollouts[row].response_ids),
                finish_reason=rollouts[row].finish_reason.value,
                process_reward=None if sums is None else sums[number],
            )
            for number, row in enumerate(rows)
        ]


def distributions(trained: TrainedBatch, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return a bounded number of values of each histogram: all lengths, and the same tokens of everything else."""
    batch = trained.batch
    lengths = [len(rollout.response_ids) for rollout in batch.rollouts]
    rows, columns = chosen_tokens(lengths, rng)
    old_BT, ref_BT, rewards_BT = trained.old.logprobs_BT, trained.ref_logprobs_BT, trained.process_rewards_BT
    device = old_BT.device
    at = tuple(move_together([torch.from_numpy(rows), torch.from_numpy(columns)], device))
    values = {
        "advantage/tokens": trained.advantages_BT[at],
        "rollout/logprob_difference": old_BT[at] - batch.rollout_logprobs_BT[at],
    }
    if rewards_BT is not None:
        values["prm/process_rewards"] = rewards_BT[at]
    if ref_BT is not None:
        values["policy/ref_log_ratio"] = old_BT[at] - ref_BT[at]
    # One copy from the device for all of them.
    stacked = torch.stack([value.float() for value in values.values()]).cpu().numpy()
    found = dict(zip(values, stacked, strict=True))
    return {"rollout/response_tokens": np.asarray(lengths[:MAX_VALUES], dtype=np.float64), **found}


def chosen_tokens(lengths: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of at most MAX_VALUES response tokens, evenly chosen with replacement if there are more.

    The lengths are known on the host, so that no mask has to come from the device.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    flat = np.arange(total) if total <= MAX_VALUES else np.sort(rng.integers(total, size=MAX_VALUES))
    rows = np.searchsorted(ends, flat, side="right")
    starts = ends - np.asarray(lengths)
    return rows, flat - starts[rows]
