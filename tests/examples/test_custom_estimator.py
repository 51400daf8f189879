"""The example computes Dr. GRPO and smoothed cross-entropies, and can be used by its import path."""

import json
import shutil

import pytest
import torch

from examples.custom_estimator import DrGRPO, SmoothedCE
from megatron_prime.config.tables.advantage import AdvantageConfig
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm import oracle
from tests.algorithm.prm_rows import rows_of_scores
from tests.support.toy_runs import ROOT, Toy, finish


def test_outcomes_are_centred_on_their_group_and_not_rescaled():
    estimator = DrGRPO(AdvantageConfig())
    outcomes_B, group_ids_B = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([7, 7, 7, 2])
    result_B = estimator.outcome_advantages_B(outcomes_B, group_ids_B)
    assert result_B.tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0.0])


def test_process_rewards_are_centred_on_the_mean_token_of_their_group():
    mask_BT = torch.tensor([[True, True], [True, False]])
    result_BT = DrGRPO(AdvantageConfig()).process_advantages_BT(
        torch.tensor([[1.0, 3.0], [4.0, 0.0]]), mask_BT, mask_BT, torch.tensor([0, 0])
    )
    assert result_BT.tolist() == [[-2.0, 0.0], [1.0, 0.0]]


def test_labels_are_smoothed():
    scores_B, labels_B = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    smoothed_B = SmoothedCE(PRMConfig()).losses_B(rows_of_scores(scores_B), labels_B, None)
    expected = [oracle.ce(2.0, 0.95), oracle.ce(-1.0, 0.05)]
    assert smoothed_B.tolist() == pytest.approx(expected)


def test_it_trains_by_import_path(toy: Toy):
    shutil.copy(ROOT / "examples" / "custom_estimator.py", toy.folder / "my_estimator.py")
    done = finish(
        toy.folder,
        *("train", "run.toml", "run_dir=custom_estimator", "trainer.num_steps=2"),
        *("advantage.estimator=my_estimator:DrGRPO", "prm.loss=my_estimator:SmoothedCE"),
        *("advantage.whitening=none", "evaluation.max_prompts=4"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (toy.folder / "custom_estimator" / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if "policy/grad_norm" in record]
    assert len(steps) == 2
    assert all(record["policy/grad_norm"] > 0 and record["advantage/std"] > 0 for record in steps)
