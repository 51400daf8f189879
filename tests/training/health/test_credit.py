"""Signs of misleading process rewards of a batch with an environment, and of one without."""

import math

import pytest
import torch

from megatron_prime.algorithm.implicit_reward import process_rewards_BT
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.observability.catalog import metric_of
from megatron_prime.training.health.credit import credit_metrics
from megatron_prime.training.health.format_tokens import FormatTokens
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch, Turn
from tests.support.tokenizers import word_tokenizer

A, DOT, EOS = 0, 1, 2
TOKENIZER = word_tokenizer(["a", "."])
RESPONSES = [(A, DOT, A, EOS), (A, A, A), (A, DOT, EOS)]
TURNS = [(Turn(2, 3), Turn(4, 4)), (), ()]
REF_BT = torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-0.5, -0.5, -1.0, 0.0], [-1.0, -1.0, -1.0, 0.0]])
Q_BT = torch.tensor([[0.5, -2.0, -1.0, 0.25], [0.1, 0.2, -0.4, 0.0], [0.3, -0.6, 0.9, 0.0]])


def metrics(has_turns=False, q_BT=Q_BT, **settings):
    rollouts = [
        Rollout(
            Prompt(0, (1,), ""),
            sample,
            ids,
            (-1.0,) * len(ids),
            FinishReason.STOP,
            0,
            outcome,
            turns=turns if has_turns else (),
        )
        for sample, (ids, outcome, turns) in enumerate(zip(RESPONSES, (1.0, 0.0, 0.0), TURNS, strict=True))
    ]
    steps = [(0, 0, 1, 1), (0, 0, 0), (0, 0, 1)]
    batch = RolloutBatch.from_rollouts(rollouts, [0] * 3, steps)
    config = PRMConfig(**{"beta": 0.5} | settings)
    prm_BT = REF_BT + q_BT
    units_BT = batch.unit_ids_BT(config.granularity)
    rewards_BT = process_rewards_BT(
        prm_BT, REF_BT, batch.response_mask_BT, config, units_BT, batch.policy_mask_BT
    )
    return credit_metrics(batch, prm_BT, REF_BT, rewards_BT, config, FormatTokens(TOKENIZER))


def test_signs_of_a_batch_of_tokens():
    assert metrics() == pytest.approx(
        {
            # Scores of the wrong responses: -0.1 / 2 and 0.6 / 2, of equal length, so that nothing correlates.
            "length_correlation": math.nan,
            "score_limit": 0.5 * (10 + 2 + 3) / 3,
            "best_is_wrong_fraction": 1.0,
            "best_is_wrong_chance": 2 / 3,
            "format_share": (2.0 + 0.25 + 0.6 + 0.9) / (3.75 + 0.7 + 1.8),
            "format_token_fraction": 4 / 10,
            "lowest_on_last_fraction": 1 / 3,
            "lowest_on_last_chance": (1 / 4 + 1 / 3 + 1 / 3) / 3,
        },
        nan_ok=True,
    )


def test_signs_of_steps_are_those_of_their_sums():
    # Of the first response -0.75 and -0.375, of the third -0.15 and 0.45; the second has one step, and nothing to say.
    found = metrics(granularity="step")
    assert (found["lowest_on_last_fraction"], found["lowest_on_last_chance"]) == (0.0, 0.5)
    assert found["format_share"] == metrics()["format_share"], "single tokens, at any granularity"


def test_one_reward_of_a_response_is_not_asked_for_its_place():
    assert not any(name.startswith("lowest") for name in metrics(granularity="whole"))


@pytest.mark.parametrize("granularity", ["token", "turn"])
def test_replies_count_only_where_they_are_scored(granularity):
    found = metrics(has_turns=True, scored_tokens="policy", granularity=granularity)
    assert found["score_limit"] == pytest.approx(0.5 * (7 + 2 + 3) / 3)
    assert found["format_token_fraction"] == pytest.approx(4 / 9)
    assert found["length_correlation"] != found["length_correlation"]
    with_replies = metrics(has_turns=True, granularity=granularity)
    assert with_replies["score_limit"] == metrics()["score_limit"]


def test_a_prm_that_equals_its_reference_has_nothing_to_say():
    found = metrics(q_BT=torch.zeros_like(Q_BT))
    assert found["lowest_on_last_fraction"] == pytest.approx(found["lowest_on_last_chance"])
    assert found["best_is_wrong_fraction"] == pytest.approx(found["best_is_wrong_chance"])
    assert math.isnan(found["format_share"])


def test_a_prm_that_does_not_learn_has_no_limit_of_its_scores():
    assert "score_limit" not in metrics(update_order="none")


def test_every_sign_is_declared():
    assert all(metric_of(f"prm/{name}") for name in metrics())
