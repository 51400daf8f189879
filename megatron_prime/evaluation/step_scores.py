"""Scores of reasoning steps by an implicit PRM, and their aggregation over a response.

The score of step k is the value of the prefix that ends with it: the PRM's logit, after step k, that the response will
be correct. For most objectives (`prm.loss`) that is S_k = beta * sum of q_t over all tokens up to the end of step k,
where q_t is the log-ratio of PRM and reference; the difference of consecutive scores is then the process reward of a
step.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["min", "sum", "last"]
AGGREGATIONS: tuple[Aggregation, ...] = ("min", "sum", "last")


def step_scores(prefix_logits_L: Tensor, steps_T: Sequence[int], num_steps: int) -> list[float]:
    """Return the scores of all steps.

    Args:
        prefix_logits_L: value of each prefix of one response, of 0 to T tokens (`PRMObjective.prefix_logits_BL`).
        steps_T: step of each token, in 0 .. num_steps - 1, nondecreasing. A step without tokens has the score of the
            previous step, or that of the empty prefix if it is the first.
        num_steps: number of steps, at least 1.

    Raises:
        ValueError: the lengths differ, or the steps decrease or are out of range.
    """
    if len(steps_T) + 1 != prefix_logits_L.numel():
        raise ValueError(
            f"{prefix_logits_L.numel()} values of prefixes for the steps of {len(steps_T)} tokens"
        )
    is_ordered = all(left <= right for left, right in itertools.pairwise(steps_T))
    if not is_ordered or (steps_T and not 0 <= steps_T[0] <= steps_T[-1] < num_steps):
        raise ValueError(f"steps must be nondecreasing and lie in 0 .. {num_steps - 1}")
    # The end of step k is the number of tokens whose step is at most k.
    ends = torch.searchsorted(torch.tensor(steps_T), torch.arange(num_steps), right=True).tolist()
    return prefix_logits_L[ends].tolist()


def response_score(scores: Sequence[float], aggregation: Aggregation) -> float:
    """Aggregate the step scores of a response: their minimum, their sum, or the last one (the logit of the outcome)."""
    if aggregation == "min":
        return min(scores)
    return math.fsum(scores) if aggregation == "sum" else scores[-1]
