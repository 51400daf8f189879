"""The optimizer steps of one role on a batch: which responses share a step, and the loop over the steps."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.models.forward import Routing, RowLoss, Scores, Sequences
from megatron_prime.training.trainable import Trainable
from megatron_prime.types import RolloutBatch


def minibatches(
    num_rows: int, num_minibatches: int, num_epochs: int, seed: int, step_index: int
) -> Iterator[list[int]]:
    """Yield the rows of each minibatch, ascending, epoch after epoch.

    Each epoch shuffles all rows with a generator keyed on (seed, step_index, epoch), so that a resumed run repeats the
    same minibatches. A single minibatch holds all rows in order: it is then packed exactly as a scoring pass packs the
    batch, and its log-probs are the scores of the weights before the update.

    Raises:
        ValueError: the minibatches would be unequal.
    """
    if num_rows % num_minibatches:
        raise ValueError(f"{num_rows} responses cannot be cut into {num_minibatches} equal minibatches")
    size = num_rows // num_minibatches
    for epoch in range(num_epochs):
        order = np.random.default_rng([seed, step_index, epoch]).permutation(num_rows).tolist()
        for start in range(0, num_rows, size):
            yield sorted(order[start : start + size])


def update_on_batch(
    role: Trainable,
    batch: RolloutBatch,
    sequences: Sequences,
    config: OptimizerConfig,
    make_loss: Callable[[Sequence[int]], RowLoss],
    key: tuple[int, int],
    routing: Routing | None = None,
    observe: Callable[[Sequence[int], Scores], None] | None = None,
    *,
    keeps_scores: bool = False,
) -> tuple[Scores | None, dict[str, float]]:
    """Take all optimizer steps of a role on a batch, then advance its schedule. Collective over all ranks.

    Args:
        role: the model to train.
        batch: the global batch.
        sequences: prompt and response tokens of each row.
        config: number of minibatches and epochs.
        make_loss: returns the loss of a minibatch, given all its rows.
        key: (seed, step_index), which fixes the minibatches.
        routing: experts to replay, see PackedPass.
        observe: gets the rows of each step, and the scores that the step was taken from.
        keeps_scores: return the scores of the first step.

    Returns:
        The scores that the first step was taken from (None if no minibatch has a row to train on, or without
        `keeps_scores`), and the metrics averaged over the steps, with the learning rate `lr`.
    """
    lr = role.lr
    all_rows = minibatches(batch.num_rows, config.num_minibatches, config.num_epochs, *key)
    # A minibatch whose rows are all excluded from training has no update.
    rows_of_updates = [rows for rows in all_rows if batch.trained_rows(rows)]
    first_scores: Scores | None = None
    means: dict[str, float] = {}
    with role.resident():
        for rows in rows_of_updates:
            is_needed = observe is not None or (keeps_scores and first_scores is None)
            scores, metrics = role.update(sequences, rows, make_loss(rows), routing, keeps_scores=is_needed)
            if keeps_scores:
                first_scores = first_scores or scores
            if observe is not None and scores is not None:
                observe(rows, scores)
            for name, value in metrics.items():
                means[name] = means.get(name, 0.0) + value / len(rows_of_updates)
    role.advance_schedule()
    return first_scores, means | {"lr": lr}
