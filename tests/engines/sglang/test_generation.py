"""A group never mixes policy versions, even when weights are updated during a rollout."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest
import torch

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.engines.requests import StreamKey
from megatron_prime.engines.sglang.client import ServerUnreachableError
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.generation import Generation, GenerationSettings
from megatron_prime.engines.sglang.sampling import seed_of
from megatron_prime.rollout.engine import EngineError
from megatron_prime.rollout.episode import EpisodeError
from megatron_prime.types import FinishReason, SamplingParams, Turn
from tests.support.episodes import ScriptedEnvironments, echo, told
from tests.support.sglang_live import dialogues, live_prompts


async def sampled(generation):
    """Wait for all groups, end the generation, and return the rollouts in order."""
    try:
        groups = dict(await generation.finished(None))
    finally:
        await generation.close()
    return [rollout for number in sorted(groups) for rollout in groups[number]]


def generate_over_an_update(engine, new_model, **changes):
    """Sample from one server, which gets new weights as version 2 amid it. Returns rollouts and the generation."""
    settings = GenerationSettings(
        dialogues(SamplingParams(100)), group_size=4, seed=0, stream_key=0, **changes
    )

    async def no_resync(server):
        raise EngineError(f"server {server} should not need one")

    async def scenario():
        fleet = Fleet(engine.servers[:1], engine.settings, no_resync, engine.fleet._secret)
        fleet.names = engine.fleet.names
        [client] = await fleet.clients()
        fleet.policy_version = 1
        generation = Generation(fleet, settings, "update")
        generation.submit(live_prompts(6))
        running = asyncio.ensure_future(sampled(generation))
        await asyncio.sleep(0.3)
        await client.pause_generation("retract")
        name = fleet.names.new(0, 2)
        await client.update_weights_from_disk(str(new_model.path), name)
        fleet.names.prove(name)
        await client.continue_generation()
        rollouts = await asyncio.wait_for(running, 60)
        await fleet.aclose()
        return rollouts, generation

    return asyncio.run(scenario())


def test_groups_that_straddle_an_update_are_sampled_again(live_engine, live_models):
    rollouts, generation = generate_over_an_update(live_engine, live_models[1])
    assert generation.num_resampled_groups > 0
    assert all(rollout.version_spans == () for rollout in rollouts)
    for first in range(0, 24, 4):
        assert len({rollout.policy_version for rollout in rollouts[first : first + 4]}) == 1
    assert 2 in {rollout.policy_version for rollout in rollouts}


def test_mixed_groups_can_be_allowed_and_record_the_version_of_each_token(live_engine, live_models):
    rollouts, generation = generate_over_an_update(live_engine, live_models[1], allow_mixed_versions=True)
    assert generation.num_resampled_groups == 0
    straddling = [rollout for rollout in rollouts if rollout.version_spans]
    assert straddling
    rollout = straddling[0]
    (_, _, switch), (_, _, end) = rollout.version_spans
    assert rollout.version_spans == ((1, 0, switch), (2, switch, end)) and end == len(rollout.response_ids)
    for model, part in ((live_models[0], slice(0, switch)), (live_models[1], slice(switch, end))):
        expected = model.logprobs(rollout.prompt.token_ids, rollout.response_ids)[part].tolist()
        assert rollout.rollout_logprobs[part] == pytest.approx(expected, abs=1e-4)


class Stub:
    """A client whose server answers the n-th request by `answer(n, body)`: tokens, and why the turn ended."""

    def __init__(self, answer=lambda number, body: ([1, STOP], "stop"), versions=lambda number: 0):
        self.answer, self.versions = answer, versions
        self.url = "http://test"
        self.bodies = []

    async def generate(self, body):
        self.bodies.append(body)
        tokens, reason = self.answer(len(self.bodies), body)
        meta = {"finish_reason": {"type": reason}, "weight_version": str(self.versions(len(self.bodies)))}
        pairs = [[-1.0, token, None] for token in tokens]
        return {"output_ids": tokens, "meta_info": meta | {"output_token_logprobs": pairs}}


STOP = 9
TURNS = SamplingParams(40, max_turns=6, max_turn_tokens=8, stop_token_ids=(STOP,))


def generate_with(clients, params=TURNS, environments=None, group_size=1, **changes):
    """Sample one group from stubs. Returns the rollouts and the fleet."""

    async def scenario():
        fleet = Fleet([], SGLangConfig(urls=tuple(f"http://{place}" for place in range(len(clients)))), never)
        fleet._clients = dict(enumerate(clients))
        fleet.policy_version = 0
        fleet.names.version_of = lambda server, stated: int(stated)
        fleet.report = report_to(fleet)
        settings = GenerationSettings(
            dialogues(params, environments), group_size, seed=3, stream_key=5, **changes
        )
        generation = Generation(fleet, settings, "test")
        generation.submit(live_prompts(1))
        return await sampled(generation), fleet

    return asyncio.run(scenario())


async def never(server):
    raise AssertionError(f"server {server} is resynced")


def report_to(fleet):
    """A fleet's method without the recovery."""

    def report(server, *, hangs=False):
        fleet.balancer.set_up(server, hangs)

    return report


@pytest.mark.parametrize(
    ("client", "num_tokens", "message"),
    [
        (Stub(versions=lambda number: number), 2, "allow_mixed_versions"),
        (Stub(lambda number, body: ([1], "length")), 2, "cut a response at 1 of 2 tokens"),
        (Stub(lambda number, body: ([1] * 3, "length")), 2, "sampled 3 tokens where 2 were asked for"),
        # The second turn has 8 tokens, and the environment's reply has two.
        (Stub(lambda number, body: ([1] * (5 - number), ["stop", "length"][number // 2])), 99, "3 of 8 t"),
    ],
)
def test_errors_that_repetitions_cannot_fix_are_raised(client, num_tokens, message):
    environments = ScriptedEnvironments(echo(3)) if num_tokens == 99 else None
    params = replace(TURNS, max_response_tokens=min(num_tokens, 40))
    with pytest.raises(EngineError, match=message):
        generate_with([client], params, environments, group_size=2 - bool(environments))
    assert environments is None or not environments.live


def test_each_turn_continues_from_the_last_with_what_is_left_of_the_budget():
    client = Stub()
    environments = ScriptedEnvironments(echo(9), prompt_of=told)
    params = replace(TURNS, max_response_tokens=11)
    [rollout], fleet = generate_with([client], params, environments, deterministic=True)
    assert [body["input_ids"] for body in client.bodies] == [
        [0, 5, 6],
        [0, 5, 6, 1, STOP, 10, 2],
        [0, 5, 6, 1, STOP, 10, 2, 1, STOP, 10, 2],
    ]
    assert [body["sampling_params"]["max_new_tokens"] for body in client.bodies] == [8, 7, 3]
    assert len({body["rid"] for body in client.bodies}) == 3
    # SGLang mixes the position into the seed, so that the turns of a response share it.
    [seed] = {body["sampling_params"]["sampling_seed"] for body in client.bodies}
    assert seed == seed_of(StreamKey(3, 5, 0, 0))
    assert rollout.turns == (Turn(2, 4, 0.25), Turn(6, 8, 0.25), Turn(10, 10, 0.25))
    assert (rollout.finish_reason, rollout.version_spans) == (FinishReason.LENGTH, ())
    assert not environments.live and fleet.balancer._loads[0].num_requests == 0


def test_a_failed_environment_costs_an_attempt_with_another_seed():
    def script(episode):
        if episode is episode.owner.episodes[0] and len(episode.seen) == 2:
            raise EpisodeError("it hangs")
        return echo(3)(episode)

    client, environments = Stub(), ScriptedEnvironments(script)
    [rollout], _ = generate_with([client], environments=environments, deterministic=True)
    seeds = [body["sampling_params"]["sampling_seed"] for body in client.bodies]
    first, second = (seed_of(key) for key in (StreamKey(3, 5, 0, 0), StreamKey(3, 5, 0, 1 << 32)))
    assert seeds == [first] * 2 + [second] * 3
    assert (rollout.num_failed_episodes, len(rollout.turns)) == (1, 3)
    assert not environments.live


def test_a_group_without_any_environment_is_given_up_alone():
    environments = ScriptedEnvironments(echo(1), open_fault=lambda number: True)
    rollouts, _ = generate_with([Stub()], environments=environments, group_size=2)
    assert {rollout.finish_reason for rollout in rollouts} == {FinishReason.ABORT}
    assert {rollout.policy_version for rollout in rollouts} == {0}


@pytest.mark.parametrize("fault", ["no answer", "old weights", "no token"])
@pytest.mark.parametrize("at_turn", [1, 2, 3])
def test_another_server_continues_from_the_last_complete_turn(fault, at_turn):
    def dies(number, body):
        if number == at_turn and fault == "no answer":
            raise ServerUnreachableError("it died")
        return ([], "abort") if number == at_turn and fault == "no token" else ([1, STOP], "stop")

    old = fault == "old weights"
    first = Stub(dies, versions=lambda number: -1 if old and number == at_turn else 0)
    second, environments = Stub(), ScriptedEnvironments(echo(3))
    [rollout], _ = generate_with([first, second], environments=environments)
    assert len(first.bodies) == at_turn and len(second.bodies) == 4 - at_turn
    replayed, again = first.bodies[-1], second.bodies[0]
    assert again["input_ids"] == replayed["input_ids"] and again["rid"] != replayed["rid"]
    [whole], _ = generate_with([Stub()], environments=ScriptedEnvironments(echo(3)))
    assert rollout == whole
    [episode] = environments.episodes
    assert len(episode.seen) == 3, "it has seen each complete turn once"


def test_a_group_stays_on_one_server_while_environments_work():
    clients, environments = [Stub(), Stub()], ScriptedEnvironments(echo(3))
    generate_with(clients, environments=environments, group_size=4)
    assert sorted(len(client.bodies) for client in clients) == [0, 12]


def test_a_group_that_is_sampled_again_has_new_environments():
    client = Stub(versions=lambda number: int(number > 1))
    environments = ScriptedEnvironments(echo(2))
    [rollout], _ = generate_with([client], environments=environments)
    assert [len(episode.seen) for episode in environments.episodes] == [2, 2]
    assert (rollout.policy_version, rollout.version_spans) == (1, ())
    client = Stub(versions=lambda number: int(number > 1))
    [mixed], _ = generate_with(
        [client], environments=ScriptedEnvironments(echo(2)), allow_mixed_versions=True
    )
    assert (mixed.policy_version, mixed.version_spans) == (0, ((0, 0, 4), (1, 4, 6)))


def test_on_real_servers_turns_equal_those_of_the_embedded_engine(live_engine, live_models, monkeypatch):
    params = SamplingParams(60, temperature=0, max_turns=5, max_turn_tokens=20, stop_token_ids=STOPS)
    answers = []
    for client in live_engine.fleet._clients.values():
        monkeypatch.setattr(client, "generate", recorded(client.generate, answers))
    environments = [ScriptedEnvironments(echo(4, outcome=0.5), prompt_of=told) for _ in range(2)]
    prompts = live_prompts(12)
    rollouts = live_engine.generate(prompts, params, 2, 0, environments[0])
    local = LocalEngine(
        live_models[0].path, device=torch.device("cpu"), dtype=torch.float32, seed=0, max_batch_size=64
    )
    local.load_from_hf(live_models[0].path, policy_version=1)
    expected = local.generate(prompts, params, 2, 0, environments[1])
    assert sum(len(rollout.turns) == 4 for rollout in rollouts) > 4
    for rollout, other in zip(rollouts, expected, strict=True):
        assert rollout.rollout_logprobs == pytest.approx(other.rollout_logprobs, abs=1e-4)
        same = {"rollout_logprobs": other.rollout_logprobs, "outcome_reward": other.outcome_reward}
        assert replace(rollout, **same) == other
    assert not environments[0].live
    # All but the last token of the turns before are in the cache of the server, which the group does not leave.
    later = [(body, meta) for body, meta in answers if len(body["input_ids"]) > 7]
    assert len(later) > 20
    for body, meta in later:
        known = max(
            len(before["input_ids"]) + answer["completion_tokens"] - 1
            for before, answer in answers
            if before["input_ids"] == body["input_ids"][: len(before["input_ids"])]
            and len(before["input_ids"]) < len(body["input_ids"])
        )
        assert meta["cached_tokens"] >= known


STOPS = tuple(range(0, 300, 9))


def recorded(generate, answers):
    """The client's method, which also collects (body, meta_info) of each call."""

    async def recording(body):
        answer = await generate(body)
        answers.append((body, answer["meta_info"]))
        return answer

    return recording


@pytest.mark.slow
def test_a_server_killed_between_and_amid_turns_loses_no_turn(live_engine, live_models):
    params = SamplingParams(90, temperature=0, max_turns=12, stop_token_ids=STOPS)
    victim, before = live_engine.servers[0], live_engine.stats.num_replayed
    killed = []

    def script(episode):
        if not killed and sum(len(each.seen) for each in episode.owner.episodes) > 30:
            killed.append(os.kill(victim.pid, signal.SIGKILL))
        return echo(6, outcome=1.0)(episode)

    environments = ScriptedEnvironments(script)
    rollouts = live_engine.generate(live_prompts(12), params, 4, 0, environments)
    assert killed and live_engine.stats.num_replayed > before
    assert {rollout.policy_version for rollout in rollouts} == {1}
    assert len(environments.episodes) == 48 and not environments.live, "none was begun again"
    turns_seen = {tuple(ids for ids, _ in episode.seen) for episode in environments.episodes}
    for rollout in rollouts:
        starts = (0, *(turn.end for turn in rollout.turns[:-1]))
        turns = rollout.turns or (Turn(len(rollout.response_ids), 0),)
        parts = zip(starts, turns, strict=True)
        turns = tuple(tuple(rollout.response_ids[start : turn.policy_end]) for start, turn in parts)
        assert turns in turns_seen
    for rollout in rollouts[::4]:
        ids = torch.tensor([*rollout.prompt.token_ids, *rollout.response_ids])
        logits = live_models[0].hf(ids[None]).logits[0, len(rollout.prompt.token_ids) - 1 : -1]
        mask = torch.tensor(rollout.policy_mask)
        assert logits.argmax(-1)[mask].tolist() == [
            token for token, is_policy in zip(rollout.response_ids, mask, strict=True) if is_policy
        ]
