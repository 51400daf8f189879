"""Rows of a PRM objective for tests."""

import torch

from megatron_prime.algorithm.prm_rows import ScoredRows


def rows_of_scores(scores_B):
    """Return rows of one token each whose scores are these."""
    return ScoredRows(scores_B[:, None], torch.ones(len(scores_B), 1, dtype=torch.bool), beta=1.0)
