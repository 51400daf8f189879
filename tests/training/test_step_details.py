"""Histograms and samples come from the tensors of a step, bounded in number."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_prime.models.forward import Scores
from megatron_prime.training import step_details
from megatron_prime.training.step_details import (
    MAX_VALUES,
    NUM_SAMPLES,
    StepDetails,
    chosen_tokens,
)
from megatron_prime.training.trainer import TrainedBatch
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch, Turn
from tests.support.metric_names import undocumented

LENGTHS = (3, 1, 5, 2, 4, 6)


class Words:
    """A tokenizer whose tokens are their own numbers."""

    def decode(self, token_ids, *, skip_special_tokens):
        return " ".join(map(str, token_ids))


def trained(lengths=LENGTHS, with_prm=True) -> TrainedBatch:
    rollouts = [
        Rollout(
            Prompt(row, (90 + row,), "", "sums"),
            0,
            tuple(range(length)),
            (-1.0,) * length,
            FinishReason.STOP,
            0,
        ).with_outcome(float(row % 2))
        for row, length in enumerate(lengths)
    ]
    batch = RolloutBatch.from_rollouts(rollouts, range(len(rollouts)))
    # The value of each token is its row and column, so that padding (or a wrong token) would show.
    rows_BT, columns_BT = torch.meshgrid(
        *(torch.arange(size) for size in batch.response_mask_BT.shape), indexing="ij"
    )
    code_BT = torch.where(batch.response_mask_BT, rows_BT * 1000.0 + columns_BT, torch.nan)
    old = Scores(code_BT - 1.0, torch.zeros_like(code_BT))
    return TrainedBatch(
        batch,
        old,
        ref_logprobs_BT=code_BT - 0.5 if with_prm else None,
        prm_logprobs_BT=code_BT if with_prm else None,
        process_rewards_BT=2 * code_BT if with_prm else None,
        advantages_BT=code_BT,
    )


def distributions(batch):
    details = StepDetails(Words(), every=1, seed=0)
    details.note(1, batch)
    return details.of(1).distributions


def codes(lengths=LENGTHS):
    return sorted(1000 * row + column for row, length in enumerate(lengths) for column in range(length))


def test_a_small_batch_is_taken_whole():
    found = distributions(trained())
    assert undocumented(found, "histogram") == []
    assert sorted(found["advantage/tokens"]) == codes()
    assert sorted(found["prm/process_rewards"]) == [2 * code for code in codes()]
    assert set(found["policy/ref_log_ratio"]) == {-0.5}
    assert sorted(found["rollout/logprob_difference"]) == codes()
    assert sorted(found["rollout/response_tokens"]) == sorted(LENGTHS)


def test_without_a_prm_its_histograms_are_left_out():
    found = distributions(trained(with_prm=False))
    assert set(found) == {"rollout/response_tokens", "advantage/tokens", "rollout/logprob_difference"}


def test_a_large_batch_is_sampled_evenly():
    lengths = [1000] * 9 + [9000]
    rows, columns = chosen_tokens(trained(lengths).batch.rollouts, np.random.default_rng(0))
    assert len(rows) == len(columns) == MAX_VALUES
    assert all(column < lengths[row] for row, column in zip(rows, columns, strict=True))
    assert np.mean(rows == 9) == pytest.approx(0.5, abs=0.03)
    assert columns[rows == 9].max() > 8500


def test_only_tokens_of_the_policy_are_chosen():
    rollouts = [
        replace(trained((length,)).batch.rollouts[0], turns=turns)
        for length, turns in ((3, ()), (9, (Turn(2, 4), Turn(5, 8), Turn(9, 9))), (4, (Turn(1, 4),)))
    ]
    rows, columns = chosen_tokens(rollouts, np.random.default_rng(0))
    expected = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 4), (1, 8), (2, 0)]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_details_are_taken_when_they_are_due_and_the_same_ones_again():
    details = StepDetails(Words(), every=3, seed=5)
    due = []
    for step in range(1, 8):
        details.note(step, trained())
        due.append(bool(details.of(step).samples))
    assert due == [True, False, False, True, False, False, True]
    assert details.of(4) == step_details.Details()
    again = StepDetails(Words(), every=3, seed=5)
    again.note(7, trained())
    assert again.of(7).samples == details.of(7).samples
    never = StepDetails(Words(), every=0, seed=5)
    never.note(1, trained())
    assert not never.of(1).samples


def test_a_sample_has_text_and_verdict():
    details = StepDetails(Words(), every=1, seed=0)
    details.note(1, trained())
    samples = details.of(1).samples
    assert len(samples) == NUM_SAMPLES
    for sample in samples:
        row = int(sample.prompt) - 90
        assert sample.response == " ".join(map(str, range(LENGTHS[row])))
        assert (sample.outcome, sample.num_tokens, sample.finish_reason, sample.source) == (
            *(row % 2, LENGTHS[row], "stop", "sums"),
        )
