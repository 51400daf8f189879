"""FLOPs by the rule of 6 N, the bubble by its formula, sync bytes by what every server must get."""

import pytest

from megatron_prime.planning.counts import num_parameters
from megatron_prime.planning.times import bubble, plan_times, weight_sync
from tests.support.plan_jobs import make_job


def test_an_update_is_about_six_flops_a_parameter_and_token(tmp_path):
    job = make_job(tmp_path)
    times = plan_times(job, with_sync=False)
    by_rule = 6 * num_parameters(job.shapes["policy"]) * job.tokens
    assert times.phases["policy"].flops == pytest.approx(by_rule, rel=0.12)
    ideal = times.phases["policy"].flops / (8 * 989.4e12 * 0.4)
    assert ideal < times.phases["policy"].seconds < 1.1 * ideal
    full = make_job(tmp_path, memory={"recompute": {"granularity": "full"}})
    again = plan_times(full, with_sync=False).phases["policy"].flops
    assert again / times.phases["policy"].flops == pytest.approx(4 / 3)


def test_the_bubble_of_a_pipeline():
    assert bubble(1, 1, 8) == 0
    assert bubble(4, 1, 8) == 3 / 11
    assert bubble(4, 2, 8) == 3 / 19


def test_decoding_reads_the_weights_once_a_step(tmp_path):
    alone = {"engine": "sglang", "sglang": {"num_servers": 1, "concurrency": 1, "colocated": True}}
    job = make_job(tmp_path, rollout=alone, trainer={"num_steps": 1, "prompts_per_step": 4})
    weights = 2 * num_parameters(job.shapes["policy"])
    floor = 16 * 1536 * weights / (3352e9 * 0.6)
    assert plan_times(job, with_sync=False).phases["rollout"].seconds == pytest.approx(floor, rel=0.05)


def test_a_sync_brings_every_server_the_whole_model(tmp_path):
    beside = {"engine": "sglang", "sglang": {"num_servers": 4, "tensor": 2, "colocated": False}}
    job = make_job(tmp_path, rollout=beside)
    counted = weight_sync(job)
    assert counted.network_bytes == 4 * 2 * num_parameters(job.shapes["policy"]) + _replicated(job, 4)
    assert counted.local_bytes == 0
    busiest = max(counted.nic_received_bytes_by_rank.values())
    assert counted.seconds(job.gpu.nic_gb_s * 1e9, job.gpu.nvlink_gb_s * 1e9) >= busiest / 50e9
    assert weight_sync(make_job(tmp_path, rollout={"engine": "local"})) is None


def _replicated(job, num_engines):
    """Norms stand on both ranks of a server: two a layer and the last one, in bf16."""
    return num_engines * 2 * job.shapes["policy"].hidden_size * (2 * 28 + 1)


def test_offloading_costs_its_way_over_the_host_link(tmp_path):
    plain, away = make_job(tmp_path), make_job(tmp_path, memory={"offload_prm": True})
    seconds = [plan_times(job, with_sync=False).phases["prm"].seconds for job in (plain, away)]
    n = num_parameters(plain.shapes["prm"])
    assert seconds[1] - seconds[0] == pytest.approx(2 * (2 * n + 12 * n // 8) / 50e9)
