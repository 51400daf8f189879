"""Weights by files: whole checkpoints, no leftovers, and only the driver collects them."""

import pytest
import torch

from megatron_prime.engines.sglang.weights.disk_sync import DiskSync
from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.resharding.transport import RankTransport
from megatron_prime.rollout.engine import NO_WEIGHTS, WeightSyncError
from megatron_prime.types import SamplingParams
from tests.engines.sglang.disk_push import disk_sync
from tests.support.one_rank import OneRank
from tests.support.sglang_live import live_prompts, rename
from tests.support.tiny_models import tiny_model


@pytest.fixture
def policy(live_models):
    return OneRank(live_models[0].path)


class LosesTheHead(RankTransport):
    """A transport that loses a tensor on the way while `is_losing` is set."""

    is_losing = False

    def deliver(self):
        for blocks in super().deliver():
            yield [block for block in blocks if not self.is_losing or block.hf_name != "lm_head.weight"]


def test_the_newest_checkpoint_alone_is_kept_and_serves(live_engine, live_models, policy, tmp_path):
    sync = disk_sync(live_engine, policy, live_models[0].path, tmp_path)
    for seed, version in ((5, 7), (6, 8)):
        state = tiny_model("qwen2", seed).state_dict()
        policy.fill(state)
        sync.push(version)
        assert [path.name for path in tmp_path.iterdir()] == [f"weights-{version}"]
        assert live_engine.driver.run(live_engine.fleet.weight_versions) == [version, version]
        assert live_engine.policy_version == version
    reader = HFCheckpointReader(tmp_path / "weights-8")
    for name, tensor in state.items():
        assert torch.equal(reader.read_slice(name, 0, 0, len(tensor)), tensor)
    sync.close()
    assert not list(tmp_path.iterdir())


def test_an_incomplete_sync_writes_nothing_and_keeps_the_last_for_resyncs(
    live_engine, live_models, policy, tmp_path, monkeypatch
):
    sync = disk_sync(live_engine, policy, live_models[0].path, tmp_path, LosesTheHead)
    policy.fill(tiny_model("qwen2", 5).state_dict())
    sync.push(7)
    with monkeypatch.context() as patch:
        patch.setattr(LosesTheHead, "is_losing", True)
        with pytest.raises(WeightSyncError, match=r"lm_head\.weight"):
            sync.push(8)
    assert live_engine.policy_version == NO_WEIGHTS
    assert [path.name for path in tmp_path.iterdir()] == ["weights-7"]
    live_engine.driver.run(lambda: rename(live_engine.fleet.client_now(0), "99"))
    sync.resync(0)
    assert live_engine.driver.run(live_engine.fleet.weight_versions) == [7, 7]
    sync.close()


def test_other_ranks_send_their_blocks_and_collect_none(live_engine, policy, tmp_path, monkeypatch):
    sync = DiskSync(
        live_engine,
        policy.transport(),
        model_path=tmp_path,
        folder=tmp_path,
        tensors={"unknown": (2,)},
        dtype=torch.float32,
    )
    tensors, error = sync._gather(1)
    assert list(tensors) == ["unknown"] and isinstance(error, ValueError)
    monkeypatch.setattr(type(live_engine.driver), "is_driver", False)
    assert sync._gather(1) == ({}, None)
    sync.close()


def test_bf16_weights_are_served_as_they_were_sent(live_engine, live_models, policy, tmp_path):
    """The servers run in fp32: a cast anywhere else would show in the tokens."""
    sync = disk_sync(live_engine, policy, live_models[0].path, tmp_path)
    rounded = tiny_model("qwen2", 3).bfloat16().float()
    policy.fill(rounded.state_dict())
    sync.push(2)
    rollouts = live_engine.generate(live_prompts(3), SamplingParams(6, temperature=0), 1, 0)
    for rollout in rollouts:
        ids = torch.tensor([(*rollout.prompt.token_ids, *rollout.response_ids)])
        expected = rounded(ids).logits[0].log_softmax(-1)[len(rollout.prompt.token_ids) - 1 : -1]
        chosen = expected.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(rollout.rollout_logprobs), chosen, atol=1e-4, rtol=0)
    sync.close()
