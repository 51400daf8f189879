"""Scores of reasoning steps by an implicit PRM, and their aggregation over a response.

The score of step k is S_k = beta * sum of q_t over all tokens up to the end of step k, where q_t is the log-ratio of
PRM and reference. It is the PRM's logit, after step k, that the response will be correct. The difference of consecutive
scores is the process reward of a step.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["min", "sum", "last"]
AGGREGATIONS: tuple[Aggregation, ...] = ("min", "sum", "last")


def step_scores(log_ratios_T: Tensor, steps_T: Sequence[int], num_steps: int, beta: float) -> list[float]:
    """Return the scores of all steps, summed in float64.

    Args:
        log_ratios_T: q_t of one response, in nats.
        steps_T: step of each token, in 0 .. num_steps - 1, nondecreasing. A step without tokens has the score of the
            previous step, or 0 if it is the first.
        num_steps: number of steps, at least 1.
        beta: scale of the log-ratio.

    Raises:
        ValueError: the lengths differ, or the steps decrease or are out of range.
    """
    if len(steps_T) != log_ratios_T.numel():
        raise ValueError(f"{log_ratios_T.numel()} log-ratios for the steps of {len(steps_T)} tokens")
    is_ordered = all(left <= right for left, right in itertools.pairwise(steps_T))
    if not is_ordered or (steps_T and not 0 <= steps_T[0] <= steps_T[-1] < num_steps):
        raise ValueError(f"steps must be nondecreasing and lie in 0 .. {num_steps - 1}")
    running_T = torch.cumsum(log_ratios_T.double(), dim=0) * beta
    # The end of step k is the number of tokens whose step is at most k.
    ends = torch.searchsorted(torch.tensor(steps_T), torch.arange(num_steps), right=True).tolist()
    return [float(running_T[end - 1]) if end else 0.0 for end in ends]


def response_score(scores: Sequence[float], aggregation: Aggregation) -> float:
    """Aggregate the step scores of a response: their minimum, their sum, or the last one (the logit of the outcome)."""
    if aggregation == "min":
        return min(scores)
    return math.fsum(scores) if aggregation == "sum" else scores[-1]
