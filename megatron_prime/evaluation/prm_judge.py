"""Judging a PRM without labels of steps, or with ProcessBench's: scores by two models, and what follows from them.

responses, solutions, pairs -> log-probs of PRM and reference -> step scores -> best of N, votes, F1, pair accuracy
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_prime.evaluation.first_errors import (
    CORRECT,
    best_threshold,
    first_error_accuracy,
)
from megatron_prime.evaluation.reranking import best_of_n, pair_accuracy, sigmoid, vote
from megatron_prime.evaluation.step_scores import AGGREGATIONS, response_score, step_scores
from megatron_prime.training.trainable import Scorer

ROWS_AT_ONCE = 256
"""Responses scored in one call: bounds the [rows, longest] tensors, not the packing."""


@dataclass(frozen=True, slots=True)
class JudgedText:
    """A prompt and a response, with the step of each response token."""

    where: str
    """File and row, for errors."""
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    token_steps: Sequence[int]
    num_steps: int


class StepScorer:
    """Step scores of an implicit PRM: log-ratios of two models by Megatron's packed forward pass.

    Args:
        prm: the PRM.
        reference: what it is compared with.
        beta: scale of the log-ratio.
        max_tokens: longest sequence that a microbatch takes.
    """

    def __init__(self, prm: Scorer, reference: Scorer, beta: float, max_tokens: int) -> None:
        self._prm = prm
        self._reference = reference
        self._beta = beta
        self._max_tokens = max_tokens

    def __call__(self, texts: Sequence[JudgedText]) -> list[list[float]]:
        """S_k of every step of every text, equal on every rank. Collective.

        Raises:
            ValueError: a text is longer than a microbatch, or has no response token.
        """
        for text in texts:
            length = len(text.prompt_ids) + len(text.response_ids)
            if length > self._max_tokens:
                raise ValueError(
                    f"{text.where}: {length} tokens, more than trainer.max_tokens_per_microbatch = {self._max_tokens}: "
                    "raise it"
                )
            if not text.response_ids:
                raise ValueError(f"{text.where}: the response has no tokens")
        scores: list[list[float]] = []
        for start in range(0, len(texts), ROWS_AT_ONCE):
            scores += self._score(texts[start : start + ROWS_AT_ONCE])
        return scores

    def _score(self, texts: Sequence[JudgedText]) -> list[list[float]]:
        sequences = [(text.prompt_ids, text.response_ids) for text in texts]
        prm_BT = self._prm.score(sequences).logprobs_BT.double()
        ref_BT = self._reference.score(sequences).logprobs_BT.double()
        ratios_BT: torch.Tensor = (prm_BT - ref_BT).cpu()
        return [
            step_scores(
                ratios_BT[row, : len(text.response_ids)], text.token_steps, text.num_steps, self._beta
            )
            for row, text in enumerate(texts)
        ]


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """The responses to one problem, in the order of sampling."""

    scores: Sequence[Sequence[float]]
    """Step scores of each response."""
    outcomes: Sequence[float]
    """Verified outcome of each; NaN, a verifier error, counts as 0 where a response is chosen."""
    answers: Sequence[Hashable | None]
    """What each response answers, in a form that equal answers share; None without an answer."""


def reranking_metrics(groups: Sequence[JudgedGroup]) -> dict[str, list[float]]:
    """Outcome of the response chosen for each problem, by method and number of responses N.

    Names: `avg@N` (choosing blindly), `pass@N` (choosing rightly), `majority@N`, `best_<aggregation>@N` and
    `weighted_vote@N` (each response votes with sigmoid of its last score). N runs over 1, 2, 4, ... and all; the first
    N responses are looked at, so that problems need as many each.

    Raises:
        ValueError: no problems, or different numbers of responses.
    """
    sizes = {len(group.outcomes) for group in groups}
    if len(sizes) != 1:
        raise ValueError(f"best-of-N needs the same number of responses a problem; there are {sorted(sizes)}")
    (size,) = sizes
    counts = sorted({1 << power for power in range(size.bit_length())} | {size})
    return {
        f"{method}@{count}": [chosen[method] for chosen in (_choices(group, count) for group in groups)]
        for count in counts
        for method in ("avg", "pass", "majority", *(f"best_{each}" for each in AGGREGATIONS), "weighted_vote")
    }


def _choices(group: JudgedGroup, count: int) -> dict[str, float]:
    """Outcome by method, of the first `count` responses."""
    outcomes = [0.0 if math.isnan(outcome) else outcome for outcome in group.outcomes[:count]]
    scores, answers = group.scores[:count], group.answers[:count]
    last = [sigmoid(response_score(each, "last")) for each in scores]
    votes = {"majority": vote(answers, [1.0] * count), "weighted_vote": vote(answers, last)}
    best = {
        f"best_{aggregation}": outcomes[best_of_n([response_score(each, aggregation) for each in scores])]
        for aggregation in AGGREGATIONS
    }
    return {
        "avg": math.fsum(outcomes) / count,
        "pass": max(outcomes),
        **{name: 0.0 if place is None else outcomes[place] for name, place in votes.items()},
        **best,
    }


def group_pair_accuracy(groups: Sequence[JudgedGroup]) -> tuple[float, int]:
    """Share of right-wrong pairs within problems that the last step scores order rightly, pooled; and their number."""
    right, num_pairs = 0.0, 0
    for group in groups:
        share, count = pair_accuracy([response_score(each, "last") for each in group.scores], group.outcomes)
        right += share * count if count else 0.0
        num_pairs += count
    return (right / num_pairs if num_pairs else math.nan), num_pairs


def processbench_metrics(
    scores: Mapping[str, Sequence[Sequence[float]]],
    labels: Mapping[str, Sequence[int]],
    tune_on: str,
    threshold: float | None,
) -> dict[str, float]:
    """Accuracies and F1 of every split, their mean F1, and the threshold, as a probability.

    Args:
        scores: split -> step scores of its solutions.
        labels: split -> labels of its solutions.
        tune_on: split that the threshold is chosen on.
        threshold: chosen before, in (0, 1); None chooses it.
    """
    if threshold is None:
        logit = best_threshold(scores[tune_on], labels[tune_on])
    else:
        logit = math.log(threshold) - math.log1p(-threshold)
    metrics = {"threshold": sigmoid(logit)}
    for split, scores_of_split in scores.items():
        accuracy = first_error_accuracy(scores_of_split, labels[split], logit)
        metrics[f"{split}/erroneous"] = accuracy.erroneous
        metrics[f"{split}/correct"] = accuracy.correct
        metrics[f"{split}/f1"] = accuracy.f1
        metrics[f"{split}/num_solutions"] = float(len(scores_of_split))
        metrics[f"{split}/num_correct"] = float(sum(label == CORRECT for label in labels[split]))
    metrics["f1"] = math.fsum(metrics[f"{split}/f1"] for split in scores) / len(scores)
    return metrics
