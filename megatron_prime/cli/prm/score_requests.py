"""Requests for scores of responses as JSON, and the answers to them, without any server."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_prime.algorithm.prm_loss import prm_objective
from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.messages import checked_prompt
from megatron_prime.data.rendering import PromptRenderer
from megatron_prime.data.rows import DataRow
from megatron_prime.data.steps import step_ids
from megatron_prime.data.tokenizer import encode, load_tokenizer
from megatron_prime.evaluation.reranking import best_of_n, sigmoid
from megatron_prime.evaluation.step_scores import step_scores
from megatron_prime.hf.shape import fewest_positions, read_shape

MAX_RESPONSES = 256
"""Responses of one request."""
REWARDS = ("sequence", "step", "token")
FIELDS = ("prompt", "prompt_ids", "responses", "rewards", "is_complete")


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A prompt and the responses to compare, as tokens."""

    prompt_ids: Sequence[int]
    responses: Sequence[Sequence[int]]
    rewards: str
    """One of REWARDS: how much of each response is answered."""


class ScoreRequests:
    """Reads requests with the tokenizer and the prompt format of a configuration, and makes the answers."""

    def __init__(self, config: PrimeConfig) -> None:
        self._tokenizer: Any = load_tokenizer(config.model.path)
        self._renderer = PromptRenderer(config.data, self._tokenizer)
        self._beta = config.prm.beta
        self._objective = prm_objective(config.prm)
        paths = config.model_paths("serve_prm").values()
        self._vocab_size = min(read_shape(path).vocab_size for path in paths)
        self._most_tokens = fewest_positions(paths)

    def read(self, body: bytes) -> ScoreRequest:
        """Return the request of a JSON body.

        Raises:
            ValueError: it is no such request; the message says which field is wrong.
        """
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is no JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError("the body must be a JSON object")
        unknown = sorted(fields.keys() - set(FIELDS))
        if unknown:
            raise ValueError(f"unknown fields {_short(', '.join(unknown))}: there are {', '.join(FIELDS)}")
        rewards, is_complete = fields.get("rewards", "step"), fields.get("is_complete", True)
        if rewards not in REWARDS:
            raise ValueError(f"'rewards' is {_short(repr(rewards))}: it must be one of {', '.join(REWARDS)}")
        if not isinstance(is_complete, bool):
            raise ValueError("'is_complete' must be true or false")
        responses = fields.get("responses")
        if not isinstance(responses, list) or not 1 <= len(responses) <= MAX_RESPONSES:
            raise ValueError(
                f"'responses' must be a list of 1 to {MAX_RESPONSES} texts or lists of token ids"
            )
        prompt_ids = self._prompt(fields)
        read = [self._response(number, value, is_complete) for number, value in enumerate(responses)]
        longest = len(prompt_ids) + max(map(len, read))
        # SGLang needs a place behind the last token.
        if longest >= self._most_tokens:
            raise ValueError(f"{longest} tokens are more than the models' {self._most_tokens - 1}")
        return ScoreRequest(prompt_ids, read, rewards)

    def answer(self, request: ScoreRequest, log_ratios: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Return the answer, from log pi_PRM - log pi_ref of each token of each response.

        `score` is the PRM's logit that the response is right, for most objectives beta times the sum of the log-ratios
        (`prm.loss` says what it is for its own); `probability` is its sigmoid. `step_scores` are the logits at the end
        of each step, whose differences are the rewards of the steps, and `token_rewards` are beta times the log-ratios.
        """
        scored = [
            self._scored(token_ids, ratios, request.rewards)
            for token_ids, ratios in zip(request.responses, log_ratios, strict=True)
        ]
        best = best_of_n([each["score"] for each in scored])
        return {"beta": self._beta, "best": best, "responses": scored}

    def _scored(self, token_ids: Sequence[int], ratios: Sequence[float], rewards: str) -> dict[str, Any]:
        ratios_T = torch.tensor(ratios, dtype=torch.float64)
        # Responses come without their group's accuracy, so the class prior is one half.
        values_L = self._objective.prefix_logits_BL(
            ratios_T[None], torch.ones(1, len(ratios), dtype=torch.bool), ratios_T.new_zeros(1)
        )[0]
        score = values_L[-1].item()
        answer: dict[str, Any] = {"score": score, "probability": sigmoid(score), "num_tokens": len(token_ids)}
        if rewards == "step":
            steps = step_ids(self._tokenizer, token_ids)
            answer["step_scores"] = step_scores(values_L, steps, steps[-1] + 1)
        if rewards == "token":
            answer["token_ids"] = list(token_ids)
            answer["token_rewards"] = (self._beta * ratios_T).tolist()
        return answer

    def _prompt(self, fields: Mapping[str, Any]) -> Sequence[int]:
        if ("prompt" in fields) == ("prompt_ids" in fields):
            raise ValueError("name one of 'prompt' (a text or chat messages) and 'prompt_ids'")
        if "prompt_ids" in fields:
            return self._token_ids("prompt_ids", fields["prompt_ids"])
        row = DataRow(fields, Path("request"), 1)
        rendered = self._renderer.render(checked_prompt(row, "prompt"), is_question=True)
        try:
            (token_ids,) = self._renderer.tokenize([rendered])
        except ValueError as error:
            raise ValueError(f"'prompt': {error}") from error
        return self._token_ids("prompt", token_ids)

    def _response(self, number: int, value: object, is_complete: bool) -> Sequence[int]:
        name = f"responses[{number}]"
        if not isinstance(value, str):
            return self._token_ids(name, value)
        try:
            (token_ids,) = encode(self._tokenizer, [value])
        except ValueError as error:  # half of a surrogate pair, for example
            raise ValueError(f"'{name}': {error}") from error
        # A sampled response ends with this token, which counts in the PRM's training too.
        end = (
            [self._tokenizer.eos_token_id] if is_complete and self._tokenizer.eos_token_id is not None else []
        )
        return self._token_ids(name, [*token_ids, *end])

    def _token_ids(self, name: str, value: object) -> Sequence[int]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"'{name}' has no tokens")
        # isinstance would accept true and false, which are subclasses of int.
        if not all(type(token) is int and 0 <= token < self._vocab_size for token in value):
            raise ValueError(f"'{name}' must hold token ids from 0 to {self._vocab_size - 1}")
        return value


def _short(text: str) -> str:
    """Return the start of a text of any length, for a message."""
    return text if len(text) <= 100 else f"{text[:100]}..."
