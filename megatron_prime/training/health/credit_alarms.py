"""Alarms on process rewards: what they prefer, what they stand on, and whether the PRM can be sure of anything.

Rewards that mislead do no harm while they hardly count, so that all but `ScoreLimitAlarm` look only at steps in which
the process rewards have a share of LARGE_SHARE in the advantages. They judge means over PROCESS_WINDOW of those steps.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.training.health.alarm import Alarm

PAIR_ACCURACY = "prm/pair_accuracy"
UNSEEN_PAIR_ACCURACY = "prm/unseen_pair_accuracy"
PROCESS_SHARE = "advantage/process_share"
SCORE_LIMIT = "prm/score_limit"
STEP_AUROC = "probe/step_auroc"
LARGE_SHARE = 1 / 4
"""Process rewards with at least this share of the advantages can lead the policy away from right answers."""
PROCESS_WINDOW = 10
"""Number of steps over which the PRM's pair accuracy is averaged; that of a single step is noisy."""
PROCESS_ADVICE = (
    "the policy may learn what the PRM pays for instead of right answers, for example a token of the answer's format. "
    "Set advantage.process_trust = 'pair_accuracy', which lets process rewards count as far as they prefer right "
    "responses, and keep filter.enabled; a lower policy.lr or process_coef helps too"
)
BIAS_LIMIT = 0.5
"""A share or correlation from which on a sign of misleading rewards counts, where chance is well below."""
LIMIT_WINDOW = 5
"""Number of steps over which the largest score is averaged."""
MIN_SCORE_LIMIT = 1.0
"""Logit up to which sigmoid is nearly linear: at 1 its slope is 0.20, and 0.25 at 0."""
GOOD_SCORE_LIMIT = 4.0
"""A PRM that is sure of a response should be able to say so: sigmoid(4) = 0.98."""
PROBE_WINDOW = 3
"""Number of probes over which the PRM's AUROC is averaged."""
MIN_STEP_AUROC = 0.45
"""A little below chance, because a probe set is small."""


def _is_large(metrics: Mapping[str, float]) -> bool:
    return metrics.get(PROCESS_SHARE, 0.0) >= LARGE_SHARE


@dataclass(frozen=True)
class Sign:
    """A sign of misleading process rewards."""

    flag: str
    """Name of its alarm."""
    metric: str
    chance: str
    """Metric of the value that chance gives; "" for a correlation, of which the size counts."""
    meaning: str
    """Says what the value means and what to do."""

    def excess(self, metrics: Mapping[str, float]) -> float | None:
        """Return by how much the value is above what is not alarming; None without it."""
        value = metrics.get(self.metric)
        if value is None:
            return None
        limit = max(BIAS_LIMIT, 2 * metrics.get(self.chance, 0.0)) if self.chance else BIAS_LIMIT
        return abs(value) - limit


SIGNS = (
    Sign(
        "last_step_alarm",
        "prm/lowest_on_last_fraction",
        "prm/lowest_on_last_chance",
        "the PRM puts the blame on the end of most responses, so that its rewards say no more than the outcome does. "
        "Score steps instead of tokens (prm.granularity = 'step'), and look at the responses in megatron-prime view: "
        "a PRM that judges the form of the answer alone needs other data, or advantage.process_coef = 0",
    ),
    Sign(
        "length_alarm",
        "prm/length_correlation",
        "",
        "among equally right responses the PRM prefers long or short ones, and the policy will follow. Set "
        "advantage.process_baseline = 'sequence_spread', which is free of it, or prm.loss = 'ce_intercept', which "
        "keeps the class prior out of the tokens",
    ),
    Sign(
        "format_alarm",
        "prm/format_share",
        "prm/format_token_fraction",
        "most process reward is on white space, punctuation and special tokens. Set prm.granularity = 'step', which "
        "sums them with the step that they belong to, and advantage.process_trust = 'pair_accuracy'; a lower prm.lr "
        "helps too",
    ),
)
"""The signs that have an alarm."""


class ProcessAlarm(Alarm):
    """An alarm for process rewards that are a large part of the advantages and do not prefer right responses.

    It compares with `limit` the mean of the PRM's pair accuracy over the last PROCESS_WINDOW steps in which the process
    rewards had a large share; 0 disables it.
    """

    def __init__(self, limit: float) -> None:
        super().__init__(PAIR_ACCURACY, PROCESS_WINDOW)
        self._limit = limit

    def read(self, metrics: Mapping[str, float]) -> float | None:
        """Return the pair accuracy, None where the share of the process rewards is small."""
        return metrics.get(self.metric) if _is_large(metrics) else None

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        self._values.append(value)
        mean = math.fsum(self._values) / len(self._values)
        if len(self._values) < PROCESS_WINDOW or mean >= self._limit:
            return None
        return (
            f"process rewards are a large part of the advantages ({PROCESS_SHARE}), but of a right and a wrong "
            f"response they prefer the right one in {mean:.0%} of the cases only ({self.metric}, alarm below "
            f"guards.min_pair_accuracy = {self._limit:g}): {PROCESS_ADVICE}"
        )


class ChanceAlarm(Alarm):
    """An alarm for large process rewards of a PRM that knows no more than chance about responses that it has not seen.

    The mean pair accuracy before the updates of PROCESS_WINDOW steps is then not above 1/2 by its standard error.
    """

    def __init__(self) -> None:
        super().__init__(UNSEEN_PAIR_ACCURACY, PROCESS_WINDOW)

    def read(self, metrics: Mapping[str, float]) -> float | None:
        """Return the pair accuracy before the update, None where the share of the process rewards is small."""
        return metrics.get(self.metric) if _is_large(metrics) else None

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        self._values.append(value)
        if len(self._values) < PROCESS_WINDOW:
            return None
        mean = statistics.fmean(self._values)
        error = statistics.stdev(self._values) / math.sqrt(PROCESS_WINDOW)
        if mean - error > 0.5:
            return None
        return (
            f"process rewards are a large part of the advantages ({PROCESS_SHARE}), but of responses that the PRM has "
            f"not learned from it orders {mean:.0%} +- {error:.0%} of the pairs correctly ({self.metric}): no better "
            "than chance, so that credit is noise. Set advantage.process_trust = 'pair_accuracy', or "
            "advantage.process_warmup_steps to let the PRM learn first; if it never learns, start it from a trained "
            "one (prm.path), or raise prm.lr"
        )


class SignAlarm(Alarm):
    """An alarm for a sign of misleading process rewards, on average over PROCESS_WINDOW steps."""

    def __init__(self, sign: Sign) -> None:
        super().__init__(sign.metric, PROCESS_WINDOW)
        self._sign = sign

    def read(self, metrics: Mapping[str, float]) -> float | None:
        """Return the excess over what is not alarming, None where the share of the process rewards is small."""
        return self._sign.excess(metrics) if _is_large(metrics) else None

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        self._values.append(value)
        mean = statistics.fmean(self._values)
        if len(self._values) < PROCESS_WINDOW or mean <= 0:
            return None
        return f"{self.metric} is {mean:.2g} above what is harmless: {self._sign.meaning}"


class ScoreLimitAlarm(Alarm):
    """An alarm for a beta that is too small for the entropy of the responses."""

    def __init__(self) -> None:
        super().__init__(SCORE_LIMIT, LIMIT_WINDOW)

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        self._values.append(value)
        mean = statistics.fmean(self._values)
        if mean >= MIN_SCORE_LIMIT:
            return None
        advice = f": raise prm.beta by a factor of about {GOOD_SCORE_LIMIT / mean:.2g}" if mean > 0 else ""
        return (
            f"the largest score that the PRM can give a response is {mean:.2g} ({self.metric}: prm.beta times the nats "
            "of a response). Its loss is then nearly a straight line, and pushes responses that it is sure of as hard "
            f"as others{advice}"
        )


class ProbeAlarm(Alarm):
    """An alarm for a PRM that rewards the first wrong steps of the probe set more than right ones."""

    def __init__(self) -> None:
        super().__init__(STEP_AUROC, PROBE_WINDOW)

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        self._values.append(value)
        mean = statistics.fmean(self._values)
        if len(self._values) < PROBE_WINDOW or mean >= MIN_STEP_AUROC:
            return None
        return (
            f"{self.metric} is {mean:.2g} over the last {PROBE_WINDOW} probes: the PRM rewards the first wrong steps "
            "of prm.probe more than right ones. What it learns from outcomes is not what the solutions teach: lower "
            "advantage.process_coef, or start from a PRM that knows steps (prm.path)"
        )


def credit_alarms(config: GuardsConfig) -> dict[str, list[Alarm]]:
    """Return the alarms on process rewards by their flags."""
    chance: list[Alarm] = [ChanceAlarm()] if config.min_pair_accuracy else []
    return {
        "process_alarm": [ProcessAlarm(config.min_pair_accuracy)],
        "chance_alarm": chance,
        **{sign.flag: [SignAlarm(sign)] for sign in SIGNS},
        "beta_alarm": [ScoreLimitAlarm()],
        "probe_alarm": [ProbeAlarm()],
    }
