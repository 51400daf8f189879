"""Compares FLOPs with the rule of 6 N, the bubble with its formula, and sync bytes with a count per server."""

from dataclasses import replace

import pytest

from megatron_prime.hf.serving import num_parameters
from megatron_prime.planning.gpus import KNOWN
from megatron_prime.planning.times import bubble, plan_times, weight_sync
from tests.support.planned_runs import make_run


def test_an_update_takes_about_six_flops_per_parameter_and_token(tmp_path):
    run = make_run(tmp_path)
    times = plan_times(run, with_sync=False)
    by_rule = 6 * num_parameters(run.shapes["policy"]) * run.tokens
    assert times.phases["policy"].flops == pytest.approx(by_rule, rel=0.12)
    ideal = times.phases["policy"].flops / (8 * 989.4e12 * 0.4)
    assert ideal < times.phases["policy"].seconds < 1.1 * ideal
    full = make_run(tmp_path, memory={"recompute": {"granularity": "full"}})
    again = plan_times(full, with_sync=False).phases["policy"].flops
    assert again / times.phases["policy"].flops == pytest.approx(4 / 3)


def test_the_bubble_follows_its_formula():
    assert bubble(1, 1, 8) == 0
    assert bubble(4, 1, 8) == 3 / 11
    assert bubble(4, 2, 8) == 3 / 19


def test_a_pass_waits_for_the_stage_with_the_output_layer(tmp_path):
    def seconds(layers):
        parallel = {"pipeline": 4, "num_processes": 8, "stage_layers": layers}
        run = make_run(tmp_path, parallel=parallel, policy={"num_minibatches": 1})
        return plan_times(run, with_sync=False).phases["policy"].seconds

    # The output layer is worth 2.3 layers of this model: the slowest stage does the work of 8 layers, or of 7 + 2.3.
    assert seconds("auto") == seconds((7, 8, 8, 5)) < 0.95 * seconds((7, 7, 7, 7))


def test_stages_hand_on_hidden_states(tmp_path):
    def plan(gpus_per_node):
        gpu = replace(KNOWN["H100-80G"], gpus_per_node=gpus_per_node)
        run = make_run(tmp_path, parallel={"pipeline": 4, "num_processes": 8}, policy={"num_minibatches": 1})
        run = replace(run, gpu=gpu)
        return run, plan_times(run, with_sync=False).phases["logprobs"].seconds

    run, within_a_node = plan(8)
    _, between_nodes = plan(4)
    # The reference and the policy, forward only; two data-parallel ranks.
    num_bytes = 2 * run.tokens / 2 * run.shapes["policy"].hidden_size * 2
    difference = num_bytes / 0.7 / 1e9 * (1 / 50 - 1 / 450)
    assert between_nodes - within_a_node == pytest.approx(difference)


def test_decoding_reads_the_weights_once_per_step(tmp_path):
    alone = {"engine": "sglang", "sglang": {"num_servers": 1, "concurrency": 1, "colocated": True}}
    run = make_run(tmp_path, rollout=alone, trainer={"num_steps": 1, "prompts_per_step": 4})
    weights = 2 * num_parameters(run.shapes["policy"])
    floor = 16 * 1536 * weights / (3352e9 * 0.6)
    assert plan_times(run, with_sync=False).phases["rollout"].seconds == pytest.approx(floor, rel=0.05)


def test_a_sync_sends_the_whole_model_to_every_server(tmp_path):
    beside = {"engine": "sglang", "sglang": {"num_servers": 4, "tensor": 2, "colocated": False}}
    run = make_run(tmp_path, rollout=beside)
    counted = weight_sync(run)
    assert counted.network_bytes == 4 * 2 * num_parameters(run.shapes["policy"]) + _replicated(run, 4)
    assert counted.local_bytes == 0
    busiest = max(counted.nic_received_bytes_by_rank.values())
    assert counted.seconds(run.gpu.nic_gb_s * 1e9, run.gpu.nvlink_gb_s * 1e9) >= busiest / 50e9
    assert weight_sync(make_run(tmp_path, rollout={"engine": "local"})) is None


def _replicated(run, num_engines):
    """Return the bytes of the norms, which both ranks of a server hold: two per layer and the final one, in bf16."""
    return num_engines * 2 * run.shapes["policy"].hidden_size * (2 * 28 + 1)


def test_offloading_takes_time_on_the_host_link(tmp_path):
    plain, away = make_run(tmp_path), make_run(tmp_path, memory={"offload_prm": True})
    seconds = [plan_times(run, with_sync=False).phases["prm"].seconds for run in (plain, away)]
    n = num_parameters(plain.shapes["prm"])
    assert seconds[1] - seconds[0] == pytest.approx(2 * (2 * n + 12 * n // 8) / 50e9)


def test_a_step_takes_the_longer_of_sampling_and_training_where_they_overlap(tmp_path):
    for concurrency in (1, 256):
        servers = {"urls": ["http://a:1"], "tensor": 4, "colocated": False, "concurrency": concurrency}
        rollout = {"engine": "sglang", "sglang": servers}
        in_turn = plan_times(make_run(tmp_path, rollout=rollout))
        ahead = plan_times(make_run(tmp_path, rollout=rollout | {"max_staleness": 1}))
        assert in_turn.phases == ahead.phases
        parts = {name: phase.seconds for name, phase in ahead.phases.items()}
        training = sum(parts[name] for name in ("logprobs", "prm", "policy"))
        assert in_turn.seconds == pytest.approx(sum(parts.values()))
        assert (parts["rollout"] > training) == (concurrency == 1)
        assert ahead.seconds == pytest.approx(parts["weight_sync"] + max(parts["rollout"], training))


def test_sampling_takes_at_least_as_long_as_the_longest_response(tmp_path):
    """However many servers there are: each of its tokens reads the weights once, over all steps in which it goes on."""
    many = {
        "engine": "sglang",
        "sglang": {"urls": [f"http://a:{port}" for port in range(1, 65)], "colocated": False},
    }
    for ahead, num_steps in (
        ({}, 1),
        ({"max_staleness": 1}, 1),
        ({"max_staleness": 4}, 1),
        ({"max_staleness": 2, "partial": "continue"}, 2),
    ):
        run = make_run(tmp_path, rollout=many | ahead)
        seconds = plan_times(run, with_sync=False).phases["rollout"].seconds
        floor = 3072 * 2 * num_parameters(run.shapes["policy"]) / (3352e9 * 0.6) / num_steps
        assert floor < seconds < 1.2 * floor
