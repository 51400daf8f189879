"""Weights from training ranks to real servers: they arrive whole from every layout, and every fault is made good."""

import json
import os
import signal
import threading

import pytest
import torch

from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.weights.send import ShardSender
from megatron_prime.engines.sglang.weights.send_ipc import IpcSender
from megatron_prime.engines.sglang.weights.shards import ShardWeights, joined_blocks, shard_weight_sync
from megatron_prime.hf.convert import import_hf
from megatron_prime.hf.shape import ModelShape
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout, local_parameters
from megatron_prime.rollout.engine import WeightSyncError
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import tensor_checksum
from megatron_prime.types import SamplingParams, WeightBlock, WeightBucket
from tests.engines.sglang.weights.shard_sync_worker import IPC, SMALL_BUCKET, sync_layouts
from tests.support.distributed_runner import run_distributed
from tests.support.sglang_live import LiveModel, live_prompts, sglang_settings
from tests.support.tiny_models import save_tiny_model

LAYOUTS = ("one", f"one{IPC}", "tp2", "pp2", "dp2", f"tp2{IPC}", f"pp2{IPC}")
"""Those of one process come first."""
EXPERT_LAYOUTS = ("ep2", "tp2+sp ep2", "pp2 vpp2", f"ep2{IPC}")
"""Of a mixture of experts: the first has whole attention on each rank, the others split it."""
GREEDY = SamplingParams(max_response_tokens=6, temperature=0.0)


@pytest.fixture(scope="module")
def reports(request, live_models, tmp_path_factory):
    """Of each layout; the servers are shared, so one world size after the other."""
    engine = request.getfixturevalue("_live_engine")
    engine.load_from_hf(live_models[0].path, policy_version=1)
    urls = [server.url for server in engine.servers]
    folders = [model.path for model in live_models]
    run_dir = tmp_path_factory.mktemp("attached")
    found = {}
    for num_processes, layouts in ((1, LAYOUTS[:2]), (2, LAYOUTS[2:])):
        for rank in run_distributed(
            sync_layouts, num_processes, layouts, folders, {"urls": urls}, live_prompts(4), run_dir
        ):
            for layout, report in rank.items():
                found.setdefault(layout, []).append(report)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_output_follows_the_sync_and_is_hfs(reports, live_models, layout):
    for report in reports[layout]:
        for version, (model, rollouts) in enumerate(zip(live_models, report["rollouts"], strict=True), 3):
            for rollout in rollouts:
                assert list(rollout.response_ids) == model.greedy(rollout.prompt.token_ids, 6)
                expected = model.logprobs(rollout.prompt.token_ids, rollout.response_ids)
                got = torch.tensor(rollout.rollout_logprobs, dtype=torch.float64)
                torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
                assert rollout.policy_version == version
    first, second = (
        [rollout.response_ids for rollout in rollouts] for rollouts in reports[layout][0]["rollouts"]
    )
    assert first != second


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sglangs_own_checker_agrees_and_tells_other_weights(reports, layout):
    for report in reports[layout]:
        assert report["full_checks"] == [{}, {}]
        assert sorted(report["foreign"]) == [0, 1]
        assert all("model.norm.weight" in text for text in report["foreign"].values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_sends_its_part_once(reports, layout):
    stats = [report["stats"] for report in reports[layout]]
    assert all(s["num_attempts"] == 2 and s["num_repeats"] == 0 and not s["last_fault"] for s in stats)
    assert sum(s["num_bytes_sent"] for s in stats) == 2 * reports[layout][0]["num_needed"]
    assert all(s["num_bytes_sent"] > 0 for s in stats)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checksums_are_those_of_the_checkpoint(reports, live_models, layout):
    for report in reports[layout]:
        for model, checksums in zip(live_models, report["checksums"], strict=True):
            assert checksums == {n: tensor_checksum(t) for n, t in model.hf.state_dict().items()}


@pytest.fixture(scope="module")
def of_experts(tmp_path_factory):
    """Of each layout of a mixture of experts, with a server of two tensor-parallel ranks; and the models."""
    folder = tmp_path_factory.mktemp("experts")
    with torch.no_grad():
        models = [
            LiveModel(folder / f"m{seed}", save_tiny_model("qwen3 moe wide", folder / f"m{seed}", seed))
            for seed in (0, 1)
        ]
    engine = SGLangEngine(
        models[0].path,
        device="cpu",
        dtype="fp32",
        seed=0,
        settings=sglang_settings(tensor=2, routing_replay=True),
        run_dir=folder / "run",
    )
    try:
        engine.load_from_hf(models[0].path, policy_version=1)
        settings = {"urls": [engine.servers[0].url], "tensor": 2, "routing_replay": True}
        folders = [model.path for model in models]
        by_rank = run_distributed(sync_layouts, 2, EXPERT_LAYOUTS, folders, settings, live_prompts(4), folder)
    finally:
        engine.close()
    return {layout: [of_rank[layout] for of_rank in by_rank] for layout in EXPERT_LAYOUTS}, models


@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_experts_arrive_in_a_server_of_two_ranks(of_experts, layout):
    reports, models = of_experts
    for report in reports[layout]:
        assert report["full_checks"] == [{}, {}]
        assert list(report["foreign"]) == [0]
        assert report["stats"]["num_repeats"] == 0
        for model, rollouts in zip(models, report["rollouts"], strict=True):
            for rollout in rollouts:
                assert list(rollout.response_ids) == model.greedy(rollout.prompt.token_ids, 6)
                expected = model.logprobs(rollout.prompt.token_ids, rollout.response_ids)
                got = torch.tensor(rollout.rollout_logprobs, dtype=torch.float64)
                torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    needed = reports[layout][0]["num_needed"]
    assert sum(report["stats"]["num_bytes_sent"] for report in reports[layout]) == 2 * needed


@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_experts_of_each_token_come_back_and_are_hfs(of_experts, layout):
    """What routing replay trains with."""
    reports, models = of_experts
    for model, rollouts in zip(models, reports[layout][0]["rollouts"], strict=True):
        for rollout in rollouts:
            ids = torch.tensor([rollout.prompt.token_ids + rollout.response_ids])
            logits = torch.stack(model.hf(ids, output_router_logits=True).router_logits, dim=1)
            expected = logits[:-1].topk(2).indices
            assert torch.equal(rollout.routed_experts.sort().values.long(), expected.sort().values)


class _Bench:
    """A trainer of one process, in this one, whose engine's servers are supervised here and can be killed."""

    def __init__(self, engine, model, timeout_s=20.0, by_ipc=False, **options):
        self.engine = engine
        self.shape = ModelShape.from_hf_config(json.loads((model.path / "config.json").read_text()))
        self.pieces = local_parameters(self.shape, TrainingLayout(), 0)
        self.parameters = {piece.megatron_name: torch.empty(piece.shape) for piece in self.pieces}
        platform = Platform(torch.device("cpu"), "gloo", torch.float32, timeout=None)
        topology = Topology(platform, 0, 1, 1, 0, 1, 0, 1, 0, False)
        self.path = ShardWeights(engine._driver, engine.fleet, ranks=Ranks(), timeout_s=timeout_s, **options)
        engine._weights = self.path
        self.sync = shard_weight_sync(
            engine,
            self.path,
            self.shape,
            self.parameters,
            topology,
            torch.float32,
            EngineLayout.beside(2, 1, 1) if by_ipc else EngineLayout.consecutive(2, 1, first_rank=1),
            max_bucket_bytes=SMALL_BUCKET,
        )

    def push(self, model, version):
        state = model.hf.state_dict()
        import_hf(
            self.parameters, self.pieces, lambda n, dim, start, length: state[n].narrow(dim, start, length)
        )
        self.sync.push(version)

    def check_serves(self, model, version):
        for rollout in self.engine.generate(live_prompts(6), GREEDY, 1, 0):
            assert list(rollout.response_ids) == model.greedy(rollout.prompt.token_ids, 6)
            assert rollout.policy_version == version
        assert self.path.full_check() == {}


@pytest.fixture
def bench(live_engine, live_models):
    before = live_engine._weights
    yield _Bench(live_engine, live_models[0])
    live_engine._weights = before


def test_a_group_of_connections_is_kept_from_sync_to_sync(bench, live_models):
    for version, model in ((2, live_models[1]), (3, live_models[0])):
        bench.push(model, version)
    [kept] = bench.path._bound().sender.groups
    bench.push(live_models[1], 4)
    assert bench.path._bound().sender.groups == [kept]
    bench.check_serves(live_models[1], 4)


@pytest.mark.parametrize("harm", ["corrupted", "lost", "half done"])
def test_a_bad_transfer_is_detected_and_repeated(bench, live_models, monkeypatch, harm):
    if harm == "lost":  # it takes the deadline to see that
        bench = _Bench(bench.engine, live_models[0], timeout_s=5.0)
    original, num_calls = ShardSender.messages, []

    def harmed(self, slices, checksums):
        messages = original(self, slices, checksums)
        num_calls.append(1)
        if len(num_calls) == 3:
            if harm == "half done":
                raise RuntimeError("a sender that fails in the middle")
            if harm == "lost":
                return messages[:-1]
            messages[0] = messages[0].clone()
            messages[0].view(torch.int32)[5] ^= 1 << 3
        return messages

    monkeypatch.setattr(ShardSender, "messages", harmed)
    bench.push(live_models[1], 2)
    assert bench.path.stats.num_repeats >= 1
    assert ("checksum" in bench.path.stats.last_fault) == (harm == "corrupted")
    bench.check_serves(live_models[1], 2)


def test_a_bad_handover_is_detected_and_repeated(live_engine, live_models, monkeypatch):
    before = live_engine._weights
    bench = _Bench(live_engine, live_models[0], by_ipc=True)
    original, num_calls = IpcSender._fill, []

    def harmed(self, target, half, tensors):
        original(self, target, half, tensors)
        num_calls.append(target)
        if len(num_calls) == 3:
            self._buffer(target).memory[half * (self._buffer(target).memory.numel() // 2) + 5] ^= 1 << 3

    monkeypatch.setattr(IpcSender, "_fill", harmed)
    bench.push(live_models[1], 2)
    assert bench.path.stats.num_repeats == 1
    assert "checksum" in bench.path.stats.last_fault
    assert {call[0] for call in num_calls[-2:]} == {num_calls[2][0]}, (
        "only the server that lacks them gets them again"
    )
    bench.check_serves(live_models[1], 2)
    bench.path.close()
    live_engine._weights = before


def test_weights_that_never_arrive_whole_are_never_sampled_from(bench, live_models, monkeypatch):
    original = ShardSender.messages

    def corrupted(self, slices, checksums):
        return original(self, slices, checksums + 1)

    with monkeypatch.context() as patch:
        patch.setattr(ShardSender, "messages", corrupted)
        with pytest.raises(
            WeightSyncError, match=r"version 2 did not reach every server in 4 tries.*checksum"
        ):
            bench.push(live_models[1], 2)
    with pytest.raises(WeightSyncError, match="no weight sync has succeeded"):
        bench.engine.generate(live_prompts(1), GREEDY, 1, 0)
    served = [bench.engine._driver.run(client.weight_version) for client in _clients(bench.engine)]
    assert served == ["incomplete-2"] * 2
    bench.push(live_models[0], 3)
    bench.check_serves(live_models[0], 3)


def test_a_server_killed_in_mid_sync_costs_a_repetition(bench, live_models, monkeypatch):
    original, killed = ShardSender.messages, []

    def kill_then_send(self, slices, checksums):
        if not killed:
            killed.append(bench.engine.servers[1].pid)
            os.killpg(killed[0], signal.SIGKILL)
        return original(self, slices, checksums)

    monkeypatch.setattr(ShardSender, "messages", kill_then_send)
    bench.push(live_models[1], 2)
    assert killed and bench.path.stats.num_repeats >= 1
    bench.check_serves(live_models[1], 2)


def test_a_server_killed_in_mid_rollout_gets_its_weights_back(bench, live_models):
    bench.push(live_models[1], 2)
    num_attempts = bench.path.stats.num_attempts
    pid = bench.engine.servers[0].pid
    timer = threading.Timer(0.3, os.killpg, (pid, signal.SIGKILL))
    timer.start()
    long = SamplingParams(max_response_tokens=90, temperature=0.0)
    rollouts = bench.engine.generate(live_prompts(24), long, 4, 0)
    timer.join()
    assert len(rollouts) == 96
    for rollout in rollouts[::4]:
        assert list(rollout.response_ids) == live_models[1].greedy(rollout.prompt.token_ids, 90)
    assert bench.path.stats.num_attempts > num_attempts
    assert bench.path.full_check() == {}


def test_a_model_that_does_not_fit_is_named(bench, live_models):
    bench.parameters["decoder.final_layernorm.weight"] = torch.ones(31)
    plan = bench.path._bound().manifests
    body = plan.incoming(0, 0)
    body["names"][-1] = "model.norm.wait"
    bench.path._lead()._bodies[0, 0] = json.dumps(body)
    with pytest.raises(WeightSyncError, match=r"does not fit the trainer's: .*model\.norm\.wait"):
        bench.sync.push(2)


def test_blocks_do_not_go_through_this_path_and_a_source_is_needed(live_engine):
    path = ShardWeights(live_engine._driver, live_engine.fleet, ranks=Ranks(), timeout_s=5)
    with pytest.raises(WeightSyncError, match="no source"):
        path.begin(1)
    with pytest.raises(WeightSyncError, match="by itself"):
        path.load(WeightBucket((), 1))


def test_ranks_without_servers_have_no_part_in_leading():
    driver = Driver(Ranks(), lambda server: None)
    try:
        ShardWeights(driver, None, ranks=Ranks(), timeout_s=5).close()
    finally:
        driver.close()


def test_blocks_are_joined_in_order():
    whole = torch.arange(12.0).view(4, 3)
    blocks = [
        WeightBlock("w", 0, 2, whole[2:]),
        WeightBlock("w", 0, 0, whole[:2]),
        WeightBlock("v", 0, 0, whole[0]),
    ]
    joined = joined_blocks(blocks)
    assert torch.equal(joined["w"], whole) and torch.equal(joined["v"], whole[0])


def _clients(engine):
    return engine._driver.run(engine.fleet.clients)
