"""Rows of a PRM objective for tests."""

import torch

from megatron_prime.algorithm.prm_rows import ScoredRows
from tests.algorithm.dialogues import Dialogues


def rows_of_scores(scores_B):
    """Return rows of one token each whose scores are these."""
    return ScoredRows(scores_B[:, None], torch.ones(len(scores_B), 1, dtype=torch.bool), beta=1.0)


class ScoredDialogues(Dialogues):
    """Dialogues with log-ratios before and during the update; where not all of them are scored, replies are holes."""

    beta = 0.7

    def __init__(self, seed, granularity="turn", scores_replies=True, soft=True, **options):
        super().__init__(seed, soft=soft, **options)
        self.granularity, self.scores_replies = granularity, scores_replies
        self.q, self.before = self.noise(seed + 1), self.noise(seed + 2)

    def scored(self, rows):
        """The values of the scored tokens, as lists."""
        return [
            [v for v, is_policy in zip(row, writers, strict=True) if is_policy or self.scores_replies]
            for row, writers in zip(rows, self.writers, strict=True)
        ]

    @property
    def units(self):
        """The unit of each scored token."""
        return self.scored(self.unit_ids(self.granularity))

    @property
    def scored_mask_BT(self):
        return self.mask_BT if self.scores_replies else self.policy_mask_BT

    def scored_rows(self, values=None, requires_grad=False):
        """The package's rows of `values` (self.q)."""
        full_BT = self.padded(self.q if values is None else values)
        q_BT = torch.where(self.scored_mask_BT, full_BT, 0.0)
        return ScoredRows(
            q_BT.requires_grad_(requires_grad),
            self.scored_mask_BT,
            self.beta,
            self.unit_ids_BT(self.granularity),
        )
