"""The one declaration of everything that a run logs: tag, kind, unit and description.

TensorBoard, Weights & Biases, MLflow, the viewer and the reference of the documentation read it. A part of a tag in
angle brackets, as in `eval/<benchmark>/accuracy`, stands for a name that the run chooses.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_prime.observability.declared_metrics import evaluation, learning, running
from megatron_prime.observability.declared_metrics.rows import Kind, Row, Unit


@dataclass(frozen=True, slots=True)
class Metric:
    """A declared tag."""

    tag: str
    """`group/quantity`; a part in angle brackets stands for any name."""
    unit: Unit
    description: str
    """Says in full sentences what the value is, and how it was averaged."""
    kind: Kind = "scalar"

    @property
    def group(self) -> str:
        """The part of the tag before the first slash."""
        return self.tag.partition("/")[0]

    @property
    def documentation(self) -> str:
        """The description with the unit, as loggers show it."""
        return f"{self.description} Unit: {_UNIT_TEXTS.get(self.unit, self.unit)}."

    def covers(self, name: str) -> bool:
        """Return whether this is the declaration of a logged name."""
        return _pattern(self.tag).fullmatch(name) is not None


_UNIT_TEXTS = {
    "fraction": "fraction in [0, 1]",
    "1": "none (a plain number)",
    "0 or 1": "0 or 1",
    "reward": "outcome reward, in [0, 1]",
    "nats/token": "nats per response token",
    "tokens/s": "tokens per second",
}
_NAME_PATTERNS = {"<source>": r"\S[^\n]*", "<k>": r"\d+", "<N>": r"\d+"}
"""Placeholders with a form of their own: a data source has any name, which may contain slashes."""


@functools.cache
def _pattern(tag: str) -> re.Pattern[str]:
    parts = re.split(r"(<\w+>)", tag)
    return re.compile(
        "".join(
            _NAME_PATTERNS.get(part, r"[^/\n]+") if part.startswith("<") else re.escape(part)
            for part in parts
        )
    )


def described_metrics() -> tuple[Metric, ...]:
    """Return every declared metric, in the order in which a reader meets them; no tag occurs twice."""
    return _METRICS


@functools.cache
def metric_of(name: str) -> Metric | None:
    """Return the declaration of a logged name; None for an unknown one, as of a user's own policy loss."""
    # The declaration with the longest literal text is the most specific one.
    covering = [metric for metric in described_metrics() if metric.covers(name)]
    return max(covering, key=lambda metric: len(re.sub(r"<\w+>", "", metric.tag)), default=None)


def description_of(name: str) -> str:
    """Return the description and the unit of a logged name; "" for an unknown one."""
    metric = metric_of(name)
    return "" if metric is None else metric.documentation


def _all_metrics() -> Iterator[Metric]:
    groups: dict[str, Sequence[Row]] = {
        "rollout": learning.ROLLOUT,
        "prompts": learning.PROMPTS,
        "prm": learning.PRM,
        "policy": learning.POLICY,
        "advantage": learning.ADVANTAGE,
        "eval": [
            (tag, unit, text.format(set="the held-out prompts"))
            for tag, unit, text, *_ in evaluation.EVALUATION
        ],
        "eval/<benchmark>": [
            (tag, unit, text.format(set="a benchmark")) for tag, unit, text, *_ in evaluation.EVALUATION
        ],
        "probe": evaluation.PROBE,
        "prm_eval": evaluation.PRM_EVALUATION,
        "guards": running.GUARDS,
        "sft": running.SFT,
        "throughput": running.THROUGHPUT,
        "weight_sync": running.WEIGHT_SYNC,
        "time": running.TIME,
        "memory": running.MEMORY,
        "run": running.RUN,
    }
    for group, rows in groups.items():
        for tag, unit, description, *kind in rows:
            yield Metric(f"{group}/{tag}", unit, description, *kind)  # type: ignore[arg-type]
        if group == "eval":
            for tag, unit, description, *_ in evaluation.EVALUATION_OVERALL:
                yield Metric(f"{group}/{tag}", unit, description)


_METRICS = tuple(_all_metrics())
