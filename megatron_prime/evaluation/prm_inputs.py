"""The texts that the eval-prm command scores: saved responses, ProcessBench solutions and preference pairs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.steps import step_ids
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.evaluation.prm_judge import JudgedText
from megatron_prime.evaluation.process_labels import LabelledSolution, Pair, read_pairs, read_processbench
from megatron_prime.evaluation.saved_responses import SavedProblem, SavedResponse, read_responses
from megatron_prime.hf.shape import read_shape
from megatron_prime.rollout.collector import step_ids_of_response
from megatron_prime.types import Turn, policy_spans, scored_spans


class PRMInputs:
    """Every file named in [prm_evaluation], read and tokenized before any model is loaded.

    Attributes:
        problems: saved responses, by file name without suffix.
        solutions: ProcessBench solutions, by split.
        pairs: preference pairs, by file name without suffix.

    Raises:
        ValueError: a file cannot be read, has a malformed row, or is empty.
    """

    def __init__(self, config: PrimeConfig) -> None:
        settings = config.prm_evaluation
        tokenizer: Any = load_tokenizer(config.model.path)
        # Lists are read here and not lazily, because a malformed row should be reported before models are loaded.
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
        self._scored_tokens = config.prm.scored_tokens
        inputs: list[tuple[str, Sequence[object]]] = [
            *self.problems.items(),
            *self.solutions.items(),
            *self.pairs.items(),
        ]
        vocab_size = read_shape(config.model.path).vocab_size
        for problem in (problem for problems in self.problems.values() for problem in problems):
            highest = max(map(max, (problem.prompt_ids, *(each.token_ids for each in problem.responses))))
            if highest >= vocab_size:
                raise ValueError(
                    f"{problem.where}: token {highest} is outside of the model's vocabulary of {vocab_size}: the "
                    "responses are of another model"
                )
        # Without this check, an empty set would fail only after the models were loaded and other sets were scored.
        empty = [name for name, rows in inputs if not rows]
        if empty:
            raise ValueError(f"prm_evaluation: {', '.join(empty)} has no rows")

    def summary(self) -> list[str]:
        """Return one line per input with its number of rows."""
        return [
            *(f"responses {name}: {len(rows)} problems" for name, rows in self.problems.items()),
            *(f"ProcessBench {split}: {len(rows)} solutions" for split, rows in self.solutions.items()),
            *(f"pairs {name}: {len(rows)}" for name, rows in self.pairs.items()),
        ]

    def split_steps(
        self, where: str, prompt_ids: Sequence[int], response_ids: Sequence[int], turns: Sequence[Turn] = ()
    ) -> JudgedText:
        """Return a response split into reasoning steps, as in training; `where` names its file and row in errors."""
        steps = step_ids_of_response(partial(step_ids, self._tokenizer), response_ids, turns)
        scored = scored_spans(turns, len(response_ids), self._scored_tokens)
        return JudgedText(where, prompt_ids, response_ids, steps, steps[-1] + 1 if steps else 0, scored)

    def answer_text(self, response: SavedResponse) -> str:
        """Return the text that holds the answer of a response: the last turn of the policy."""
        if not response.turns:
            return response.text
        start, end = policy_spans(response.turns, len(response.token_ids))[-1]
        return self._tokenizer.decode(list(response.token_ids[start:end]), skip_special_tokens=True)

    def step_texts(self, text: JudgedText) -> list[str]:
        """Return the decoded tokens of each step; "" for a step without tokens."""
        tokens: list[list[int]] = [[] for _ in range(text.num_steps)]
        for token, step in zip(text.response_ids, text.token_steps, strict=True):
            tokens[step].append(token)
        return [self._tokenizer.decode(step_tokens, skip_special_tokens=True) for step_tokens in tokens]
