"""Log-probs of given tokens on real servers equal those of Hugging Face; each model answers for itself."""

import asyncio

import pytest

from megatron_prime.engines.sglang.client import ServerRefusedError, SGLangClient
from megatron_prime.engines.sglang.scoring import ModelServers, parse_logprobs, scoring_body
from megatron_prime.rollout.engine import EngineError
from tests.support.sglang_live import attachment, sglang_settings

PROMPT, RESPONSES = (1, 2, 3), [(10, 11, 12, 13), (7,), (5, 250, 9)]


def attach(settings, folder) -> ModelServers:
    models = {"prm": folder, "reference": folder}
    return ModelServers(models, settings, device="cpu", dtype="fp32", folder=folder, warn=print)


@pytest.fixture
def settings(live_engine, live_models, tmp_path):
    """Attach to the two servers, the second of which serves the other model."""
    settings = sglang_settings(**attachment(live_engine, tmp_path))

    async def load() -> None:
        key = live_engine.fleet.api_key(1, settings.urls[1])
        client = SGLangClient(settings.urls[1], api_key=key)
        await client.update_weights_from_disk(str(live_models[1].path), "other")
        await client.aclose()

    asyncio.run(load())
    return settings


def test_each_model_scores_the_response(settings, live_models, tmp_path):
    async def score() -> list[list[list[float]]]:
        servers = attach(settings, tmp_path)
        await servers.wait_until_ready()
        assert await servers.faults() == {}
        found = [
            await asyncio.gather(*(server.logprobs(PROMPT, response) for response in RESPONSES))
            for server in servers.servers.values()
        ]
        await servers.aclose()
        servers.close()
        return found

    for model, of_model in zip(live_models, asyncio.run(score()), strict=True):
        for response, logprobs in zip(RESPONSES, of_model, strict=True):
            assert logprobs == pytest.approx(model.logprobs(PROMPT, response).tolist(), abs=1e-4)


def test_a_server_that_is_away_is_named(tmp_path):
    async def look() -> dict[str, str]:
        urls = ("http://127.0.0.1:9", "http://127.0.0.1:9/x")
        servers = attach(sglang_settings(urls=urls, startup_timeout_s=0.1), tmp_path)
        with pytest.raises(
            EngineError, match=r"the server of the prm did not answer .*startup_timeout_s = 0.1 s"
        ):
            await servers.wait_until_ready()
        found = await servers.faults()
        await servers.aclose()
        return found

    assert set(asyncio.run(look())) == {"prm", "reference"}


def test_each_model_needs_an_address(tmp_path):
    with pytest.raises(ValueError, match="name one of each model, in the order prm, reference"):
        attach(sglang_settings(urls=("http://127.0.0.1:9",)), tmp_path)


def test_the_request_samples_nothing():
    body = scoring_body([1, 2], [3, 4])
    assert body["input_ids"] == [1, 2, 3, 4] and body["logprob_start_len"] == 1
    assert body["sampling_params"]["max_new_tokens"] == 0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "no log-probs"),
        ([[None, 2, None], [-1.0, 3, None]], "no log-probs"),
        ([[-1.0, 2, None], [-1.0, 4, None]], "other tokens"),
        ([[-1.0, 3, None]], "other tokens"),
        ([[-1.0, 2, None], [float("nan"), 3, None]], "not finite"),
    ],
)
def test_an_answer_that_is_none_is_refused(entries, message):
    with pytest.raises(ServerRefusedError, match=message):
        parse_logprobs({"meta_info": {"input_token_logprobs": entries}}, [2, 3])
    good = {"meta_info": {"input_token_logprobs": [[None, 1, None], [-1.0, 2, None], [-0.5, 3, None]]}}
    assert parse_logprobs(good, [2, 3]) == [-1.0, -0.5]
