"""Labelled solutions that a run's PRM scores from time to time. There are no models here: `check` reads them too.

Solutions come from a file in ProcessBench's format. An error is planted into each one that is correct, so that a few
correct solutions are enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.evaluation.first_errors import CORRECT
from megatron_prime.evaluation.planted_errors import plant_error
from megatron_prime.evaluation.process_labels import LabelledSolution, read_solutions, solution_tokenizer
from megatron_prime.hf.shape import fewest_positions


@dataclass(frozen=True)
class ProbeSet:
    """Labelled solutions, and copies with planted errors."""

    solutions: Sequence[LabelledSolution]
    planted: Sequence[tuple[int, LabelledSolution]]
    """Index of the original among the solutions, and its copy with an error in the step of its label."""

    def summary(self) -> str:
        """Return the numbers of solutions in one line."""
        num_wrong = sum(solution.label != CORRECT for solution in self.solutions)
        return (
            f"PRM probe: {len(self.solutions)} solutions, {num_wrong} of them with an error, and {len(self.planted)} "
            "planted errors"
        )


def read_probe(config: PrimeConfig) -> ProbeSet | None:
    """Read and tokenize the solutions of `prm.probe`; None without it.

    Raises:
        ValueError: the file is missing or empty, a row is malformed, or a solution is longer than the models
            or a microbatch allow.
    """
    path = config.prm.probe
    if path is None or not config.prm.enabled:
        return None
    tokenizer: Any = load_tokenizer(config.model.path)
    tokenized = solution_tokenizer(config.data, tokenizer)
    solutions: list[LabelledSolution] = []
    planted: list[tuple[int, LabelledSolution]] = []
    for number, solution in enumerate(read_solutions(path)):
        solutions.append(tokenized(solution))
        changed = plant_error(solution) if solution.label == CORRECT else None
        if changed is not None:
            planted.append((number, tokenized(changed)))
    if not solutions:
        raise ValueError(f"prm.probe = {path} has no rows")
    positions = fewest_positions(config.model_paths("train").values())
    longest = min(config.trainer.max_tokens_per_microbatch, positions)
    for text in (*solutions, *(copy for _, copy in planted)):
        length = len(text.prompt_ids) + len(text.response_ids)
        if length > longest:
            raise ValueError(
                f"prm.probe: {text.where}: {length} tokens, more than the {longest} that "
                "trainer.max_tokens_per_microbatch and the models' positions allow: leave the solution out"
            )
    return ProbeSet(solutions, planted)
