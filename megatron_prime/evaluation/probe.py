"""The metrics of a run's PRM on the labelled solutions of its probe set: what it knows of single steps.

Scores are the values of prefixes (`step_scores`): the PRM's logit, after each step, that the solution is correct.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from itertools import pairwise

from megatron_prime.evaluation.first_errors import CORRECT
from megatron_prime.evaluation.prm_judge import JudgedText, StepScorer, TextScorer
from megatron_prime.evaluation.probe_set import ProbeSet
from megatron_prime.models.forward import Scores, Sequences

Values = Sequence[Sequence[float]]
"""Value after each step of each solution."""


class PRMProbe:
    """Measures a PRM on a probe set.

    Args:
        probe_set: the solutions.
        scorer: of the PRM as it is when called.
    """

    def __init__(self, probe_set: ProbeSet, scorer: StepScorer) -> None:
        self._set = probe_set
        self._scorer = scorer

    def __call__(self) -> dict[str, float]:
        """Return the metrics of `probe_metrics`. Collective over all ranks; equal on every rank."""
        texts = [*self._set.solutions, *(copy for _, copy in self._set.planted)]
        values = self._scorer(
            [
                JudgedText(text.where, text.prompt_ids, text.response_ids, text.token_steps, text.num_steps)
                for text in texts
            ]
        )
        num_solutions = len(self._set.solutions)
        labels = [solution.label for solution in self._set.solutions]
        planted = [
            (values[original], changed, copy.label)
            for (original, copy), changed in zip(self._set.planted, values[num_solutions:], strict=True)
        ]
        return probe_metrics(values[:num_solutions], labels, planted)


class RememberedScorer:
    """Scores of a model that never changes, computed once for the same sequences."""

    def __init__(self, scorer: TextScorer) -> None:
        self._scorer = scorer
        self._found: dict[Hashable, Scores] = {}

    def score(self, sequences: Sequences) -> Scores:
        """Return the scores of all rows. Collective when the sequences are new."""
        key = tuple((tuple(prompt), tuple(response)) for prompt, response in sequences)
        if key not in self._found:
            scores = self._scorer.score(sequences)
            self._found[key] = Scores(scores.logprobs_BT.cpu(), scores.entropy_BT[:0].cpu())
        return self._found[key]


def probe_metrics(
    values: Values, labels: Sequence[int], planted: Sequence[tuple[Sequence[float], Sequence[float], int]]
) -> dict[str, float]:
    """Return how well the values of prefixes show errors; a quantity without data is left out.

    prefix_auroc: chance that a prefix without an error has a higher value than one that ends with the first wrong step.
    step_auroc: the same of the rewards of these last steps, the differences of consecutive values: what credit needs.
    solution_auroc: chance that a solution without an error has a higher last value than one with an error.
    lowest_at_error: share of the solutions with an error whose lowest step reward is that of the first wrong step.
    planted_accuracy: share of the planted errors after which the value is lower than after the original step.

    Equal values count one half, or their shares. Steps after the first wrong one are left out: nobody labelled them.

    Args:
        values: value after each step of each solution.
        labels: index of the first wrong step of each solution, or CORRECT.
        planted: values of an original, those of its copy with an error, and the step of the error.
    """
    prefixes: dict[bool, list[float]] = {True: [], False: []}
    rewards: dict[bool, list[float]] = {True: [], False: []}
    wholes: dict[bool, list[float]] = {True: [], False: []}
    at_error: list[float] = []
    for solution, label in zip(values, labels, strict=True):
        of_steps = [after - before for before, after in pairwise((0.0, *solution))]
        num_right = len(solution) if label == CORRECT else label
        prefixes[True] += solution[:num_right]
        rewards[True] += of_steps[:num_right]
        wholes[label == CORRECT].append(solution[-1])
        if label != CORRECT:
            prefixes[False].append(solution[label])
            rewards[False].append(of_steps[label])
            lowest = min(of_steps)
            at_error.append((of_steps[label] == lowest) / of_steps.count(lowest))
    wins = [_wins(original[step], changed[step]) for original, changed, step in planted]
    return {
        **_auroc("prefix_auroc", prefixes),
        **_auroc("step_auroc", rewards),
        **_auroc("solution_auroc", wholes),
        **({"lowest_at_error": sum(at_error) / len(at_error)} if at_error else {}),
        **({"planted_accuracy": sum(wins) / len(wins)} if wins else {}),
    }


def _auroc(name: str, numbers: dict[bool, list[float]]) -> dict[str, float]:
    """Return the chance that one of the numbers under True exceeds one of those under False, ties one half."""
    right, wrong = sorted(numbers[True]), numbers[False]
    if not right or not wrong:
        return {}
    below = sum(bisect_left(right, value) + bisect_right(right, value) for value in wrong) / 2
    return {name: 1 - below / (len(right) * len(wrong))}


def _wins(original: float, changed: float) -> float:
    return 0.5 if original == changed else float(original > changed)
