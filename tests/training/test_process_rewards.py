import pytest
import torch

from megatron_prime.config.run import PrimeConfig
from megatron_prime.training.process_rewards import ProcessRewards
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch, Turn

TURNS = (Turn(2, 3), Turn(4, 4)), (Turn(1, 1),)
"""Ends of what the policy wrote and of the reply to it."""
RATIOS_BT = torch.tensor([[2.0, 4.0, -6.0, 1.0], [8.0, 9.0, 9.0, 9.0]])


def rewards(**advantage):
    rollouts = [
        Rollout(
            Prompt(0, (1,), ""),
            row,
            (5,) * turns[-1].end,
            (-1.0,) * turns[-1].end,
            FinishReason.STOP,
            0,
            turns=turns if len(turns) > 1 else (),
        )
        for row, turns in enumerate(TURNS)
    ]
    config = PrimeConfig.model_validate(
        {
            "run_dir": "runs/a",
            "model": {"path": "m"},
            "trainer": {"num_steps": 9},
            "prm": {"beta": 0.5},
            "advantage": advantage,
        }
    )
    batch = RolloutBatch.from_rollouts(rollouts, [0, 0])
    return batch, ProcessRewards.of(batch, RATIOS_BT, torch.zeros_like(RATIOS_BT), config)


@pytest.mark.parametrize(
    ("credit", "credited"),
    [
        ("own", [[1.0, 2.0, -3.0, 0.5], [4.0, 0, 0, 0]]),
        ("hindsight", [[2.0, -3.0, 0.5, 0], [0.0, 0, 0, 0]]),
        ("observation", [[0.0, 0, -3.0, 0], [0.0, 0, 0, 0]]),
    ],
)
def test_what_is_recorded_does_not_depend_on_the_credit(credit, credited):
    batch, process = rewards(process_credit=credit)
    assert process.rewards_BT.tolist() == [[1.0, 2.0, -3.0, 0.5], [4.0, 0, 0, 0]]
    assert process.credited.rewards_BT.tolist() == credited
    assert process.metrics(batch.response_mask_BT) == pytest.approx(
        {"process_reward_mean": 4.5 / 5, "process_reward_max_abs": 4.0}
    )
