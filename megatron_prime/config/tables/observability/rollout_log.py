"""The [rollout_log] table: sampled responses on disk."""

from typing import Literal

from megatron_prime.config.section import NonNegative, Positive, Section

ROLLOUTS = "rollouts"
"""The folder of the rollout log in run_dir."""


class RolloutLogConfig(Section):
    """The sampled responses in run_dir/rollouts, with all figures of each token: one Parquet file per logged step.

    docs/rollouts.md describes the files and the ways to read them.
    """

    groups_per_step: NonNegative | Literal["all"] = 8
    """Groups of a step to log: three quarters of them from the batch, the others from the groups that the filter
    dropped. 0 logs nothing; a replay of the run (`train --replay-rollouts`) needs "all"."""
    every_steps: Positive = 1
    """Log the first step, and each whose number this divides."""
    max_mib: Positive = 1024
    """Size of all files together; beyond it, the oldest are removed. The newest file always stays."""
