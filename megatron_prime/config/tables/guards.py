"""[guards]: skipped updates and alarms."""

from typing import Annotated

from pydantic import Field

from megatron_prime.config.section import Positive, PositiveFloat, Section, UnitInterval


class GuardsConfig(Section):
    """What is done about updates that are not finite, and when metrics raise an alarm."""

    max_skipped_in_a_row: Positive = 3
    """An update with a loss or gradient that is not finite is skipped; so many of a role in a row stop the run."""
    alarm_window: Annotated[int, Field(ge=2)] = 20
    """Steps that an alarm looks back on."""
    spike_metrics: tuple[str, ...] = ("prm/loss", "prm/grad_norm", "policy/grad_norm", "sft/loss")
    """Metrics whose spikes raise an alarm."""
    spike_sigmas: PositiveFloat = 8.0
    """A spike is so many robust standard deviations over the median, and twice the median at least."""
    reward_fraction: UnitInterval = 0.5
    """Alarm when the mean accuracy over the window falls below this share of its best; 0 switches it off."""
    entropy_fraction: UnitInterval = 0.1
    """The same for the policy's entropy."""
