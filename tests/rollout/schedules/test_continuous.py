"""Continuous sampling keeps the order of the prompts, and no group is older than allowed, whatever the timing."""

import json
import os
import random
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_prime.cli.train import prompt_stream
from megatron_prime.config.loading import load_config
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.observability import Progress
from megatron_prime.quickstart.arithmetic_task import write_all
from megatron_prime.rollout.collector import BatchSize, Collector, NoBatch
from megatron_prime.rollout.engine import EngineError
from megatron_prime.rollout.held_batch import HeldBatch
from megatron_prime.rollout.prompt_queue import PromptQueue
from megatron_prime.rollout.schedules.continuous import Continuous, Window
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.training.health.stop import EXIT_CODE
from megatron_prime.types import SamplingParams
from tests.engines.sglang.disk_push import push
from tests.rollout.test_collector import EASY, HARD, MIXED, indices, make_collector, sequential
from tests.support import deadlines
from tests.support.rollout_doubles import (
    CountingStream,
    FixedOutcome,
    ScriptedEngine,
    ScriptedStream,
    WordTokenizer,
    run_on_ranks,
    verify_words,
)
from tests.support.sglang_live import attachment, sglang_settings
from tests.support.toy_runs import Started, finish, is_logged, records, rollouts


class Sampler(ScriptedStream):
    """A stream whose groups have the version at which they began."""

    def submit(self, prompts):
        super().submit(prompts)
        self.begun = getattr(self, "begun", {}) | dict.fromkeys(
            (prompt.index for prompt in prompts), self.engine.now
        )

    def group(self, prompt):
        version = self.begun[prompt.index]
        return [replace(rollout, policy_version=version) for rollout in super().group(prompt)]


class VersionedEngine(ScriptedEngine):
    now = 0

    def stream(self, params, group_size, stream_key, environments=None):
        self.stream_keys.append(stream_key)
        return nullcontext(Sampler(self, group_size))


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("max_staleness", [2, 4])
def test_batches_are_those_of_one_prompt_after_the_other_and_no_group_is_too_old(num_ranks, max_staleness):
    for seed in range(3):
        kinds = random.Random(seed).choices([MIXED, EASY, HARD], [2, 1, 2], k=400)
        wanted = sequential(kinds.__getitem__, num_steps=6)

        def run(ranks, seed=seed, kinds=kinds):
            draws = random.Random(seed)
            engine = VersionedEngine(
                kinds.__getitem__,
                finish_next=lambda numbers: draws.sample(numbers, draws.randint(0, min(3, len(numbers)))),
            )
            verifier = RolloutVerifier(verify_words, WordTokenizer(), ranks)
            stream = PromptQueue(CountingStream())
            collector = make_collector(engine, stream, max_prompts_factor=5.0, verifier=verifier)
            source = Continuous(collector, max_staleness, num_steps=6)
            steps, ages = [], []
            for step in range(6):
                engine.now = step
                batch = source.collect(step)
                steps.append((list(source.last_records), indices(batch), stream.state_dict()))
                ages += [step - rollout.policy_version for rollout in batch.rollouts]
                source.collect_ahead(step)
                source.finish()
            assert source._groups is None, "the stream ends with the last batch"
            return steps, ages

        for steps, ages in run_on_ranks(num_ranks, run):
            for (taken, batch, position), (seen, in_batch) in zip(steps, wanted, strict=True):
                assert [(index, mean, decision == "kept") for index, mean, decision in taken] == seen
                assert batch == [index for index in in_batch for _ in range(2)]
                assert position == {"num_taken": seen[-1][0] + 1}
            assert 0 <= min(ages) <= max(ages) <= max_staleness


def test_a_group_that_begins_is_used_in_time_however_the_others_are_decided():
    """The bound of `Window` against the steps that are really taken, for decisions by chance."""
    draws = random.Random(0)
    for _ in range(300):
        needed = draws.randint(1, 4)
        most = needed * draws.randint(1, 3)
        is_dropped = [draws.random() < 0.5 for _ in range(draws.randint(0, 20))]
        is_known = [draws.random() < 0.5 for _ in is_dropped]
        window = Window(needed, most)
        for dropped, known in zip(is_dropped, is_known, strict=True):
            window.add(is_dropped=dropped and known)
        real = Window(needed, most)
        for dropped in is_dropped:
            real.add(is_dropped=dropped)
        assert real.num_batches <= window.num_batches


def test_an_engine_without_servers_costs_the_groups_in_work_and_other_errors_are_raised():
    engine, warnings = VersionedEngine(lambda index: MIXED), []
    engine.finish_next = lambda numbers: [number for number in numbers if number < 4]
    stream = PromptQueue(CountingStream())
    source = Continuous(make_collector(engine, stream), 2, 9, warnings.append)
    assert indices(source.collect(0))[::2] == [0, 1, 2, 3]

    def fail(numbers):
        raise EngineError("no server is left")

    engine.finish_next = fail
    source.collect_ahead(0)
    deadline = time.monotonic() + deadlines.seconds(30)
    while source._failure is None and time.monotonic() < deadline:
        time.sleep(0.001)
    source.finish()
    engine.finish_next = list
    batch = source.collect(1)
    assert indices(batch)[::2] == [4, 5, 6, 7] and "no server is left" in warnings[0]
    assert batch.stats["num_lost_batches"] == 1
    source._failure = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        source.collect(2)


def test_a_batch_of_one_step_off_is_sampled_again():
    stream = PromptQueue(CountingStream())
    stream.take(9)
    source, warnings = Continuous(make_collector(VersionedEngine(lambda index: MIXED), stream), 2, 9), []
    source._warn = warnings.append
    held = HeldBatch(3, NoBatch({}, "nothing"), [], [], {"num_taken": 4}, {"keep_rate": 0.5})
    source.resume({"keep_rate": 0.25}, held)
    assert indices(source.collect(3))[::2] == [4, 5, 6, 7] and len(warnings) == 1


def slow_at_first(samples):
    """Take longer for the first groups than for those behind them."""
    time.sleep(0.2 if any(sample.response_ids[0] % 4 == 0 for sample in samples) else 0)
    return [FixedOutcome(float(sum(sample.response_ids) % 2)) for sample in samples]


def is_sampled_by_its_versions(rollout, models):
    """Return whether each token's log-prob is that of the weights of its version."""
    spans = rollout.version_spans or ((rollout.policy_version, 0, len(rollout.response_ids)),)
    assert [0, *(end for _, _, end in spans)] == [
        *(start for _, start, _ in spans),
        len(rollout.response_ids),
    ]
    ids = rollout.prompt.token_ids, rollout.response_ids
    with torch.no_grad():
        return all(
            models[version % 2].logprobs(*ids)[start:end].tolist()
            == pytest.approx(rollout.rollout_logprobs[start:end], abs=1e-4)
            for version, start, end in spans
        )


def versions_of(rollout):
    return {rollout.policy_version} | {version for version, _, _ in rollout.version_spans}


@pytest.mark.slow
@pytest.mark.parametrize("partial", ["wait", "continue"])
def test_real_servers_sample_over_pushes_and_deaths(live_engine, live_models, monkeypatch, partial):
    """Push one of two models in turn as the versions of a run, in which a server dies amid the third step."""
    monkeypatch.setattr(live_engine, "_continues_responses", partial == "continue")
    num_steps, stream = 6, PromptQueue(CountingStream())
    collector = Collector(
        live_engine,
        stream,
        RolloutVerifier(slow_at_first, WordTokenizer()),
        SamplingParams(100),
        FilterConfig(enabled=False),
        BatchSize(4, 4),
        allow_mixed_versions=partial == "continue",
    )
    warnings = []
    source, batches, evaluated = Continuous(collector, 2, num_steps, warnings.append), [], []
    replayed, taken = live_engine.stats.num_replayed, sum(live_engine.fleet.balancer.requests_taken)
    for step in range(num_steps):
        push(live_engine, live_models[step % 2], version=step)
        if step == 4:
            evaluated = live_engine.generate(CountingStream().next(2), SamplingParams(8), 1, 1)
        batches.append(source.collect(step))
        source.collect_ahead(step)
        if step == num_steps - 1:
            break
        # The trainer trains until all groups have begun that are used within two steps.
        while sum(live_engine.fleet.balancer.requests_taken) - taken < 16 * min(step + 3, num_steps):
            time.sleep(0.001)
        if step == 2:
            os.kill(live_engine.servers[0].pid, signal.SIGKILL)
        source.finish()
    assert source._groups is None and live_engine.stats.num_replayed > replayed and not warnings
    rollouts = [rollout for batch in batches for rollout in batch.rollouts]
    assert [rollout.prompt.index for rollout in rollouts] == [index for index in range(24) for _ in range(4)]
    assert stream.state_dict() == {"num_taken": 24}
    assert all(is_sampled_by_its_versions(rollout, live_models) for rollout in rollouts + evaluated)
    assert {rollout.policy_version for rollout in evaluated} == {4}
    ages = [step - min(versions_of(row)) for step, batch in enumerate(batches) for row in batch.rollouts]
    assert min(ages) == 0 and 1 <= max(ages) <= 2
    mixed = [row for row in rollouts if row.version_spans]
    assert bool(mixed) is (partial == "continue")
    assert all(server.num_requests == 0 for server in live_engine.fleet.balancer._loads)
    assert all(live_engine.fleet.balancer.is_up(server) for server in range(2))


CONFIG = """
run_dir = "run"
[model]
path = "task/model"
[data]
train = ["task/train.jsonl"]
evaluation = ["task/heldout.jsonl"]
[reward]
verifier = "exact_match"
[rollout]
engine = "sglang"
max_staleness = 2
partial = "continue"
group_size = 2
max_prompt_tokens = 20
max_response_tokens = 40
[rollout_log]
groups_per_step = "all"
[filter]
enabled = false
[trainer]
num_steps = 6
prompts_per_step = 8
eval_every = 2
[checkpoint]
save_every = 1
export_hf = false
[evaluation]
max_prompts = 8
"""


@pytest.fixture
def attached(tmp_path):
    """Return the arguments of a run on a server that outlives it."""
    (tmp_path / "run.toml").write_text(CONFIG)
    write_all(tmp_path / "task", seed=0)
    model = tmp_path / "task/model"
    engine = SGLangEngine(
        model, device="cpu", dtype="fp32", seed=0, settings=sglang_settings(), run_dir=tmp_path
    )
    try:
        engine.load_from_hf(model)
        settings = attachment(engine, tmp_path)
        urls = f"rollout.sglang.urls={json.dumps(settings['urls'])}"
        yield ["train", "run.toml", urls, f"rollout.sglang.api_key_file={settings['api_key_file']}"]
    finally:
        engine.close()


@pytest.mark.slow
def test_a_run_that_is_stopped_and_killed_trains_on_every_prompt_once(attached, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    for step, number in ((2, signal.SIGTERM), (4, signal.SIGKILL)):
        with Started(tmp_path, *attached) as started:
            started.wait_until(lambda step=step: is_logged(run_dir, step))
            started.process.send_signal(number)
            assert started.all_gone(), started.output()
            expected = EXIT_CODE if number == signal.SIGTERM else -number
            assert started.process.returncode == expected, started.output()
    finished = finish(tmp_path, *attached)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    steps = records(run_dir)[1:]
    assert len(steps) == 6 and all(step["rollout/num_lost_batches"] == 0 for step in steps)
    assert 1 <= max(step["rollout/staleness_max"] for step in steps) <= 2
    monkeypatch.chdir(tmp_path)
    wanted = prompt_stream(load_config(Path("run.toml")), Progress(enabled=False), None).ahead(0, 48)
    for step, rows in rollouts(run_dir).items():
        batch = wanted[8 * (step - 1) : 8 * step]
        assert [row["prompt_index"] for row in rows] == [prompt.index for prompt in batch for _ in range(2)]
        for row in rows:
            versions = row["versions"] or [row["policy_version"]]
            assert step - 3 <= versions[0] and versions == sorted(set(versions)) and versions[-1] < step
            assert row["version_ends"] is None or row["version_ends"][-1] == len(row["response_token_ids"])
