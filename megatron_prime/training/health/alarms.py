"""Alarms on a run's metrics: spikes, collapses, truncation, divergence, a log-prob gap; `credit_alarms` has others.

An alarm warns once per episode: when its condition becomes true, and not again before it was false. Metrics that are
not finite are left out of the windows. The guards handle those; a gap of log-probs that is not finite is an alarm.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.training.health.alarm import Alarm
from megatron_prime.training.health.credit_alarms import credit_alarms

REWARD = "rollout/accuracy_sampled"
ENTROPY = "policy/entropy"
TRUNCATION = "rollout/truncated_fraction"
REF_KL = "policy/ref_kl"
GAP = "rollout/logprob_gap"
GAP_RATIO = 5.0
"""A mean gap this many times its usual value is a jump."""
MIN_JUMP = 0.02
"""Gaps up to this many nats are never a jump, because rounding in bf16 alone gives gaps of this size."""
GAP_HISTORY = 3
"""Number of steps after which the usual gap of a run is known."""
LEVEL_WINDOW = 5
"""Number of steps over which a metric is averaged before it is compared with a fixed limit."""
TRUNCATION_ADVICE = (
    "responses are cut off before their answers; raise rollout.max_response_tokens, or check that the model knows how "
    "to end a response"
)
REF_KL_ADVICE = (
    "the policy has left the reference far behind, and process rewards and fluency may no longer mean much; lower "
    "policy.lr or set policy.kl_coef"
)
GAP_ADVICE = (
    "A jump from one step to the next is a stale or broken weight sync: go back to the checkpoint before it. A gap "
    "from the first step on, or one that grows, is numerics, or with rollout.max_staleness the updates in between: "
    "serve the dtype that trains (platform.dtype); policy.correction = 'token' bounds what it does to the update, and "
    "docs/placement.md has the rest"
)
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution / its median absolute deviation."""


class SpikeAlarm(Alarm):
    """An alarm for a value far above its recent history.

    Far means `sigmas` robust standard deviations over the median of the last `window` values, and also more than twice
    the median, so that after a quiet history not every small change is a spike. It needs half a window of history.
    """

    def __init__(self, metric: str, window: int, sigmas: float) -> None:
        super().__init__(metric, window)
        self._sigmas = sigmas

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        before = list(self._values)
        # A spike enters the window too: a level that stays becomes normal, and medians tolerate single outliers.
        self._values.append(value)
        if 2 * len(before) < self._window:
            return None
        median = statistics.median(before)
        spread = MAD_TO_SIGMA * statistics.median(abs(other - median) for other in before)
        if value - median > self._sigmas * spread and value - median > abs(median):
            return f"{self.metric} = {value:.4g} spikes over its median of {median:.4g} (spread {spread:.2g})"
        return None


class CollapseAlarm(Alarm):
    """An alarm for a mean over `window` values below `fraction` of the highest such mean so far."""

    def __init__(self, metric: str, window: int, fraction: float) -> None:
        super().__init__(metric, window)
        self._fraction = fraction
        self._best = 0.0

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        self._values.append(value)
        if len(self._values) < self._window:
            return None
        mean = math.fsum(self._values) / self._window
        self._best = max(self._best, mean)
        if mean < self._fraction * self._best:
            return (
                f"{self.metric} has collapsed: {mean:.4g} on average over {self._window} steps, "
                f"{self._best:.4g} at its best"
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the window and the best mean."""
        return super().state_dict() | {"best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        super().load_state_dict(state)
        self._best = state["best"]


class LevelAlarm(Alarm):
    """An alarm for a mean over the last LEVEL_WINDOW values (fewer at the start) above a fixed limit; 0 disables it."""

    def __init__(self, metric: str, limit: float, advice: str) -> None:
        super().__init__(metric, LEVEL_WINDOW)
        self._limit = limit
        self._advice = advice

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        self._values.append(value)
        mean = math.fsum(self._values) / len(self._values)
        if not 0 < self._limit < mean:
            return None
        return f"{self.metric} has run away: {mean:.4g}, above {self._limit:g}: {self._advice}"


class GapAlarm(Alarm):
    """An alarm for a mean difference between trainer and engine log-probs that is not finite, too large, or a jump.

    Too large means above `limit`. A jump is more than GAP_RATIO times the median of the last `window` values, and more
    than MIN_JUMP. Weights that the trainer does not have differ by 0.1 to 0.4 nats, and numerics alone by less than
    0.03. A level that stays becomes the usual one.
    """

    judges_not_finite = True

    def __init__(self, window: int, limit: float) -> None:
        super().__init__(GAP, window)
        self._limit = limit

    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""
        differ = f"training and rollout log-probs differ by {value:.3g} nats on average"
        if not math.isfinite(value):
            return f"{differ}: a log-prob is not finite. {GAP_ADVICE}"
        before = list(self._values)
        self._values.append(value)
        if value > self._limit:
            return f"{differ} (alarm at guards.max_logprob_gap = {self._limit:g}). {GAP_ADVICE}"
        if len(before) < GAP_HISTORY:
            return None
        usual = statistics.median(before)
        if value > max(MIN_JUMP, GAP_RATIO * usual):
            return f"{differ}, and by {usual:.2g} in the steps before. {GAP_ADVICE}"
        return None


class Alarms:
    """All alarms of a run."""

    def __init__(self, config: GuardsConfig) -> None:
        window = config.alarm_window
        self._alarms: dict[str, list[Alarm]] = {
            "spike_alarm": [
                SpikeAlarm(metric, window, config.spike_sigmas) for metric in config.spike_metrics
            ],
            "reward_alarm": [CollapseAlarm(REWARD, window, config.reward_fraction)],
            "entropy_alarm": [CollapseAlarm(ENTROPY, window, config.entropy_fraction)],
            "truncation_alarm": [LevelAlarm(TRUNCATION, config.max_truncated_fraction, TRUNCATION_ADVICE)],
            "ref_kl_alarm": [LevelAlarm(REF_KL, config.max_ref_kl, REF_KL_ADVICE)],
            "gap_alarm": [GapAlarm(window, config.max_logprob_gap)],
            **credit_alarms(config),
        }
        self._active: set[str] = set()

    def look(self, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Return a step's flags (1 while a condition holds, else 0) and a warning for each episode that begins."""
        flags, warnings = dict.fromkeys(self._alarms, 0.0), []
        for flag, alarm in self._pairs():
            value = alarm.read(metrics)
            if value is None or not (math.isfinite(value) or alarm.judges_not_finite):
                continue
            why, key = alarm.look(value), _key(flag, alarm)
            if why is None:
                self._active.discard(key)
                continue
            flags[flag] = 1.0
            if key not in self._active:
                self._active.add(key)
                warnings.append(why)
        return flags, warnings

    def state_dict(self) -> dict[str, Any]:
        """Return windows and current episodes, as JSON can hold them."""
        windows = {_key(flag, alarm): alarm.state_dict() for flag, alarm in self._pairs()}
        return {"windows": windows, "active": sorted(self._active)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; alarms that it does not contain start with an empty history."""
        for flag, alarm in self._pairs():
            window = state.get("windows", {}).get(_key(flag, alarm))
            if window is not None:
                alarm.load_state_dict(window)
        self._active = set(state.get("active", ()))

    def _pairs(self) -> list[tuple[str, Alarm]]:
        return [(flag, alarm) for flag, alarms in self._alarms.items() for alarm in alarms]


def _key(flag: str, alarm: Alarm) -> str:
    return f"{flag} {alarm.metric}"
