import pytest
import torch

from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.observability.catalog import metric_of
from megatron_prime.training.turn_metrics import turn_metrics
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch, Turn


def batch_of(*turns):
    """A batch of responses whose turns end where the last of them says."""
    rollouts = [
        Rollout(
            Prompt(0, (1,), ""),
            sample,
            (5,) * of_row[-1].end,
            (-1.0,) * of_row[-1].end,
            FinishReason.STOP,
            0,
            turns=of_row if len(of_row) > 1 or of_row[0].end > of_row[0].policy_end else (),
        )
        for sample, of_row in enumerate(turns)
    ]
    return RolloutBatch.from_rollouts(rollouts, [0] * len(rollouts))


BATCH = batch_of((Turn(2, 4), Turn(5, 5)), (Turn(3, 3),))
RATIOS_BT = torch.tensor([[1.0, 1.0, -4.0, 0.0, 2.0], [3.0, -1.0, 0.0, 9.0, 9.0]])


@pytest.mark.parametrize("granularity", ["token", "turn", "whole"])
@pytest.mark.parametrize(
    ("scored_tokens", "turns", "share"),
    [("all", [-2, 2, 2], 4 / 12), ("policy", [2, 2, 2], 0.0), ("environment", [-4, 0, 0], 1.0)],
)
def test_turns_are_summed_with_their_replies(granularity, scored_tokens, turns, share):
    config = PRMConfig(beta=0.5, granularity=granularity, scored_tokens=scored_tokens)
    found = turn_metrics(BATCH, RATIOS_BT, torch.zeros_like(RATIOS_BT), config)
    sums = 0.5 * torch.tensor(turns, dtype=torch.float64)
    assert found == pytest.approx(
        {
            "turn_reward_mean": sums.mean().item(),
            "turn_reward_std": sums.std(unbiased=False).item(),
            "reply_share": share,
        }
    )
    assert all(metric_of(f"prm/{name}") for name in found)


def test_equal_models_share_nothing_and_without_an_environment_there_is_nothing():
    zeros_BT = torch.zeros_like(RATIOS_BT)
    assert set(turn_metrics(BATCH, zeros_BT, zeros_BT, PRMConfig()).values()) == {0.0}
    alone = batch_of((Turn(3, 3),), (Turn(5, 5),))
    assert turn_metrics(alone, RATIOS_BT, zeros_BT, PRMConfig()) == {}
