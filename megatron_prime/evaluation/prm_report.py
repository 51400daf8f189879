"""All metrics of a PRM over its inputs, and the files they are written to.

saved responses -> reranking metrics (best of N, votes) and pair accuracy within problems
ProcessBench    -> accuracy on the first wrong step, F1
pairs           -> accuracy of ordering by the scores of the last steps
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_prime.config.run import PrimeConfig
from megatron_prime.evaluation.confidence import Intervals, bootstrap_interval, interval_metrics
from megatron_prime.evaluation.prm_inputs import PRMInputs
from megatron_prime.evaluation.prm_judge import (
    JudgedGroup,
    JudgedText,
    StepScorer,
    group_pair_accuracy,
    processbench_metrics,
    reranking_metrics,
)
from megatron_prime.evaluation.process_labels import LabelledSolution, Pair
from megatron_prime.evaluation.reranking import answer_key, pair_accuracy
from megatron_prime.evaluation.result_files import add_evaluation
from megatron_prime.evaluation.saved_responses import SavedProblem
from megatron_prime.observability.durable import make_private, replace_file

METRICS_FILE = "prm_evaluation.json"
STEP_SCORES_FILE = "step_scores.jsonl"
TENSORBOARD_FOLDER = "prm_tensorboard"


@dataclass(frozen=True)
class PRMReport:
    """Metrics of a PRM, their confidence intervals, and the step scores they were computed from."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: Intervals = field(default_factory=dict)
    """Intervals of the metrics that are means over problems; empty when none were requested."""
    step_scores: list[dict[str, Any]] = field(default_factory=list)
    """One record per scored text: its set, its origin (`where`), its steps and their scores."""

    def write(self, folder: Path, description: Mapping[str, Any]) -> None:
        """Add the metrics (JSON and TensorBoard), and write the step scores (JSON lines), below `folder`.

        `description` identifies the evaluation; see `result_files.describe`.
        """
        make_private(folder)
        metrics = self.metrics | interval_metrics(self.intervals)
        tensorboard_folder = folder / TENSORBOARD_FOLDER
        add_evaluation(folder / METRICS_FILE, tensorboard_folder, "prm_eval/", description, metrics)
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in self.step_scores]
        replace_file(folder / STEP_SCORES_FILE, "".join(lines))


def judge_prm(config: PrimeConfig, inputs: PRMInputs, scorer: StepScorer) -> PRMReport:
    """Score all inputs and compute every metric. Collective; the report is equal on every rank.

    Raises:
        ValueError: a text does not fit into a microbatch, problems have different numbers of responses, or the
            threshold is to be tuned on a split that lacks correct or erroneous solutions.
    """
    judge = _Judge(config, inputs, scorer)
    for name, problems in inputs.problems.items():
        judge.add_responses(name, problems)
    if inputs.solutions:
        judge.add_processbench(inputs.solutions)
    for name, pairs in inputs.pairs.items():
        judge.add_pairs(name, pairs)
    return judge.report


class _Judge:
    """Fills a report, one input at a time."""

    def __init__(self, config: PrimeConfig, inputs: PRMInputs, scorer: StepScorer) -> None:
        self._config = config
        self._inputs = inputs
        self._scorer = scorer
        self.report = PRMReport()

    def add_responses(self, name: str, problems: Sequence[SavedProblem]) -> None:
        texts = [
            self._inputs.split_steps(
                f"{problem.where}, response {number}", problem.prompt_ids, response.token_ids, response.turns
            )
            for problem in problems
            for number, response in enumerate(problem.responses)
        ]
        # The scores come in the order of the texts, problem by problem, and each group takes its share from the
        # front.
        scores = iter(self._score(f"responses/{name}", texts))
        groups = [
            JudgedGroup(
                [next(scores) for _ in problem.responses],
                [response.outcome for response in problem.responses],
                [answer_key(self._inputs.answer_text(response)) for response in problem.responses],
            )
            for problem in problems
        ]
        for method, values in reranking_metrics(groups).items():
            self._add_mean(f"{name}/{method}", values)
        accuracy, num_pairs = group_pair_accuracy(groups)
        self.report.metrics[f"{name}/pair_accuracy"] = accuracy
        self.report.metrics[f"{name}/num_pairs"] = float(num_pairs)

    def add_processbench(self, solutions: dict[str, list[LabelledSolution]]) -> None:
        scores = {
            split: self._score(
                f"processbench/{split}",
                [
                    JudgedText(row.where, row.prompt_ids, row.response_ids, row.token_steps, row.num_steps)
                    for row in rows
                ],
            )
            for split, rows in solutions.items()
        }
        labels = {split: [row.label for row in rows] for split, rows in solutions.items()}
        settings = self._config.prm_evaluation
        metrics = processbench_metrics(scores, labels, settings.tune_on, settings.threshold)
        self.report.metrics.update({f"processbench/{name}": value for name, value in metrics.items()})

    def add_pairs(self, name: str, pairs: Sequence[Pair]) -> None:
        texts = [
            self._inputs.split_steps(pair.where, pair.prompt_ids, response_ids)
            for pair in pairs
            for response_ids in (pair.chosen_ids, pair.rejected_ids)
        ]
        last = [scores[-1] for scores in self._score(f"pairs/{name}", texts)]
        # The chosen and the rejected response of a pair are neighbours in `last`.
        values = [pair_accuracy(last[row : row + 2], (1.0, 0.0))[0] for row in range(0, len(last), 2)]
        self._add_mean(f"{name}/pair_accuracy", values)

    def _score(self, name: str, texts: Sequence[JudgedText]) -> list[list[float]]:
        scores = self._scorer(texts)
        self.report.step_scores.extend(
            {
                "set": name,
                "where": text.where,
                "steps": self._inputs.step_texts(text),
                "step_scores": text_scores,
            }
            for text, text_scores in zip(texts, scores, strict=True)
        )
        return scores

    def _add_mean(self, name: str, values: Sequence[float]) -> None:
        """Add the mean of one value per problem, with its confidence interval if requested."""
        settings = self._config.evaluation
        self.report.metrics[name] = math.fsum(values) / len(values)
        if settings.num_resamples:
            seed = self._config.seed
            bounds = bootstrap_interval(values, settings.confidence, settings.num_resamples, seed)
            self.report.intervals[name] = bounds
