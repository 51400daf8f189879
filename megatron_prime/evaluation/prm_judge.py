"""Step scores of an implicit PRM, and the reranking and ProcessBench metrics that follow from them.

texts -> log-probs of PRM and reference -> step scores -> best of N, votes, F1, pair accuracy
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_prime.algorithm.prm_loss import prm_objective
from megatron_prime.algorithm.tensor_ops import zero_padding
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.evaluation.first_errors import (
    CORRECT,
    best_threshold,
    first_error_accuracy,
)
from megatron_prime.evaluation.reranking import best_of_n, pair_accuracy, sigmoid, vote
from megatron_prime.evaluation.step_scores import AGGREGATIONS, response_score, step_scores
from megatron_prime.models.forward import Scores, Sequences
from megatron_prime.observability.progress import SILENT, Progress

ROWS_AT_ONCE = 256
"""Responses scored in one call. It bounds the size of the padded [rows, longest response] tensors, not the packing."""


class TextScorer(Protocol):
    """A model that gives responses log-probs, such as `training.trainable.Scorer`."""

    def score(self, sequences: Sequences) -> Scores:
        """Return the log-probs of all rows, equal on every rank. Collective."""
        ...


@dataclass(frozen=True, slots=True)
class JudgedText:
    """A prompt and a response, with the reasoning step of each response token."""

    where: str
    """File and row, for error messages."""
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    token_steps: Sequence[int]
    num_steps: int
    scored_spans: Sequence[tuple[int, int]] | None = None
    """First position and end of each stretch of tokens that the scores count; None for all."""


class StepScorer:
    """Computes the step scores of an implicit PRM from the log-probs of two models, by packed forward passes.

    Args:
        prm: the process reward model.
        reference: the model in the denominator of the log-ratio.
        config: the [prm] section, whose loss says how values of prefixes follow from log-ratios.
        max_tokens: longest sequence, prompt and response, that fits into a microbatch and into the models.
        progress: shows how many responses are scored.
    """

    def __init__(
        self,
        prm: TextScorer,
        reference: TextScorer,
        config: PRMConfig,
        max_tokens: int,
        progress: Progress = SILENT,
    ) -> None:
        self._progress = progress
        self._prm = prm
        self._reference = reference
        self._objective = prm_objective(config)
        self._max_tokens = max_tokens

    def __call__(self, texts: Sequence[JudgedText]) -> list[list[float]]:
        """Return the score of every step of every text (see `step_scores`). Collective; equal on every rank.

        Raises:
            ValueError: a text is longer than max_tokens, or has no response token.
        """
        for text in texts:
            length = len(text.prompt_ids) + len(text.response_ids)
            if length > self._max_tokens:
                raise ValueError(
                    f"{text.where}: {length} tokens, more than the {self._max_tokens} that "
                    "trainer.max_tokens_per_microbatch and the models' positions allow"
                )
            if not text.response_ids:
                raise ValueError(f"{text.where}: the response has no tokens")
        scores: list[list[float]] = []
        with self._progress.phase("responses scored", len(texts)) as advance:
            for start in range(0, len(texts), ROWS_AT_ONCE):
                scores += self._score(texts[start : start + ROWS_AT_ONCE])
                advance(min(ROWS_AT_ONCE, len(texts) - start))
        return scores

    def _score(self, texts: Sequence[JudgedText]) -> list[list[float]]:
        sequences = [(text.prompt_ids, text.response_ids) for text in texts]
        # float64: the log-ratio is a small difference of large sums over many tokens.
        prm_BT = self._prm.score(sequences).logprobs_BT.double()
        ref_BT = self._reference.score(sequences).logprobs_BT.double()
        ratios_BT: torch.Tensor = (prm_BT - ref_BT).cpu()
        scored_BT = torch.zeros(ratios_BT.shape, dtype=torch.bool)
        for row, text in enumerate(texts):
            for start, end in (
                [(0, len(text.response_ids))] if text.scored_spans is None else text.scored_spans
            ):
                scored_BT[row, start:end] = True
        values_BL = self._objective.prefix_logits_BL(
            zero_padding(ratios_BT, scored_BT), scored_BT, ratios_BT.new_zeros(len(texts))
        )
        return [
            step_scores(values_BL[row, : len(text.response_ids) + 1], text.token_steps, text.num_steps)
            for row, text in enumerate(texts)
        ]


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """The responses to one problem, in the order of sampling."""

    scores: Sequence[Sequence[float]]
    """Step scores of each response."""
    outcomes: Sequence[float]
    """Verified outcome of each response; NaN (a verifier error) counts as 0 when the response is chosen."""
    answers: Sequence[Hashable | None]
    """Answer of each response in a form that is equal for equal answers; None without an answer."""


def reranking_metrics(groups: Sequence[JudgedGroup]) -> dict[str, list[float]]:
    """Return the outcome of the response chosen for each problem, by method and number of responses N.

    The keys are `avg@N` (a random choice), `pass@N` (an ideal choice), `majority@N`, `best_<aggregation>@N` and
    `weighted_vote@N` (each response votes with the sigmoid of its last step score). N is 1, 2, 4, ... and the number of
    responses; the choice is among the first N responses.

    Raises:
        ValueError: there are no problems, or they have different numbers of responses.
    """
    # A mean over problems with different N would mix different tasks.
    sizes = {len(group.outcomes) for group in groups}
    if len(sizes) != 1:
        raise ValueError(
            f"best-of-N needs the same number of responses for every problem; there are {sorted(sizes)}"
        )
    (size,) = sizes
    counts = sorted({1 << power for power in range(size.bit_length())} | {size})
    return {
        f"{method}@{count}": [chosen[method] for chosen in (_choices(group, count) for group in groups)]
        for count in counts
        for method in ("avg", "pass", "majority", *(f"best_{each}" for each in AGGREGATIONS), "weighted_vote")
    }


def _choices(group: JudgedGroup, count: int) -> dict[str, float]:
    """Return the outcome of each method's choice among the first `count` responses."""
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
        **{name: 0.0 if chosen is None else outcomes[chosen] for name, chosen in votes.items()},
        **best,
    }


def group_pair_accuracy(groups: Sequence[JudgedGroup]) -> tuple[float, int]:
    """Return the fraction of (correct, wrong) pairs within problems that the last step scores order correctly.

    Pairs are pooled over all problems; the second value is their number. The fraction is NaN without pairs.
    """
    num_correct, num_pairs = 0.0, 0
    for group in groups:
        accuracy, count = pair_accuracy(
            [response_score(each, "last") for each in group.scores], group.outcomes
        )
        num_correct += accuracy * count if count else 0.0
        num_pairs += count
    return (num_correct / num_pairs if num_pairs else math.nan), num_pairs


def processbench_metrics(
    scores: Mapping[str, Sequence[Sequence[float]]],
    labels: Mapping[str, Sequence[int]],
    tune_on: str,
    threshold: float | None,
) -> dict[str, float]:
    """Return the accuracies and the F1 of every split, the mean F1, and the threshold as a probability.

    Args:
        scores: split -> step scores of its solutions.
        labels: split -> labels of its solutions.
        tune_on: split on which the threshold is tuned.
        threshold: fixed threshold in (0, 1); None tunes it.
    """
    if threshold is None:
        logit = best_threshold(scores[tune_on], labels[tune_on])
    else:
        # Step scores are logits, so the probability is converted: log(p / (1 - p)).
        logit = math.log(threshold) - math.log1p(-threshold)
    metrics = {"threshold": sigmoid(logit)}
    for split, split_scores in scores.items():
        accuracy = first_error_accuracy(split_scores, labels[split], logit)
        # The threshold is tuned on one split and applied to all, as ProcessBench does.
        metrics[f"{split}/erroneous"] = accuracy.erroneous
        metrics[f"{split}/correct"] = accuracy.correct
        metrics[f"{split}/f1"] = accuracy.f1
        metrics[f"{split}/num_solutions"] = float(len(split_scores))
        metrics[f"{split}/num_correct"] = float(sum(label == CORRECT for label in labels[split]))
    metrics["f1"] = math.fsum(metrics[f"{split}/f1"] for split in scores) / len(scores)
    return metrics
