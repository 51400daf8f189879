"""Real servers: batches do not depend on what finishes first, and what is not needed is aborted."""

import os
import signal

import pytest
import torch

from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.rollout.collector import BatchSize, Collector
from megatron_prime.rollout.prompt_queue import PromptQueue
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import Prompt, SamplingParams
from tests.support.rollout_doubles import CountingStream, FixedOutcome
from tests.support.sglang_live import live_prompts


class NumberTokenizer:
    def decode(self, token_ids, *, skip_special_tokens):
        return " ".join(map(str, token_ids))


class LivePrompts(CountingStream):
    """Prompts of different lengths, whose greedy responses also have different lengths."""

    def next(self, num_prompts):
        return [
            Prompt(
                each.index,
                tuple((11 * each.index + 7 * place) % 300 for place in range(1 + each.index % 4)),
                "",
            )
            for each in super().next(num_prompts)
        ]


def verify(samples):
    """Two of three responses are right."""
    return [FixedOutcome(float(sum(sample.response_ids) % 3 > 0)) for sample in samples]


PARAMS = SamplingParams(60, temperature=0, stop_token_ids=tuple(range(0, 300, 17)))


def collect(engine, max_in_flight=None, num_steps=2, during=lambda: None):
    """Collect steps of the groups that are all right. Returns what must not depend on timing."""
    stream = PromptQueue(LivePrompts())
    filters = FilterConfig(accuracy_min=1.0, accuracy_max=1.0)
    verifier = RolloutVerifier(verify, NumberTokenizer())
    size = BatchSize(6, 2, max_in_flight=max_in_flight)
    collector = Collector(engine, stream, verifier, PARAMS, filters, size)
    steps = []
    for step in range(num_steps):
        during()
        batch = collector.collect(step)
        rows = [(rollout.prompt, rollout.response_ids, rollout.policy_version) for rollout in batch.rollouts]
        steps.append((rows, batch.stats, list(collector.last_records), stream.state_dict()))
    return steps


@pytest.fixture(scope="module")
def expected(live_models):
    """The steps of the embedded engine, one group after the other."""
    engine = LocalEngine(
        live_models[0].path, device=torch.device("cpu"), dtype=torch.float32, seed=0, max_batch_size=64
    )
    engine.load_from_hf(live_models[0].path, policy_version=1)
    return collect(engine, max_in_flight=2)


@pytest.mark.parametrize("max_in_flight", [2, 8, None])
def test_batches_equal_those_of_one_prompt_after_the_other(live_engine, expected, max_in_flight):
    assert collect(live_engine, max_in_flight) == expected
    assert all(load.num_requests == load.num_tokens == 0 for load in live_engine.fleet.balancer._loads)


@pytest.mark.slow
def test_a_server_that_dies_changes_nothing(live_engine, expected):
    before = live_engine.stats.num_recoveries
    pids = [server.pid for server in live_engine.servers]

    def kill():
        if live_engine.servers[0].pid == pids[0]:
            os.kill(pids[0], signal.SIGKILL)

    assert collect(live_engine, during=kill) == expected
    # The stream ends when all servers are up again and have the weights.
    assert live_engine.stats.num_recoveries > before
    assert all(live_engine.fleet.balancer.is_up(server) for server in range(2))


@pytest.mark.slow
def test_what_is_left_is_aborted_and_the_servers_have_nothing_to_do(live_engine, live_models, monkeypatch):
    answers = []
    for client in live_engine.fleet._clients.values():
        generate = client.generate

        async def recording(body, generate=generate):
            answer = await generate(body)
            answers.append(answer["meta_info"]["finish_reason"]["type"])
            return answer

        monkeypatch.setattr(client, "generate", recording)
    prompts = live_prompts(40)
    with live_engine.stream(SamplingParams(110), 4, 0) as stream:
        stream.submit(prompts)
        finished = stream.finished(30.0)
        assert finished and stream.num_in_flight == 40 - len(finished)
    # 64 are in flight at a time. Those that have been sent were answered before the stream ended; others were not sent.
    assert answers.count("abort") > 20 and len(answers) < 160
    assert all(load.num_requests == load.num_tokens == 0 for load in live_engine.fleet.balancer._loads)
    live_engine.load_from_hf(live_models[1].path, policy_version=2)
    [rollout] = live_engine.generate(prompts[1:2], SamplingParams(12, temperature=0), 1, 0)
    assert live_models[1].is_greedy(rollout.prompt.token_ids, rollout.response_ids)


def test_after_an_error_the_servers_have_nothing_to_do_either(live_engine):
    class TestError(Exception):
        pass

    with pytest.raises(TestError), live_engine.stream(SamplingParams(110), 4, 0) as stream:
        stream.submit(live_prompts(20))
        raise TestError
    assert len(live_engine.generate(live_prompts(2), SamplingParams(2), 1, 0)) == 2
