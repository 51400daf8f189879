"""Weights by files: whole checkpoints, no leftovers, and the blocks of all ranks but the driver ignored."""

import json

import pytest
import torch

from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.engines.sglang.weights.disk import DiskWeights
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.hf.shape import ModelShape
from megatron_prime.rollout.engine import WeightSyncError
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import tensor_checksum
from megatron_prime.types import SamplingParams, WeightBlock, WeightBucket
from tests.support.sglang_live import live_prompts
from tests.support.tiny_models import tiny_model


def disk_weights(engine, model, folder):
    shape = ModelShape.from_hf_config(json.loads((model.path / "config.json").read_text()))
    return DiskWeights(
        engine._driver,
        engine.fleet,
        model_path=model.path,
        folder=folder,
        tensors=hf_tensors(shape),
        dtype=torch.float32,
    )


def load(weights, state, version):
    weights.begin(version)
    blocks = tuple(WeightBlock(name, 0, 0, tensor) for name, tensor in state.items())
    weights.load(WeightBucket(blocks, version))


def test_the_newest_checkpoint_alone_is_kept_and_serves(live_engine, live_models, tmp_path):
    weights = disk_weights(live_engine, live_models[0], tmp_path)
    for seed, version in ((5, 7), (6, 8)):
        state = tiny_model("qwen2", seed).state_dict()
        load(weights, state, version)
        weights.end(version)
        assert [path.name for path in tmp_path.iterdir()] == [f"weights-{version}"]
        assert live_engine._driver.run(live_engine.fleet.weight_versions) == [version, version]
    assert weights.checksums() == {name: tensor_checksum(tensor) for name, tensor in state.items()}
    weights.close()
    assert not list(tmp_path.iterdir())


def test_an_incomplete_sync_writes_nothing_and_keeps_the_last_for_resyncs(live_engine, live_models, tmp_path):
    weights = disk_weights(live_engine, live_models[0], tmp_path)
    state = tiny_model("qwen2", 5).state_dict()
    load(weights, state, 7)
    weights.end(7)
    live_engine.fleet.policy_version = 7
    load(weights, {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}, 8)
    with pytest.raises(WeightSyncError, match=r"lm_head\.weight"):
        weights.end(8)
    assert [path.name for path in tmp_path.iterdir()] == ["weights-7"]
    live_engine._driver.run(lambda: live_engine.fleet.client_now(0).update_weight_version("99"))
    weights.resync(0)
    assert live_engine._driver.run(live_engine.fleet.weight_versions) == [7, 7]


def test_without_a_sync_there_is_nothing_to_give_back(live_engine, live_models, tmp_path):
    weights = disk_weights(live_engine, live_models[0], tmp_path)
    assert weights.checksums() == {}
    with pytest.raises(WeightSyncError, match="no weights"):
        weights.resync(0)


def test_other_ranks_ignore_their_blocks(live_models, tmp_path):
    driver = Driver(Ranks(), lambda server: None)
    try:
        weights = DiskWeights(
            driver, None, model_path=live_models[0].path, folder=tmp_path, tensors={}, dtype=torch.float32
        )
        load(weights, {"unknown": torch.ones(2)}, 1)
        weights.close()
    finally:
        driver.close()


def test_bf16_weights_are_served_as_they_were_sent(live_engine, live_models, tmp_path):
    """The servers run in fp32: a cast anywhere else would show in the tokens."""
    weights = disk_weights(live_engine, live_models[0], tmp_path)
    rounded = tiny_model("qwen2", 3).bfloat16().float()
    load(weights, rounded.state_dict(), 2)
    weights.end(2)
    live_engine._adopt(2)
    rollouts = live_engine.generate(live_prompts(3), SamplingParams(6, temperature=0), 1, 0)
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt.token_ids + rollout.response_ids])
        expected = rounded(ids).logits[0].log_softmax(-1)[len(rollout.prompt.token_ids) - 1 : -1]
        chosen = expected.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(rollout.rollout_logprobs), chosen, atol=1e-4, rtol=0)
