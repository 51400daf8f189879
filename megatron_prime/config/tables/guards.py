"""The [guards] table: skipped updates and alarms."""

from typing import Annotated

from pydantic import Field

from megatron_prime.config.section import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    UnitInterval,
)


class GuardsConfig(Section):
    """The treatment of updates that are not finite, and the limits at which metrics raise an alarm."""

    max_skipped_in_a_row: Positive = 3
    """Updates whose loss or gradient is not finite are skipped; this many in a row of one role stop the run."""
    alarm_window: Annotated[int, Field(ge=2)] = 20
    """Number of previous steps with which an alarm compares."""
    spike_metrics: tuple[str, ...] = ("prm/loss", "prm/grad_norm", "policy/grad_norm", "sft/loss")
    """Metrics whose spikes raise an alarm."""
    spike_sigmas: PositiveFloat = 8.0
    """A spike is this many robust standard deviations above the median, and at least twice the median."""
    reward_fraction: UnitInterval = 0.5
    """Raise an alarm if the mean accuracy of the window falls below this fraction of its best; 0 switches it off."""
    max_truncated_fraction: UnitInterval = 0.5
    """Raise an alarm if more than this fraction of the sampled responses is truncated; 0 switches it off."""
    max_truncated_steps: NonNegative = 0
    """Stop after this many steps in a row in which every response is truncated; 0, the default, only warns."""
    max_ref_kl: NonNegativeFloat = 1.0
    """Raise an alarm if the policy's KL divergence from the reference, in nats per token, exceeds this; 0: never."""
    max_logprob_gap: PositiveFloat = 1.0
    """Raise an alarm if the mean absolute difference of training and rollout log-probs, in nats, exceeds this.

    A jump above the usual difference of the run raises it too."""
    entropy_fraction: UnitInterval = 0.1
    """Raise an alarm if the policy's entropy falls below this fraction of its best; 0 switches it off."""
    min_pair_accuracy: UnitInterval = 0.5
    """Raise an alarm if the process rewards prefer the right one of two responses less often than this, on average over
    the last 10 steps in which they were at least a quarter of the advantages; 0 switches it off."""
    max_process_alarm_steps: NonNegative = 0
    """Stop after this many steps in a row with that alarm; 0, the default, only warns."""
