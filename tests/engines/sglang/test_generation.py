"""A group never mixes policy versions, even when weights are updated during a rollout."""

import asyncio

import pytest

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.generation import Generation, GenerationSettings
from megatron_prime.engines.sglang.versions import VersionNames
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import SamplingParams
from tests.support.sglang_live import live_prompts


def generate_over_an_update(engine, new_model, **changes):
    """Sample from one server, which gets new weights as version 2 amid it. Returns rollouts and the generation."""
    settings = GenerationSettings(SamplingParams(100), group_size=4, seed=0, stream_key=0, **changes)

    async def no_resync(server):
        raise EngineError(f"server {server} should not need one")

    async def scenario():
        fleet = Fleet(engine.servers[:1], engine.settings, no_resync, engine.fleet._secret)
        fleet.names = engine.fleet.names
        [client] = await fleet.clients()
        fleet.policy_version = 1
        generation = Generation(fleet, settings, call_index=99)
        running = asyncio.ensure_future(fleet.guarded(generation.run(live_prompts(6))))
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


class CutsShort:
    """A client whose server has no room for the response."""

    url = "http://test"

    async def generate(self, body):
        meta = {"finish_reason": {"type": "length"}, "weight_version": "default"}
        return {"output_ids": [1], "meta_info": meta | {"output_token_logprobs": [[-1.0, 1, None]]}}


class NeverTheSame:
    """A client whose answers come from ever newer weights."""

    url = "http://test"

    def __init__(self):
        self.version = 0
        self.names = VersionNames()

    async def generate(self, body):
        self.version += 1
        name = self.names.new(0, self.version)
        self.names.prove(name)
        meta = {"finish_reason": {"type": "length"}, "weight_version": name}
        return {"output_ids": [1], "meta_info": meta | {"output_token_logprobs": [[-1.0, 1, None]]}}


@pytest.mark.parametrize(
    ("client", "num_tokens", "message"),
    [(NeverTheSame(), 1, "allow_mixed_versions"), (CutsShort(), 2, "cut a response at 1 of 2 tokens")],
)
def test_errors_that_repetitions_cannot_fix_are_raised(client, num_tokens, message):
    async def scenario():
        fleet = Fleet([], SGLangConfig(urls=("http://test",)), None)
        fleet._clients[0] = client
        fleet.names = getattr(client, "names", fleet.names)
        settings = GenerationSettings(SamplingParams(num_tokens), group_size=2, seed=0, stream_key=0)
        return await Generation(fleet, settings, 0).run(live_prompts(1))

    with pytest.raises(EngineError, match=message):
        asyncio.run(scenario())
