"""The demonstrations of a task as responses with outcomes, on which `train-prm` can train a PRM without any rollout."""

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.learning.chain import apply, operation_of
from benchmarks.learning.tasks import ChainTask
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.evaluation.saved_responses import write_responses
from megatron_prime.hf.identity import model_identity
from megatron_prime.observability.rollout_log import FileInfo
from megatron_prime.types import FinishReason, Prompt, Rollout, Turn


def write_demonstrations(path: Path, task: ChainTask, sft: Path, model: Path) -> None:
    """Write the rows of an sft.jsonl with the verifier's outcome of each, in the format of rollout logs.

    Args:
        path: the file to write.
        task: the task of the rows.
        sft: the rows.
        model: folder of the model that is trained on the file.
    """
    tokenizer = load_tokenizer(model)
    rollouts = list(_rollouts(task, sft, tokenizer))
    write_responses(path, FileInfo(0, "eval", model=model_identity(model)), rollouts, 1, tokenizer)


def _rollouts(task: ChainTask, sft: Path, tokenizer) -> Iterator[Rollout]:
    for index, line in enumerate(sft.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        prompt, response = row["prompt"].split(), row["response"].split()
        # A number, and the reply to it, up to the last number.
        width = (len(response) - 1) // (task.num_steps - 1)
        places = range(0, len(response), width)
        turns = [Turn(place + 1, min(place + width, len(response))) for place in places]
        encoded = [
            tuple(tokenizer.encode(row[name], add_special_tokens=False)) for name in ("prompt", "response")
        ]
        assert len(encoded[1]) == len(response)
        yield Rollout(
            Prompt(index, encoded[0], answer=""),
            sample_index=0,
            response_ids=encoded[1],
            rollout_logprobs=(0.0,) * len(response),
            finish_reason=FinishReason.STOP,
            policy_version=0,
            outcome_reward=float(_is_right([*prompt, *response], len(prompt), width, task.modulus)),
            turns=tuple(turns),
        )


def _is_right(words: list[str], start: int, width: int, modulus: int) -> bool:
    """Return whether the last number is that of the chain."""
    value = int(words[0])
    for place in range(start, len(words), width):
        value = apply(value, operation_of(words[place - 1]), modulus)
    return words[-1] == str(value)
