"""Lengths of responses: log-normal, with the mean, the limit and the tail of published rollouts.

- Mean 7,615 and limit 40,960 tokens are those of Qwen2-VL-72B in RL on 128 GPUs (Seer, arXiv 2511.14617, its table of
  workloads).
- The tail is that of RLHFuse (arXiv 2409.13221), which reports a 99.9th percentile of more than ten times the median,
  for several models. Ten times is sigma = ln(10) / 3.09 = 0.745 of the logarithm.
- That responses to one prompt have similar lengths is an observation of Seer; the correlation of 0.5 of the logarithms
  is an assumption.

The limit cuts 0.4 % of the responses.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.overlap.fleet import Group


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution that is cut at a limit."""

    mean: float = 7615.0
    """Mean before the cut."""
    limit: int = 40960
    sigma: float = math.log(10) / 3.0902
    """Standard deviation of the logarithm."""
    correlation: float = 0.5
    """Correlation of the logarithms of two responses to one prompt."""

    def draw(self, rng: random.Random, num: int) -> tuple[int, ...]:
        """Return the lengths of the responses to a prompt."""
        center = math.log(self.mean) - self.sigma**2 / 2
        shared = math.sqrt(self.correlation) * rng.gauss(0, 1)
        own = math.sqrt(1 - self.correlation)
        drawn = (center + self.sigma * (shared + own * rng.gauss(0, 1)) for _ in range(num))
        return tuple(min(self.limit, max(1, round(math.exp(each)))) for each in drawn)


@dataclass(frozen=True)
class Workload:
    """Draws groups, the same ones for every schedule."""

    lengths: Lengths = Lengths()
    group_size: int = 4
    prompt_tokens: int = 512
    keep_rate: float = 0.6
    """Fraction of the groups that the filter keeps."""
    verify_s: float = 2.0
    """Mean time of a verification, which is exponentially distributed."""
    seed: int = 0

    def draw(self, prompt_index: int, version: int) -> Group:
        """Return the group of a prompt."""
        rng = random.Random(f"{self.seed} {prompt_index} {version}")
        lengths = self.lengths.draw(rng, self.group_size)
        verify_s = tuple(rng.expovariate(1 / self.verify_s) if self.verify_s else 0.0 for _ in lengths)
        return Group(self.prompt_tokens, lengths, verify_s, rng.random() < self.keep_rate)


def quantiles(values: Sequence[float], at: Sequence[float]) -> list[float]:
    """Return the values at fractions of the sorted list."""
    ordered = sorted(values)
    return [ordered[min(len(ordered) - 1, int(each * len(ordered)))] for each in at]
