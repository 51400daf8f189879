"""Runs made up for the viewer: metrics and a rollout log of realistic shape, in a fraction of a second."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_prime.observability.jsonl import JsonlHistory
from megatron_prime.observability.rollout_log import FileInfo, step_path, write_rollouts

BETA = 0.05
SENTENCES = (
    "Let x be the number of apples that Ada has.\n",
    "She gives away a third, so 2x/3 remain.\n",
    "Then 2x/3 + 4 = 16, which gives 2x = 36.\n",
    "Therefore x = 18.\n",
    "Wait, we should check the sum again: 12 + 4 = 16.\n",
    "So the answer is $\\boxed{18}$.",
)


def metrics_of(step: int, generator: np.random.Generator, num_steps: int) -> dict[str, float]:
    """Return plausible metrics of a step; held-out accuracy comes every fourth step, as in real runs."""
    share = step / num_steps
    accuracy = 0.25 + 0.6 * (1 - math.exp(-3 * share)) + generator.normal(0, 0.03)
    metrics = {
        "time/weight_sync_s": 0.2,
        "time/rollout_s": 4.0 + generator.normal(0, 0.2),
        "time/logprobs_s": 1.1,
        "time/prm_s": 1.4,
        "time/advantage_s": 0.1,
        "time/policy_s": 2.2,
        "time/step_s": 9.4,
        "time/engine_idle_fraction": 0.55,
        "time/verifier_idle_fraction": 0.9,
        "prm/ce": 0.69 - 0.3 * share,
        "prm/pair_accuracy": min(0.5 + 0.4 * share + generator.normal(0, 0.02), 1.0),
        "policy/ref_kl": 0.2 * share,
        "policy/entropy": 0.8 - 0.4 * share,
        "rollout/accuracy_sampled": accuracy,
        "rollout/accuracy_batch": 0.5 + generator.normal(0, 0.02),
        "rollout/accuracy_by_source/gsm8k": accuracy,
        "rollout/mean_response_tokens": 200 + 80 * share,
        "rollout/truncated_fraction": 0.02,
        "rollout/logprob_gap": 0.004,
        "rollout/logprob_gap_max": 0.4,
        "rollout/num_groups_kept": 24.0,
        "rollout/num_groups_dropped_too_hard": 6.0,
        "rollout/num_groups_dropped_too_easy": 2.0,
        "memory/rss_gib": 3.0 + share,
        "memory/peak_rss_gib": 4.0 + share,
        "throughput/response_tokens_per_s": 1500.0,
    }
    if step % 4 == 0:
        metrics |= {
            "eval/accuracy": accuracy - 0.02,
            "eval/accuracy_ci_low": accuracy - 0.06,
            "eval/accuracy_ci_high": accuracy + 0.02,
        }
    return metrics


def tokens_of(text: str) -> list[str]:
    """Return words with the space before them and the line breaks after them, as tokens of models often are."""
    return re.findall(r"[^\S\n]*\S+\n*|\s+", text)


def row(
    text: str,
    generator: np.random.Generator,
    group: int = 0,
    sample: int = 0,
    reward: float | None = 1.0,
    **changes: Any,
) -> dict[str, Any]:
    """Return one response of the log: its tokens are the words of the text, and a last one without text."""
    tokens = tokens_of(text)
    ends = [*np.cumsum([len(token) for token in tokens]).tolist(), len(text)]
    count = len(ends)
    # Like the tokens of most models, these end with a line break where the text has one.
    step_ends = [
        *(number for number, token in enumerate(tokens[:-1], start=1) if token.endswith("\n")),
        count,
    ]
    ref = -np.abs(generator.normal(0.3, 0.4, count))
    lean = 0.0 if reward is None else (reward - 0.5) * 2
    ratio = generator.normal(0.3 * lean, 1.0, count)
    policy = np.minimum(ref + generator.normal(0.05, 0.2, count), 0.0)
    values: dict[str, Any] = {
        "group": group,
        "sample": sample,
        "prompt_index": group,
        "source": "gsm8k",
        "ability": "math",
        "ground_truth": "18",
        "prompt": f"Problem {group}: Ada gives away a third of her apples and buys four. She has 16. How many had she?",
        "prompt_token_ids": [1, 2, 3],
        "response": text,
        "response_token_ids": generator.integers(0, 150_000, count).tolist(),
        "token_ends": ends,
        "step_ends": step_ends,
        "mask": [True] * count,
        "outcome_reward": reward,
        "reason": "the answers are equal" if reward else "the answers differ",
        "finish_reason": "stop",
        "policy_version": 3,
        "filter": "kept",
        "rollout_logprobs": policy + generator.normal(0, 0.005, count),
        "policy_logprobs": policy,
        "prm_logprobs": np.minimum(ref + ratio, 0.0),
        "ref_logprobs": ref,
        "process_rewards": BETA * ratio,
        "advantages": generator.normal(lean, 0.5, count),
        "entropy": np.abs(generator.normal(0, 0.6, count)),
    }
    return values | changes


DIALOGUE = (
    ("I guess the middle first.\nMy guess is 50.", "\nuser\nThe number is smaller.\nassistant\n"),
    ("Then it is below 50, so I halve again.\nMy guess is 25.", "\nuser\nThe number is larger.\nassistant\n"),
    ("Between 26 and 49.\nMy guess is 37.", ""),
)
"""What the policy wrote in each turn, and the reply to it."""


def dialogue_row(
    generator: np.random.Generator, group: int = 0, sample: int = 0, reward: float = 1.0
) -> dict[str, Any]:
    """Return a response of several turns. Each turn ends with a token without text, and so begins each reply."""
    tokens, policy, turn_ends = [], [], []
    for own, reply in DIALOGUE:
        tokens += [*tokens_of(own), ""]
        policy += [True] * (len(tokens) - len(policy))
        tokens += ["", *tokens_of(reply)] if reply else []
        policy += [False] * (len(tokens) - len(policy))
        turn_ends.append(len(tokens))
    count = len(tokens)
    ref = -np.abs(generator.normal(0.3, 0.4, count))
    # The replies surprise the PRM most.
    ratio = generator.normal(0.4 * (2 * reward - 1), np.where(policy, 0.5, 2.0))
    own = np.asarray(policy)
    changes = {
        "response_token_ids": list(range(count)),
        "token_ends": np.cumsum([len(token) for token in tokens]).tolist(),
        "step_ends": sorted(
            {
                *turn_ends,
                *(at + 1 for at in range(count - 1) if policy[at] and policy[at + 1] and "\n" in tokens[at]),
            }
        ),
        "policy_mask": policy,
        "turn_ends": turn_ends,
        "turn_rewards": [0.0, -0.25, 0.0],
        "mask": policy,
        "rollout_logprobs": np.where(own, ref, 0.0),
        "policy_logprobs": ref,
        "prm_logprobs": np.minimum(ref + ratio, 0.0),
        "ref_logprobs": ref,
        "process_rewards": BETA * ratio,
        "advantages": np.where(own, generator.normal(2 * reward - 1, 0.5, count), 0.0),
        "entropy": np.abs(generator.normal(0, 0.6, count)),
    }
    return row("".join(tokens), generator, group, sample, reward, **changes)


REJECTED: dict[str, Any] = dict.fromkeys(
    ["mask", "policy_logprobs", "prm_logprobs", "ref_logprobs", "process_rewards", "advantages", "entropy"]
)
"""Columns that are not computed for groups that the filter has rejected."""


def step_rows(
    generator: np.random.Generator, accuracies: Sequence[float], size: int = 4
) -> list[dict[str, Any]]:
    """Return the responses of a step; a share accuracies[g] of group g is right. Uniform groups are rejected."""
    rows = []
    for group, accuracy in enumerate(accuracies):
        num_right = round(size * accuracy)
        for sample in range(size):
            is_right = sample < num_right
            text = "".join(SENTENCES[: 5 if sample % 2 else 4]) + (
                SENTENCES[5] if is_right else "So it is $12$."
            )
            changes: dict[str, Any] = {"source": ("gsm8k", "math")[group % 2]}
            if num_right in (0, size):
                changes |= REJECTED | {"filter": "dropped_too_easy" if num_right else "dropped_too_hard"}
            if sample == size - 1 and group % 5 == 1:
                changes |= {"finish_reason": "length"}
            rows.append(row(text, generator, group, sample, float(is_right), **changes))
    return rows


def write_metrics(folder: Path, num_steps: int = 20, seed: int = 0) -> None:
    """Write metrics.jsonl."""
    generator = np.random.default_rng(seed)
    with JsonlHistory(folder / "metrics.jsonl") as history:
        for step in range(1, num_steps + 1):
            history.log(step, metrics_of(step, generator, num_steps))


def write_step(folder: Path, step: int, rows: Sequence[dict[str, Any]], beta: float | None = BETA) -> Path:
    """Write the rollout log of one step and return its file."""
    path = step_path(folder / "rollouts", step)
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = len({each["group"] for each in rows})
    write_rollouts(path, FileInfo(step=step, policy_version=step - 1, beta=beta, num_groups=groups), rows)
    return path


def write_run(folder: Path, seed: int = 0, steps: Sequence[int] = (4, 8, 12)) -> Path:
    """Write a run of 20 steps, with the responses of some of them, and return its folder.

    Problem 0 is learned, 1 forgotten, 2 goes back and forth, and 3 stays wrong.
    """
    write_metrics(folder, seed=seed)
    generator = np.random.default_rng(seed)
    for number, step in enumerate(steps):
        changing = [
            (0.25, 0.5, 0.75)[min(number, 2)],
            (0.75, 0.25, 0.25)[min(number, 2)],
            (0.75, 0.25)[number % 2],
            0.0,
        ]
        write_step(folder, step, step_rows(generator, [*changing, 0.5, 0.75, 1.0, 0.5]))
    return folder
