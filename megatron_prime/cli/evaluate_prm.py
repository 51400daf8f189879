"""`megatron-prime eval-prm`."""

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from megatron_prime.cli.assemble import scoring_settings, start_topology
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.steps import step_ids
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.evaluation.confidence import bootstrap_interval
from megatron_prime.evaluation.prm_judge import (
    JudgedGroup,
    JudgedText,
    StepScorer,
    group_pair_accuracy,
    processbench_metrics,
    reranking_metrics,
)
from megatron_prime.evaluation.process_labels import LabelledSolution, Pair, read_pairs, read_processbench
from megatron_prime.evaluation.reranking import pair_accuracy
from megatron_prime.evaluation.saved_responses import SavedProblem, read_responses
from megatron_prime.observability import Progress
from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.tensorboard import TensorBoardWriter
from megatron_prime.parallel.watchdog import stop_watchdog
from megatron_prime.rewards.math.boxed import last_boxed
from megatron_prime.training.trainable import Scorer

Intervals = dict[str, tuple[float, float]]


def evaluate_prm(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Judge prm.path against reference.path by what [prm_evaluation] names.

    Prints a table, and writes below run_dir: prm_evaluation.json, step_scores.jsonl and prm_tensorboard/.
    """
    topology = start_topology(config)
    progress = Progress(enabled=topology.rank == 0)
    inputs = _Inputs(config)
    for line in inputs.lines():
        progress.line(line)
    settings = scoring_settings(config)
    memory, acceleration = config.memory, config.acceleration
    prm = Scorer("prm", config.prm_path, topology, settings, memory=memory, acceleration=acceleration)
    reference_path = config.evaluated_reference_path
    reference = Scorer(
        "reference", reference_path, topology, settings, memory=memory, acceleration=acceleration
    )
    for role in (prm, reference):
        role.residency.park()
    scorer = StepScorer(prm, reference, config.prm.beta, config.trainer.max_tokens_per_microbatch)
    report = _Report(config, inputs, scorer)
    if topology.rank == 0:
        report.write(progress)
    stop_watchdog()
    topology.close()


class _Inputs:
    """All texts to score, read before any model is loaded."""

    def __init__(self, config: PrimeConfig) -> None:
        settings = config.prm_evaluation
        tokenizer: Any = load_tokenizer(config.model.path)
        self.problems: dict[str, list[SavedProblem]] = {
            path.stem: list(read_responses(path)) for path in settings.responses
        }
        self.solutions: dict[str, list[LabelledSolution]] = {
            split: list(read_processbench(path, config.data, tokenizer))
            for split, path in settings.processbench.items()
        }
        self.pairs: dict[str, list[Pair]] = {
            path.stem: list(read_pairs(path, config.data, tokenizer)) for path in settings.pairs
        }
        self._tokenizer = tokenizer
        named: list[tuple[str, Sequence[object]]] = [
            *self.problems.items(),
            *self.solutions.items(),
            *self.pairs.items(),
        ]
        empty = [name for name, rows in named if not rows]
        if empty:
            raise ValueError(f"prm_evaluation: {', '.join(empty)} has no rows")

    def lines(self) -> list[str]:
        """What was read."""
        return [
            *(f"responses {name}: {len(rows)} problems" for name, rows in self.problems.items()),
            *(f"ProcessBench {split}: {len(rows)} solutions" for split, rows in self.solutions.items()),
            *(f"pairs {name}: {len(rows)}" for name, rows in self.pairs.items()),
        ]

    def text(self, where: str, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> JudgedText:
        """A response, cut into reasoning steps."""
        steps = step_ids(self._tokenizer, response_ids)
        return JudgedText(where, prompt_ids, response_ids, steps, steps[-1] + 1 if steps else 0)

    def step_texts(self, text: JudgedText) -> list[str]:
        """What each step says, by the tokens that it owns; "" of a step without any."""
        tokens: list[list[int]] = [[] for _ in range(text.num_steps)]
        for token, step in zip(text.response_ids, text.token_steps, strict=True):
            tokens[step].append(token)
        return [self._tokenizer.decode(of_step, skip_special_tokens=True) for of_step in tokens]


class _Report:
    """Scores everything; rank 0 writes it down."""

    def __init__(self, config: PrimeConfig, inputs: _Inputs, scorer: StepScorer) -> None:
        self._config = config
        self.metrics: dict[str, float] = {}
        self.intervals: Intervals = {}
        self._inputs = inputs
        self._step_scores: list[dict[str, Any]] = []
        for name, problems in inputs.problems.items():
            self._judge_responses(name, problems, inputs, scorer)
        if inputs.solutions:
            self._judge_solutions(inputs.solutions, scorer)
        for name, pairs in inputs.pairs.items():
            self._judge_pairs(name, pairs, inputs, scorer)

    def _judge_responses(
        self, name: str, problems: Sequence[SavedProblem], inputs: _Inputs, scorer: StepScorer
    ) -> None:
        texts = [
            inputs.text(f"{problem.where}, response {number}", problem.prompt_ids, response.token_ids)
            for problem in problems
            for number, response in enumerate(problem.responses)
        ]
        scores = iter(self._scored(f"responses/{name}", texts, scorer))
        groups = [
            JudgedGroup(
                [next(scores) for _ in problem.responses],
                [response.outcome for response in problem.responses],
                [answer_key(response.text) for response in problem.responses],
            )
            for problem in problems
        ]
        for method, values in reranking_metrics(groups).items():
            self._add_mean(f"{name}/{method}", values)
        self.metrics[f"{name}/pair_accuracy"], num_pairs = group_pair_accuracy(groups)
        self.metrics[f"{name}/num_pairs"] = float(num_pairs)

    def _judge_solutions(self, solutions: dict[str, list[LabelledSolution]], scorer: StepScorer) -> None:
        scores = {
            split: self._scored(
                f"processbench/{split}",
                [
                    JudgedText(row.where, row.prompt_ids, row.response_ids, row.token_steps, row.num_steps)
                    for row in rows
                ],
                scorer,
            )
            for split, rows in solutions.items()
        }
        labels = {split: [row.label for row in rows] for split, rows in solutions.items()}
        settings = self._config.prm_evaluation
        metrics = processbench_metrics(scores, labels, settings.tune_on, settings.threshold)
        self.metrics |= {f"processbench/{name}": value for name, value in metrics.items()}

    def _judge_pairs(self, name: str, pairs: Sequence[Pair], inputs: _Inputs, scorer: StepScorer) -> None:
        texts = [
            inputs.text(pair.where, pair.prompt_ids, response_ids)
            for pair in pairs
            for response_ids in (pair.chosen_ids, pair.rejected_ids)
        ]
        last = [scores[-1] for scores in self._scored(f"pairs/{name}", texts, scorer)]
        values = [pair_accuracy(last[row : row + 2], (1.0, 0.0))[0] for row in range(0, len(last), 2)]
        self._add_mean(f"{name}/pair_accuracy", values)

    def _scored(self, name: str, texts: Sequence[JudgedText], scorer: StepScorer) -> list[list[float]]:
        scores = scorer(texts)
        self._step_scores += [
            {
                "set": name,
                "where": text.where,
                "steps": self._inputs.step_texts(text),
                "step_scores": scores_of_text,
            }
            for text, scores_of_text in zip(texts, scores, strict=True)
        ]
        return scores

    def _add_mean(self, name: str, values: Sequence[float]) -> None:
        """A mean over problems, with its interval."""
        settings = self._config.evaluation
        self.metrics[name] = math.fsum(values) / len(values)
        if settings.num_resamples:
            seed = self._config.seed
            bounds = bootstrap_interval(values, settings.confidence, settings.num_resamples, seed)
            self.intervals[name] = bounds

    def write(self, progress: Progress) -> None:
        """Table, JSON, step scores and TensorBoard."""
        folder = self._config.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        bounds = {
            f"{name}_ci_{side}": bound
            for name, pair in self.intervals.items()
            for side, bound in zip(("low", "high"), pair, strict=True)
        }
        metrics = self.metrics | bounds
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        replace_file(folder / "prm_evaluation.json", json.dumps(finite, indent=2) + "\n")
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in self._step_scores]
        replace_file(folder / "step_scores.jsonl", "".join(lines))
        writer = TensorBoardWriter(folder / "prm_tensorboard")
        writer.log(0, {f"prm_eval/{name}": value for name, value in metrics.items()})
        writer.close()
        progress.table(self._table())
        progress.line(
            f"written to {folder / 'prm_evaluation.json'}, step scores to step_scores.jsonl beside it"
        )

    def _table(self) -> Table:
        level = f"{self._config.evaluation.confidence:.0%} interval"
        table = Table("metric", "value", level, title=f"PRM {self._config.prm_path}")
        for name, value in self.metrics.items():
            pair = self.intervals.get(name)
            shown = f"{value:g}" if "num_" in name else f"{value:.4f}"
            table.add_row(name, shown, "" if pair is None else f"[{pair[0]:.3f}, {pair[1]:.3f}]")
        return table


def answer_key(text: str) -> str | None:
    """What a response answers, for votes: its last box, else its last line; without white space. None when empty.

    Equal answers written differently are different votes: telling them equal takes a verifier for every pair.
    """
    answer = last_boxed(text)
    if answer is None:
        lines = text.strip().splitlines()
        answer = lines[-1] if lines else ""
    return "".join(answer.split()) or None
