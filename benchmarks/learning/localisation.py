"""A measure of how well advantages tell right steps from wrong ones, from the rollout log of a run."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning.chain import judged_numbers
from benchmarks.learning.tasks import TASKS, ChainTask
from megatron_prime.observability.rollout_log import RolloutFile, log_folder, logged_steps

COLUMNS = ("prompt", "response", "policy_mask", "mask", "advantages")


def localisation(run: Path, task: str, steps: Sequence[int]) -> list[float | None]:
    """Return, for each step, the area under the ROC curve of the advantages of right and wrong numbers.

    It is taken within responses: the probability that, of a right and a wrong number of one response, the right one has
    the larger advantage. Outcome rewards alone give all numbers of a response the same advantage, and 0.5. None: the
    step was not logged, or has no such pair, or the task has no steps that can be judged.
    """
    found = TASKS[task]
    if not isinstance(found, ChainTask):
        return [None] * len(steps)
    files = logged_steps(log_folder(run))
    return [_of_step(files[step], found.modulus) if step in files else None for step in steps]


def _of_step(path: Path, modulus: int) -> float | None:
    wins = pairs = 0.0
    with RolloutFile(path) as file:
        for row in file.rows(COLUMNS):
            if row["advantages"] is None or row["policy_mask"] is None:
                continue
            prompt, words = row["prompt"].split(), row["response"].split()
            if len(words) != len(row["policy_mask"]):
                continue  # It wrote a special token, which the text leaves out.
            places = [place for place, is_own in enumerate(row["policy_mask"]) if is_own]
            judged = judged_numbers([*prompt, *words], [len(prompt) + place for place in places], modulus)
            values = {True: [], False: []}
            for place, is_right in zip(places, judged, strict=True):
                values[is_right].append(row["advantages"][place])
            pairs += len(values[True]) * len(values[False])
            wins += sum(
                (right > wrong) + (right == wrong) / 2 for right in values[True] for wrong in values[False]
            )
    return round(wins / pairs, 4) if pairs else None
