"""The task of the benchmark on reward hacking is verified as it says, and a short run has every metric."""

import math

import pytest
import torch

from benchmarks.reward_hacking import CLOSE, FORMAT, METHODS, OPEN, Setting, Task, run, summary
from megatron_prime.training.health.credit_alarms import PAIR_ACCURACY, PROCESS_SHARE


def small(**changes) -> Setting:
    return Setting(num_operations=2, room=2, sft_steps=3, steps=2, prompts=4, **changes)


@pytest.mark.parametrize(
    ("box", "is_right"),
    [
        ([OPEN, 7, CLOSE], 1),
        ([OPEN, FORMAT, FORMAT, 7, CLOSE], 1),
        ([OPEN, 8, CLOSE], 0),
        ([OPEN, 7, FORMAT, CLOSE], 0),
        ([OPEN, FORMAT, CLOSE], 0),
        ([OPEN, FORMAT, FORMAT, FORMAT, FORMAT], 0),  # truncated
        ([FORMAT, OPEN, 7, CLOSE], 0),
        ([CLOSE], 0),
    ],
)
def test_a_box_holds_the_answer_behind_formatting_tokens(box, is_right):
    task = Task(small())
    prompt = (torch.tensor([1]), torch.tensor([[0, 2]]), torch.tensor([[8, 3]]))  # (1 + 8) x 3 = 27
    tokens = torch.full((1, task.num_columns), -1)
    tokens[0, : 2 + len(box)] = torch.tensor([9, 7, *box])
    assert task.verify(tokens, tokens >= 0, prompt).tolist() == [is_right]


def test_demonstrations_are_right_unless_a_habit_is_wrong():
    setting = small()
    task, generator = Task(setting), torch.Generator().manual_seed(0)
    prompt = task.prompts(500, generator)
    share = float(task.verify(*task.demonstrations(prompt, generator), prompt).mean())
    assert 0.6 < share < 0.85  # (1 - 0.35 * 0.9 / 2) ** 2 = 0.71


@pytest.mark.parametrize("name", ["PRIME, filter off", "process_trust = pair_accuracy"])
def test_a_short_run_of_each_method(name):
    history = list(run(small(**METHODS[name])))
    assert len(history) == 2
    for metrics in history:
        assert 0 <= metrics["rollout/accuracy_sampled"] <= 1
        if PROCESS_SHARE in metrics:
            assert math.isfinite(metrics[PROCESS_SHARE]) and PAIR_ACCURACY in metrics
    assert summary(history)[3] is None, "the window of the alarm is not full"
