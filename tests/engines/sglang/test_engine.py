"""The engine on real servers: responses equal HF, and no failure of a server loses a response."""

import asyncio
import os
import shutil
import signal
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.hf.checkpoint import TensorSpec
from megatron_prime.rollout.engine import NO_WEIGHTS, EngineError, WeightSyncError
from megatron_prime.types import FinishReason, Prompt, SamplingParams
from tests.engines.sglang.disk_push import disk_sync, push
from tests.support import deadlines
from tests.support.episodes import ScriptedEnvironments
from tests.support.one_rank import OneRank
from tests.support.rollout_doubles import run_on_ranks
from tests.support.sglang_live import attachment, live_prompts, sglang_settings

GREEDY = SamplingParams(12, temperature=0)


def tokens_of(rollouts):
    return [list(rollout.response_ids) for rollout in rollouts]


def greedy_of(model, prompts):
    with torch.no_grad():
        return [model.greedy(prompt.token_ids, GREEDY.max_response_tokens) for prompt in prompts]


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def kill(server):
    os.kill(server.pid, signal.SIGKILL)


def test_greedy_tokens_and_logprobs_equal_hf(live_engine, live_models):
    prompts = live_prompts(12)
    rollouts = live_engine.generate(prompts, GREEDY, 1, 0)
    assert tokens_of(rollouts) == greedy_of(live_models[0], prompts)
    for rollout in rollouts:
        expected = live_models[0].logprobs(rollout.prompt.token_ids, rollout.response_ids)
        torch.testing.assert_close(
            torch.tensor(rollout.rollout_logprobs).double(), expected, atol=1e-4, rtol=0
        )
    assert {rollout.policy_version for rollout in rollouts} == {1}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.7)])
def test_sampled_logprobs_are_those_of_the_full_distribution_at_the_temperature(
    live_engine, live_models, temperature, top_p
):
    rollouts = live_engine.generate(live_prompts(6), SamplingParams(20, temperature, top_p), 4, 0)
    for rollout in rollouts:
        expected = live_models[0].logprobs(rollout.prompt.token_ids, rollout.response_ids, temperature)
        torch.testing.assert_close(
            torch.tensor(rollout.rollout_logprobs).double(), expected, atol=1e-4, rtol=0
        )
    assert len({tuple(rollout.response_ids) for rollout in rollouts}) > 18


def test_order_is_by_prompt_and_sample_and_both_servers_work(live_engine):
    before = [*live_engine.fleet.balancer.requests_taken]
    prompts = [*live_prompts(20), live_prompts(1)[0]]
    rollouts = live_engine.generate(prompts, SamplingParams(30), 4, 0)
    assert [(rollout.prompt, rollout.sample_index) for rollout in rollouts] == [
        (prompt, sample) for prompt in prompts for sample in range(4)
    ]
    after = live_engine.fleet.balancer.requests_taken
    shares = [late - early for early, late in zip(before, after, strict=True)]
    assert sum(shares) == 84 and min(shares) > 15, shares


def test_a_stop_token_ends_the_response_and_is_part_of_it(live_engine, live_models):
    prompts = live_prompts(6)
    expected = greedy_of(live_models[0], prompts)
    stop = expected[0][3]
    params = SamplingParams(12, temperature=0, stop_token_ids=(stop,))
    for rollout, whole in zip(live_engine.generate(prompts, params, 1, 0), expected, strict=True):
        ends = whole.index(stop) + 1 if stop in whole else len(whole)
        assert list(rollout.response_ids) == whole[:ends]
        assert rollout.finish_reason is (FinishReason.STOP if stop in whole else FinishReason.LENGTH)


def test_a_prompt_may_fill_the_context_but_for_what_sglang_reserves(live_engine):
    prompt = Prompt(0, tuple(range(118)), "")
    [rollout] = live_engine.generate([prompt], SamplingParams(8, temperature=0), 1, 0)
    assert (len(rollout.response_ids), rollout.finish_reason) == (8, FinishReason.LENGTH)
    with pytest.raises(ValueError, match="max_position_embeddings = 128, of which the engine reserves 2"):
        live_engine.generate([prompt], SamplingParams(9), 1, 0)


def test_a_sync_by_blocks_changes_the_output_to_that_of_the_new_weights(live_engine, live_models):
    prompts = live_prompts(8)
    push(live_engine, live_models[1], version=2)
    rollouts = live_engine.generate(prompts, GREEDY, 1, 0)
    assert tokens_of(rollouts) == greedy_of(live_models[1], prompts)
    assert {rollout.policy_version for rollout in rollouts} == {2} and live_engine.policy_version == 2


def test_an_incomplete_sync_leaves_no_weights(live_engine, live_models):
    policy = OneRank(live_models[1].path)
    policy.fill(live_models[1].hf.state_dict())
    sync = disk_sync(live_engine, policy, live_models[1].path, live_engine.folder)
    with live_engine.weight_update(2, sync):
        with pytest.raises(WeightSyncError, match="still open"):
            sync.push(3)
        with pytest.raises(WeightSyncError, match="can't generate"):
            live_engine.generate(live_prompts(1), GREEDY, 1, 0)
        sync._current = live_models[1].path
    assert live_engine.policy_version == 2, "the servers lacked the version and were given it by a resync"
    sync._specs["one.more"] = TensorSpec((2,), torch.float32)
    with pytest.raises(WeightSyncError, match=r"incomplete.*one\.more \(0 of 2\)"):
        sync.push(3)
    sync._current = None
    assert live_engine.policy_version == NO_WEIGHTS
    with pytest.raises(WeightSyncError, match="can't generate"):
        live_engine.generate(live_prompts(1), GREEDY, 1, 0)
    live_engine.load_from_hf(live_models[0].path, 4)
    assert live_engine.policy_version == 4


def test_weights_of_other_formats_beside_the_model_are_not_read(live_engine, live_models, tmp_path):
    shutil.copytree(live_models[1].path, tmp_path / "model")
    for number in range(2):  # of a single other file SGLang leaves out one that is named consolidated
        save_file(
            live_models[0].hf.state_dict(), tmp_path / f"model/old-{number}.safetensors", {"format": "pt"}
        )
    live_engine.load_from_hf(tmp_path / "model", 2)
    prompts = live_prompts(4)
    assert tokens_of(live_engine.generate(prompts, GREEDY, 1, 0)) == greedy_of(live_models[1], prompts)


def test_weights_that_cant_be_loaded_leave_the_old_ones(live_engine, live_models, tmp_path):
    with pytest.raises(WeightSyncError, match="did not reach every server"):
        live_engine.load_from_hf(tmp_path / "nowhere", 2)
    assert live_engine.policy_version == 1
    prompts = live_prompts(4)
    assert tokens_of(live_engine.generate(prompts, GREEDY, 1, 0)) == greedy_of(live_models[0], prompts)


@pytest.mark.slow
def test_a_server_killed_during_a_rollout_loses_no_response(live_engine, live_models):
    push(live_engine, live_models[1], version=5)
    prompts = live_prompts(12)
    before = live_engine.stats.num_replayed
    starts = [server.num_starts for server in live_engine.servers]
    params = SamplingParams(100, temperature=0)
    timer = later(0.4, partial(kill, live_engine.servers[0]))
    rollouts = live_engine.generate(prompts, params, 4, 0)
    timer.join()
    assert live_engine.stats.num_replayed > before
    assert [len(rollout.response_ids) for rollout in rollouts] == [100] * 48
    for rollout in rollouts[::4]:
        assert live_models[1].is_greedy(rollout.prompt.token_ids, rollout.response_ids)
    assert {rollout.policy_version for rollout in rollouts} == {5}
    # The server is back, with the weights of the last sync and not those that it was started with.
    assert [server.num_starts for server in live_engine.servers] == [starts[0] + 1, starts[1]]
    assert live_engine.fleet.balancer.is_up(0)
    used = live_engine.fleet.balancer.requests_taken[0]
    rollouts = live_engine.generate(prompts, GREEDY, 1, 0)
    assert tokens_of(rollouts) == greedy_of(live_models[1], prompts)
    assert live_engine.fleet.balancer.requests_taken[0] > used


@pytest.mark.slow
def test_a_server_killed_before_a_sync_gets_the_new_weights(live_engine, live_models):
    kill(live_engine.servers[1])
    push(live_engine, live_models[1], version=6)
    prompts = live_prompts(12)
    assert tokens_of(live_engine.generate(prompts, GREEDY, 1, 0)) == greedy_of(live_models[1], prompts)


@pytest.mark.slow
def test_a_server_that_dies_beside_the_training_is_back_at_the_next_sync(live_engine, live_models):
    push(live_engine, live_models[1], version=7)
    prompts, starts = live_prompts(40), [server.num_starts for server in live_engine.servers]

    def sample_ahead():
        with live_engine.while_training():
            return live_engine.generate(prompts, GREEDY, 4, 0)

    with ThreadPoolExecutor(1) as beside:
        ahead = beside.submit(sample_ahead)
        while live_engine.fleet.balancer._loads[0].num_requests == 0:
            time.sleep(0.001)
        kill(live_engine.servers[0])
        rollouts = ahead.result()
    assert tokens_of(rollouts[::4]) == greedy_of(live_models[1], prompts)
    assert {rollout.policy_version for rollout in rollouts} == {7}
    assert not live_engine.fleet.balancer.is_up(0), "its weights are nowhere else"
    push(live_engine, live_models[0], version=8)
    assert live_engine.fleet.balancer.is_up(0)
    used = live_engine.fleet.balancer.requests_taken[0]
    rollouts = live_engine.generate(prompts, GREEDY, 1, 0)
    assert tokens_of(rollouts) == greedy_of(live_models[0], prompts)
    assert live_engine.fleet.balancer.requests_taken[0] > used
    assert [server.num_starts for server in live_engine.servers] == [starts[0] + 1, starts[1]]


def test_two_ranks_attach_by_url_and_share_results_and_faults(live_engine, live_models, tmp_path):
    settings = sglang_settings(**attachment(live_engine, tmp_path))
    prompts = live_prompts(5)

    def on_rank(ranks):
        engine = SGLangEngine(
            live_models[0].path,
            device="cpu",
            dtype="fp32",
            seed=0,
            settings=settings,
            run_dir=tmp_path,
            ranks=ranks,
        )
        try:
            push(engine, live_models[1], version=9)
            rollouts = engine.generate(prompts, GREEDY, 2, 0)
            with pytest.raises(WeightSyncError, match="did not reach"):
                engine.load_from_hf(tmp_path / "nowhere", 10)
            return rollouts, engine.policy_version, len(engine.servers)
        finally:
            engine.close()

    first, second = run_on_ranks(2, on_rank)
    assert first == second
    assert first[1:] == (9, 0)
    assert tokens_of(first[0][::2]) == greedy_of(live_models[1], prompts)
    assert all(server.pid for server in live_engine.servers), "attached servers are not ours to end"


def test_closing_the_engine_in_the_middle_of_an_episode_leaves_nothing(live_engine, live_models, tmp_path):
    engine = SGLangEngine(
        live_models[0].path,
        device="cpu",
        dtype="fp32",
        seed=0,
        settings=sglang_settings(**attachment(live_engine, tmp_path)),
        run_dir=tmp_path,
    )
    push(engine, live_models[0], version=9)
    works = threading.Event()

    async def script(episode):
        works.set()
        await asyncio.sleep(60)

    environments = ScriptedEnvironments(script)
    params = SamplingParams(20, max_turns=3, stop_token_ids=tuple(range(300)))
    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(engine.generate, live_prompts(3), params, 2, 0, environments)
        assert works.wait(deadlines.seconds(30)) and environments.live
        engine.close()
        with pytest.raises((CancelledError, EngineError)):
            sampling.result(deadlines.seconds(30))
    assert not environments.live


def test_before_any_weights_there_is_nothing_to_give_to_a_restarted_server(live_models, tmp_path):
    engine = SGLangEngine(
        live_models[0].path,
        device="cpu",
        dtype="fp32",
        seed=0,
        settings=sglang_settings(urls=("http://127.0.0.1:9",)),
        run_dir=tmp_path,
    )
    with pytest.raises(WeightSyncError, match="no weights to give"):
        engine._resync(0)
    engine.close()
    with pytest.raises(WeightSyncError, match="closed"):
        push(engine, live_models[0], 1)


def test_closing_the_engine_closes_its_last_weight_sync(live_models, tmp_path):
    engine = SGLangEngine(
        live_models[0].path,
        device="cpu",
        dtype="fp32",
        seed=0,
        settings=sglang_settings(urls=("http://127.0.0.1:9",)),
        run_dir=tmp_path,
    )
    sync = disk_sync(engine, OneRank(live_models[0].path), live_models[0].path, tmp_path)
    sync._current = folder = tmp_path / "weights-1"
    folder.mkdir()
    with pytest.raises(RuntimeError, match="the transfer fails"), engine.weight_update(1, sync):
        raise RuntimeError("the transfer fails")
    assert engine.policy_version == NO_WEIGHTS
    engine.close()
    assert not (tmp_path / "weights-1").exists()


def test_a_missing_environment_is_an_error_before_anything_starts(live_models, tmp_path):
    settings = sglang_settings(python=tmp_path / "python")
    with pytest.raises(ValueError, match="make sglang"):
        SGLangEngine(
            live_models[0].path, device="cpu", dtype="fp32", seed=0, settings=settings, run_dir=tmp_path
        )
