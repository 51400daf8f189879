"""Weights arrive completely in real servers from every layout, and every fault is detected and repaired."""

import base64
import copy
import os
import signal
import threading
import zlib

import pytest
import torch

from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.weights.coordinator import Coordinator
from megatron_prime.engines.sglang.weights.group_sender import GroupSender
from megatron_prime.engines.sglang.weights.ipc_sender import IpcSender
from megatron_prime.engines.sglang.weights.shard_sync import ShardSync
from megatron_prime.engines.sglang.weights.source import WeightSource
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.rollout.engine import NO_WEIGHTS, WeightSyncError
from megatron_prime.rollout.weight_intake import tensor_checksum
from megatron_prime.types import SamplingParams
from tests.engines.sglang.weights.shard_sync_worker import IPC, SMALL_BUCKET, sync_layouts
from tests.engines.sglang.weights.sync_chain import DISTURBANCES, SyncChain
from tests.support.distributed_runner import run_distributed
from tests.support.one_rank import OneRank
from tests.support.sglang_live import LiveModel, attachment, live_prompts, sglang_settings
from tests.support.tiny_models import save_tiny_model

LAYOUTS = ("one", f"one{IPC}", "tp2", "pp2", "dp2", f"tp2{IPC}", f"pp2{IPC}")
"""The layouts of one process come first."""
EXPERT_LAYOUTS = ("ep2", "tp2+sp ep2", "pp2 vpp2", f"ep2{IPC}")
"""Layouts of a mixture of experts: the first has whole attention on each rank, the others split it."""
GREEDY = SamplingParams(max_response_tokens=6, temperature=0.0)


def slightly_changed(model, path):
    """A model that differs from another in one of a hundred elements, by at least a quarter."""
    changed = copy.deepcopy(model.hf)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter[torch.rand(parameter.shape, generator=generator) < 0.01] *= 1.5
    changed.save_pretrained(path)
    return LiveModel(path, changed)


@pytest.fixture(scope="module")
def three_models(live_models, tmp_path_factory):
    """Two models with different weights, and one that is almost the second."""
    return (*live_models, slightly_changed(live_models[1], tmp_path_factory.mktemp("changed")))


@pytest.fixture(scope="module")
def reports(request, live_models, three_models, tmp_path_factory):
    """The reports of each layout. The servers are shared, so the world sizes run one after another."""
    engine = request.getfixturevalue("_live_engine")
    engine.load_from_hf(live_models[0].path, policy_version=1)
    folders = [model.path for model in three_models]
    run_dir = tmp_path_factory.mktemp("attached")
    attached = attachment(engine, run_dir)
    found = {}
    for num_processes, layouts in ((1, LAYOUTS[:2]), (2, LAYOUTS[2:])):
        for rank in run_distributed(
            sync_layouts, num_processes, layouts, folders, attached, live_prompts(4), run_dir
        ):
            for layout, report in rank.items():
                found.setdefault(layout, []).append(report)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_output_follows_the_sync_and_equals_hf(reports, three_models, layout):
    for report in reports[layout]:
        for version, (model, rollouts) in enumerate(zip(three_models, report["rollouts"], strict=True), 3):
            for rollout in rollouts:
                assert list(rollout.response_ids) == model.greedy(rollout.prompt.token_ids, 6)
                expected = model.logprobs(rollout.prompt.token_ids, rollout.response_ids)
                got = torch.tensor(rollout.rollout_logprobs, dtype=torch.float64)
                torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
                assert rollout.policy_version == version
    first, second, third = (
        [rollout.rollout_logprobs for rollout in rollouts] for rollouts in reports[layout][0]["rollouts"]
    )
    assert first != second != third


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sglangs_own_checker_agrees_and_detects_other_weights(reports, layout):
    for report in reports[layout]:
        assert report["full_checks"] == [{}, {}, {}]
        assert sorted(report["foreign"]) == [0, 1]
        assert all("model.norm.weight" in text for text in report["foreign"].values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_sends_its_part_once(reports, layout):
    stats = [report["stats"] for report in reports[layout]]
    assert all(s["num_attempts"] == 3 and s["num_repeats"] == 0 and not s["last_fault"] for s in stats)
    assert all(s["num_bytes_sent"] > 0 for s in stats)
    check_pushes(reports[layout], num_servers=2, is_ipc=layout.endswith(IPC))


def check_pushes(of_ranks, num_servers, is_ipc):
    """Everything is sent first; nothing is saved if everything changes; changes alone are sent if there are few."""
    pushes = of_ranks[0]["pushes"]
    assert all(report["pushes"] == pushes for report in of_ranks)
    sent = sum(report["stats"]["num_bytes_sent"] for report in of_ranks)
    first, second, third = (round(push["gib_sent"] * (1 << 30)) for push in pushes)
    needed = of_ranks[0]["num_needed"]
    assert first == needed and first + second + third == sent
    assert [push["num_patched"] for push in pushes] == [0, *[0 if is_ipc else num_servers] * 2]
    assert not any(push["num_fallbacks"] or push["num_repeats"] for push in pushes)
    if is_ipc:
        assert second == third == needed
    else:
        assert needed < second < 1.03 * needed and pushes[1]["changed_fraction"] > 0.9
        assert third < 0.05 * needed and 0.008 < pushes[2]["changed_fraction"] < 0.012


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checksums_are_those_of_the_checkpoint(reports, three_models, layout):
    for report in reports[layout]:
        for model, checksums in zip(three_models, report["checksums"], strict=True):
            assert checksums == {n: tensor_checksum(t) for n, t in model.hf.state_dict().items()}


@pytest.fixture(scope="module")
def of_experts(tmp_path_factory):
    """The reports of each layout of a mixture of experts with a server of two tensor-parallel ranks; the models."""
    folder = tmp_path_factory.mktemp("experts")
    with torch.no_grad():
        models = [
            LiveModel(folder / f"m{seed}", save_tiny_model("qwen3 moe wide", folder / f"m{seed}", seed))
            for seed in (0, 1)
        ]
    models.append(slightly_changed(models[1], folder / "changed"))
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
        settings = {**attachment(engine, folder), "tensor": 2, "routing_replay": True}
        folders = [model.path for model in models]
        by_rank = run_distributed(sync_layouts, 2, EXPERT_LAYOUTS, folders, settings, live_prompts(4), folder)
    finally:
        engine.close()
    return {layout: [of_rank[layout] for of_rank in by_rank] for layout in EXPERT_LAYOUTS}, models


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_experts_arrive_in_a_server_of_two_ranks(of_experts, layout):
    reports, models = of_experts
    for report in reports[layout]:
        assert report["full_checks"] == [{}, {}, {}]
        assert list(report["foreign"]) == [0]
        assert report["stats"]["num_repeats"] == 0
        for model, rollouts in zip(models, report["rollouts"], strict=True):
            for rollout in rollouts:
                assert list(rollout.response_ids) == model.greedy(rollout.prompt.token_ids, 6)
                expected = model.logprobs(rollout.prompt.token_ids, rollout.response_ids)
                got = torch.tensor(rollout.rollout_logprobs, dtype=torch.float64)
                torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    check_pushes(reports[layout], num_servers=1, is_ipc=layout.endswith(IPC))


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_returned_experts_of_each_token_equal_hf(of_experts, layout):
    """Routing replay trains with these experts."""
    reports, models = of_experts
    for model, rollouts in zip(models, reports[layout][0]["rollouts"], strict=True):
        for rollout in rollouts:
            ids = torch.tensor([(*rollout.prompt.token_ids, *rollout.response_ids)])
            logits = torch.stack(model.hf(ids, output_router_logits=True).router_logits, dim=1)
            expected = logits[:-1].topk(2).indices
            assert torch.equal(rollout.routed_experts.sort().values.long(), expected.sort().values)


class _Bench:
    """A trainer of one process, in this one, whose engine's servers are supervised here and can be killed."""

    def __init__(self, engine, model, timeout_s=20.0, by_ipc=False):
        self.engine = engine
        self.policy = OneRank(model.path)
        self.source = WeightSource.build(
            self.policy.shape,
            self.policy.parameters,
            self.policy.topology,
            torch.float32,
            EngineLayout.beside(2, 1, 1) if by_ipc else EngineLayout.consecutive(2, 1, first_rank=1),
            max_bucket_bytes=SMALL_BUCKET,
        )
        self.sync = ShardSync(engine, self.source, timeout_s=timeout_s)

    def push(self, model, version):
        self.policy.fill(model.hf.state_dict())
        self.sync.push(version)

    def check_serves(self, model, version):
        for rollout in self.engine.generate(live_prompts(6), GREEDY, 1, 0):
            assert list(rollout.response_ids) == model.greedy(rollout.prompt.token_ids, 6)
            assert rollout.policy_version == version
        assert self.sync.full_check() == {}


@pytest.fixture
def bench(live_engine, live_models):
    return _Bench(live_engine, live_models[0])


def test_a_process_group_is_kept_between_syncs(bench, live_models):
    for version, model in ((2, live_models[1]), (3, live_models[0])):
        bench.push(model, version)
    [kept] = bench.source.sender.groups
    bench.push(live_models[1], 4)
    assert bench.source.sender.groups == [kept]
    bench.check_serves(live_models[1], 4)


@pytest.mark.parametrize("harm", ["corrupted", "lost", "half done"])
def test_a_bad_transfer_is_detected_and_repeated(bench, live_models, monkeypatch, harm):
    if harm == "lost":  # it takes the deadline to see that
        bench = _Bench(bench.engine, live_models[0], timeout_s=5.0)
    original, num_calls = GroupSender.messages, []

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

    monkeypatch.setattr(GroupSender, "messages", harmed)
    bench.push(live_models[1], 2)
    assert bench.sync.stats.num_repeats >= 1
    assert ("checksum" in bench.sync.stats.last_fault) == (harm == "corrupted")
    bench.check_serves(live_models[1], 2)


def test_a_bad_handover_is_detected_and_repeated(live_engine, live_models, monkeypatch):
    bench = _Bench(live_engine, live_models[0], by_ipc=True)
    original, num_calls = IpcSender._fill, []

    def harmed(self, target, half, slices):
        original(self, target, half, slices)
        num_calls.append(target)
        if len(num_calls) == 3:
            self._buffer(target).memory[half * (self._buffer(target).memory.numel() // 2) + 5] ^= 1 << 3

    monkeypatch.setattr(IpcSender, "_fill", harmed)
    bench.push(live_models[1], 2)
    assert bench.sync.stats.num_repeats == 1
    assert "checksum" in bench.sync.stats.last_fault
    assert {call[0] for call in num_calls[-2:]} == {num_calls[2][0]}, (
        "only the server that lacks them gets them again"
    )
    bench.check_serves(live_models[1], 2)
    bench.sync.close()


def test_incomplete_weights_are_never_sampled_from(bench, live_models, monkeypatch):
    original = GroupSender.messages

    def corrupted(self, slices, checksums):
        return original(self, slices, checksums + 1)

    with monkeypatch.context() as patch:
        patch.setattr(GroupSender, "messages", corrupted)
        with pytest.raises(
            WeightSyncError, match=r"version 2 did not reach every server in 4 tries.*checksum"
        ):
            bench.push(live_models[1], 2)
    with pytest.raises(WeightSyncError, match="no weight sync has succeeded"):
        bench.engine.generate(live_prompts(1), GREEDY, 1, 0)
    served = [bench.engine.driver.run(client.weight_version) for client in _clients(bench.engine)]
    assert all(name.startswith("2-") for name in served)
    assert bench.engine.driver.run(bench.engine.fleet.weight_versions) == [NO_WEIGHTS] * 2
    bench.push(live_models[0], 3)
    bench.check_serves(live_models[0], 3)


@pytest.mark.slow
def test_a_sync_is_repeated_for_a_server_killed_during_it(bench, live_models, monkeypatch):
    original, killed = GroupSender.messages, []

    def kill_then_send(self, slices, checksums):
        if not killed:
            killed.append(bench.engine.servers[1].pid)
            os.killpg(killed[0], signal.SIGKILL)
        return original(self, slices, checksums)

    monkeypatch.setattr(GroupSender, "messages", kill_then_send)
    bench.push(live_models[1], 2)
    assert killed and bench.sync.stats.num_repeats >= 1
    bench.check_serves(live_models[1], 2)


@pytest.mark.slow
def test_a_disturbed_chain_of_changes_ends_with_the_weights_of_a_full_sync(live_engine, live_models):
    """A chain of 200 is in benchmarks/delta_sync."""
    model = live_models[0]
    chain = SyncChain(live_engine, model.path, model.hf.state_dict(), torch.float32, share=0.01)
    num_fallbacks = {"none": 0, "damaged": 1, "cut": 2, "overwritten": 2}
    chain.push("none")
    for disturbance in DISTURBANCES:
        found = chain.push(disturbance)
        assert chain.disturbed[disturbance] == (disturbance != "none")
        # A server that is killed may take the other one's transfer with it, or its time.
        if disturbance in num_fallbacks:
            assert found["num_patched"] == 2, disturbance
            assert found["num_fallbacks"] == num_fallbacks[disturbance], disturbance
        assert chain.differences() == {}, disturbance
    found = chain.push("none")
    assert found["num_patched"] == 2 and found["num_fallbacks"] == 0
    assert chain.differences() == {}


def test_a_server_that_never_holds_what_it_was_sent_gets_everything(live_engine, live_models, caplog):
    model = live_models[0]
    chain = SyncChain(live_engine, model.path, model.hf.state_dict(), torch.float32, share=0.01)
    chain.push("none")
    patched = [chain.push("overwritten")["num_patched"] for _ in range(4)]
    assert patched == [2, 2, 2, 0]
    assert caplog.text.count("from now on it gets all weights in every sync") == 2


@pytest.mark.slow
def test_a_sync_is_repeated_for_a_server_killed_after_its_transfer(bench, live_models, monkeypatch):
    """Its restarted process would take the new version's name for the weights that it was started with."""
    original, killed = Coordinator._check_report, []

    def check_then_kill(self, target, attempt, reports):
        original(self, target, attempt, reports)
        if target[0] == 1 and not killed:
            killed.append(bench.engine.servers[1].pid)
            os.killpg(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Coordinator, "_check_report", check_then_kill)
    bench.push(live_models[1], 2)
    assert killed and bench.sync.stats.num_repeats >= 1
    bench.check_serves(live_models[1], 2)


@pytest.mark.slow
def test_a_server_killed_during_a_rollout_gets_its_weights_back(bench, live_models):
    bench.push(live_models[1], 2)
    num_attempts = bench.sync.stats.num_attempts
    pid = bench.engine.servers[0].pid
    timer = threading.Timer(0.3, os.killpg, (pid, signal.SIGKILL))
    timer.start()
    long = SamplingParams(max_response_tokens=90, temperature=0.0)
    rollouts = bench.engine.generate(live_prompts(8), long, 4, 0)
    timer.join()
    assert len(rollouts) == 32
    for rollout in rollouts[::4]:
        assert len(rollout.response_ids) == 90
        assert live_models[1].is_greedy(rollout.prompt.token_ids, rollout.response_ids)
    assert bench.sync.stats.num_attempts > num_attempts
    assert bench.sync.full_check() == {}


def test_a_model_that_does_not_fit_is_an_error_with_its_tensor(bench, live_models):
    slices = bench.source.plan._slices
    text, sizes = slices[0]
    wrong = zlib.decompress(base64.b64decode(text)).replace(b"model.norm.weight", b"model.norm.wait")
    slices[0] = base64.b64encode(zlib.compress(wrong)).decode(), sizes
    with pytest.raises(WeightSyncError, match=r"refuses the weights: .*model\.norm\.wait"):
        bench.sync.push(2)


def test_ranks_without_servers_have_no_coordinator(bench, live_engine, monkeypatch):
    monkeypatch.setattr(live_engine, "fleet", None)
    sync = ShardSync(live_engine, bench.source, timeout_s=5)
    assert sync._coordinator is None
    sync.close()


def _clients(engine):
    return engine.driver.run(engine.fleet.clients)
