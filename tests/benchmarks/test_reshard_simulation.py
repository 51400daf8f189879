"""Simulated times are compared to calculations by hand."""

import pytest

from benchmarks.reshard_layouts import LLAMA_70B, Case
from benchmarks.reshard_simulation import (
    NIC_BYTES_PER_S,
    NVLINK_BYTES_PER_S,
    cases,
    gather_everything,
    simulate,
)
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout

MODEL_BYTES = 70_553_706_496 * 2


def test_every_model_is_simulated_on_the_expected_number_of_gpus():
    assert [(case.name, case.num_gpus, case.is_colocated) for case in cases()] == [
        (name, num_gpus, is_colocated)
        for name, num_gpus in (("Llama-70B", 128), ("Qwen3-235B-A22B", 256), ("1T MoE", 1024))
        for is_colocated in (True, False)
    ]


def test_a_disaggregated_70b_moves_an_eighth_of_the_model_per_nic():
    training = TrainingLayout(tp=8, pp=4, dp=2)
    case = Case("70B", LLAMA_70B, training, EngineLayout.consecutive(8, 8, first_rank=64))
    found = simulate(case)
    norms = 161 * 8192 * 2 * 7 / 8  # norms are whole on each GPU, not an eighth
    assert found["nic_received_gb"][0] * 1e9 == pytest.approx(MODEL_BYTES / 8 + norms, rel=1e-6)
    assert found["seconds"] == pytest.approx(found["nic_sent_gb"][0] * 1e9 / NIC_BYTES_PER_S)
    assert found["nvlink_gb"] == found["local_gb"] == 0
    assert found["seconds_fp8"] == pytest.approx(found["seconds"] / 2)
    assert found["gather"]["seconds"] == pytest.approx(MODEL_BYTES / NIC_BYTES_PER_S)
    assert found["transfers"] > 0 and found["ratio"] == 1


def test_replicas_on_the_engines_node_use_nvlink_alone():
    """With one stage and TP 2, each node of 8 GPUs has every weight four times."""
    case = Case("70B", LLAMA_70B, TrainingLayout(tp=2, dp=8), EngineLayout.consecutive(2, 8))
    found = simulate(case)
    assert found["nic_sent_gb"] == found["nic_received_gb"] == (0.0, 0.0)
    assert found["nvlink_gb"] > 0
    assert found["seconds"] < MODEL_BYTES / 8 / NVLINK_BYTES_PER_S * 1.1


def test_gathering_on_the_training_ranks():
    training = TrainingLayout(tp=8, pp=4, dp=4)
    found = gather_everything(Case("70B", LLAMA_70B, training, EngineLayout.consecutive(16, 8)))
    assert found["nic_received_gb"] * 1e9 == pytest.approx(MODEL_BYTES / 8 * 3 / 4)
    assert found["nvlink_received_gb"] * 1e9 == pytest.approx(MODEL_BYTES * 7 / 8)
