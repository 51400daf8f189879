"""Compares the bytes of FP8 weights with a loop over the layers of known models."""

from math import ceil

import pytest

from megatron_prime.planning.activations import training_activations
from megatron_prime.planning.fp8 import fp8_weights
from megatron_prime.planning.memory import plan_memory, role_bytes
from tests.support.planned_runs import make_run

H, Q, KV, F = 3584, 3584, 512, 18944
"""Hidden, query, key-value and FFN size of Qwen2.5-7B, which has 28 layers."""
WEIGHTS = (Q + 2 * KV, H), (H, Q), (2 * F, H), (H, F)
"""Rows and columns of the weights of a layer."""
ELEMENTS = sum(rows * columns for rows, columns in WEIGHTS)


def of_run(tmp_path, role="policy", **fp8):
    return fp8_weights(make_run(tmp_path, fp8=fp8), role, 0)


def test_a_trained_role_keeps_two_copies_and_the_reference_one(tmp_path):
    recipes = {"policy": "tensorwise", "prm": "tensorwise"}
    for role, copies in (("policy", 2), ("prm", 2), ("reference", 1)):
        found = of_run(tmp_path, role, **recipes)
        assert (found.replaced, found.copies) == (0, 28 * (copies * ELEMENTS + 4 * 4))
    assert of_run(tmp_path, "policy", prm="tensorwise").copies == 0


def test_delayed_scaling_keeps_histories(tmp_path):
    of_a_layer = 2 * ELEMENTS + 4 * 4 + 4 * 5 * (64 + 1) * 4
    assert of_run(tmp_path, policy="delayed", amax_history_len=64).copies == 28 * of_a_layer


def test_blocks_have_scales_of_their_own_in_both_copies(tmp_path):
    expected = 0
    for rows, columns in WEIGHTS:
        for outer, inner in ((rows, columns), (columns, rows)):
            expected += rows * columns + 4 * ceil(outer / 128) * 4 * ceil(ceil(inner / 128) / 4)
    assert of_run(tmp_path, policy="blockwise").copies == 28 * expected
    expected = 0
    for rows, columns in WEIGHTS:
        for outer, inner in ((rows, columns), (columns, rows)):
            expected += rows * columns + 128 * ceil(outer / 128) * 4 * ceil(inner / 32 / 4)
    assert of_run(tmp_path, policy="mxfp8").copies == 28 * expected


def test_layers_in_bf16_and_tensor_parallelism(tmp_path):
    fp8 = {"policy": "tensorwise", "bf16_layers_at_start": 2, "bf16_layers_at_end": 3}
    split = make_run(tmp_path, fp8=fp8, parallel={"tensor": 4, "pipeline": 2, "stage_layers": [16, 12]})
    assert fp8_weights(split, "policy", 0).copies == 14 * (2 * ELEMENTS // 4 + 16)
    assert fp8_weights(split, "policy", 1).copies == 9 * (2 * ELEMENTS // 4 + 16)


def test_each_expert_has_copies(tmp_path):
    run = make_run(tmp_path, "Qwen3-30B-A3B", 16, fp8={"policy": "tensorwise"}, parallel={"expert": 4})
    attention = [(4096 + 2 * 512, 2048), (2048, 4096)]
    experts = [(2 * 768, 2048), (2048, 768)] * (128 // 4)
    expected = sum(2 * rows * columns + 4 for rows, columns in attention + experts)
    assert fp8_weights(run, "policy", 0).copies == 48 * expected


def test_copies_stay_in_all_phases_whatever_is_offloaded(tmp_path):
    fp8, memory = {"prm": "tensorwise"}, {"offload_reference": True, "offload_prm": True}
    run, plain = (make_run(tmp_path, fp8=value, memory=memory) for value in (fp8, {}))
    plan = plan_memory(run)
    for phase, held in plan.phases.items():
        assert ("prm FP8 copies" in held) == ("reference FP8 copies" in held) == (phase != "build")
    assert role_bytes(run, "policy", 0) == role_bytes(plain, "policy", 0)
    assert plan.host == plan_memory(plain).host


def test_primary_weights_replace_those_in_bf16(tmp_path):
    run, plain = (make_run(tmp_path, fp8=fp8) for fp8 in ({"prm": "tensorwise", "primary_weights": True}, {}))
    found, before = (role_bytes(each, "reference", 0) for each in (run, plain))
    assert found == {"weights": before["weights"] - 28 * 2 * ELEMENTS + 28 * (2 * ELEMENTS + 4 * 4)}


@pytest.mark.parametrize(
    ("recipe", "width"), [("delayed", 1), ("blockwise", 1 + 1 / 32), ("mxfp8", 1 + 1 / 32)]
)
def test_inputs_of_matrix_products_are_kept_in_fp8(tmp_path, recipe, width):
    kept = [
        training_activations(make_run(tmp_path, fp8=fp8), "policy", 0, 1).kept
        for fp8 in ({}, {"policy": recipe})
    ]
    assert kept[0] - kept[1] == pytest.approx(28 * 16384 * (2 * H + Q + F) * (2 - width), abs=2)


def test_a_layer_in_bf16_keeps_what_it_kept(tmp_path):
    def kept(**fp8):
        return training_activations(make_run(tmp_path, fp8=fp8), "policy", 0, 1).kept

    saved = kept() - kept(policy="tensorwise")
    assert kept() - kept(policy="tensorwise", bf16_layers_at_start=7) == pytest.approx(saved * 21 / 28, abs=2)
