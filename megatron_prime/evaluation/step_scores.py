"""Scores of reasoning steps by an implicit PRM, and of whole responses by their steps.

The score of step k is S_k = beta * (sum of q_t over all tokens up to the end of step k): the PRM's logit, at that
point, that the response will be correct. Its change from step to step is the step's process reward.
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
    """S_1 ... S_num_steps, in nats, summed in float64.

    Args:
        log_ratios_T: q_t of one response.
        steps_T: step of each token, 0 .. num_steps - 1, nondecreasing. A step without tokens has the score of the
            one before it; before any token the score is 0.
        num_steps: one or more.
        beta: scale of the log-ratio.

    Raises:
        ValueError: lengths differ, or steps that decrease or lie outside.
    """
    if len(steps_T) != log_ratios_T.numel():
        raise ValueError(f"{log_ratios_T.numel()} log-ratios for the steps of {len(steps_T)} tokens")
    is_ordered = all(left <= right for left, right in itertools.pairwise(steps_T))
    if not is_ordered or (steps_T and not 0 <= steps_T[0] <= steps_T[-1] < num_steps):
        raise ValueError(f"steps must be nondecreasing and lie in 0 .. {num_steps - 1}")
    running_T = torch.cumsum(log_ratios_T.double(), dim=0) * beta
    ends = torch.searchsorted(torch.tensor(steps_T), torch.arange(num_steps), right=True).tolist()
    return [float(running_T[end - 1]) if end else 0.0 for end in ends]


def response_score(scores: Sequence[float], aggregation: Aggregation) -> float:
    """One number of a response's step scores: the least, their sum, or that of the last step (the outcome's logit)."""
    if aggregation == "min":
        return min(scores)
    return math.fsum(scores) if aggregation == "sum" else scores[-1]
