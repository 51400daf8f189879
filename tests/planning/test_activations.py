"""Compares activations with counts by hand; benchmarks/planning/plan_accuracy.py compares the plan with real runs."""

import pytest

from megatron_prime.planning.activations import in_flight, scoring_activations, training_activations
from tests.support.planned_runs import make_run


@pytest.mark.parametrize(
    ("pp", "vpp", "stage", "microbatches", "held"),
    [
        (1, 1, 0, 8, [1]),
        (4, 1, 0, 8, [4]),
        (4, 1, 3, 8, [1]),
        (4, 1, 0, 2, [2]),
        # Megatron's interleaved warm-up: 2 (pp - stage - 1) + (vpp - 1) pp chunks, plus the one being computed.
        (4, 2, 0, 8, [7, 4]),
        (4, 2, 3, 8, [4, 1]),
        # Two and six empty microbatches fill the last turn.
        (4, 2, 0, 6, [6, 4]),
        (4, 2, 0, 2, [2, 2]),
    ],
)
def test_microbatches_in_flight(pp, vpp, stage, microbatches, held):
    assert in_flight(pp, vpp, stage, microbatches) == held


def test_full_recomputation_keeps_the_input_of_each_layer(tmp_path):
    run = make_run(tmp_path, memory={"recompute": {"granularity": "full"}})
    assert training_activations(run, "policy", 0, 1).kept == 28 * 16384 * 3584 * 2


def test_a_layer_keeps_the_documented_number_of_elements(tmp_path):
    run = make_run(tmp_path)
    hidden, kv, ffn = 3584, 512, 18944
    elements = 4 * hidden + 4 * hidden + 3 * kv + 4 * 128 + 3 * ffn
    small = 4 * (28 + 2)
    assert training_activations(run, "policy", 0, 1).kept == 28 * 16384 * (2 * elements + small)


def test_sequence_parallelism_splits_every_activation(tmp_path):
    whole = training_activations(make_run(tmp_path), "policy", 0, 1).kept
    split = make_run(tmp_path, parallel={"tensor": 4, "sequence_parallel": True})
    without = make_run(tmp_path, parallel={"tensor": 4})
    assert training_activations(split, "policy", 0, 1).kept == pytest.approx(whole / 4, rel=0.02)
    assert training_activations(without, "policy", 0, 1).kept > 1.2 * whole / 4


def test_scoring_holds_one_layer(tmp_path):
    run = make_run(tmp_path)
    found = scoring_activations(run, "reference", 0)
    assert found.kept == 0
    assert found.total < training_activations(run, "policy", 0, 1).total / 10


def test_the_kernels_reuse_the_buffer_of_the_matrix_product(tmp_path):
    def output_layer(**trainer):
        return scoring_activations(
            make_run(tmp_path, trainer={"num_steps": 1, **trainer}), "reference", 0
        ).tiles

    columns = 2**24 // 1024
    in_torch = output_layer(logprob_kernel="torch")
    assert in_torch - output_layer() == 1024 * columns * 2 * 4
    assert output_layer(logprob_kernel="triton") == output_layer()
