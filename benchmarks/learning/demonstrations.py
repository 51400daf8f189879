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


def write_right_demonstrations(path: Path, task: ChainTask, sft: Path) -> None:
    """Write the rows of an sft.jsonl whose outcome is right."""
    lines = sft.read_text(encoding="utf-8").splitlines()
    right = [line for line in lines if _outcome(task, json.loads(line))]
    path.write_text("".join(f"{line}\n" for line in right), encoding="utf-8")


def _rollouts(task: ChainTask, sft: Path, tokenizer) -> Iterator[Rollout]:
    for index, line in enumerate(sft.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        response = row["response"].split()
        width = _width(task, response)
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
            outcome_reward=_outcome(task, row),
            turns=tuple(turns),
        )


def _width(task: ChainTask, response: list[str]) -> int:
    """Return the number of words from one number to the next."""
    return (len(response) - 1) // (task.num_steps - 1)


def _outcome(task: ChainTask, row: dict[str, str]) -> float:
    """Return 1 if the last number is that of the chain."""
    prompt, response = row["prompt"].split(), row["response"].split()
    words, value = [*prompt, *response], int(prompt[0])
    for place in range(len(prompt), len(words), _width(task, response)):
        value = apply(value, operation_of(words[place - 1]), task.modulus)
    return float(words[-1] == str(value))
