"""The embedded engine of a configuration samples from the policy that its weight sync was made for."""

from megatron_prime.config.loading import load_config
from megatron_prime.engines.local.build import build_local_engine
from megatron_prime.rollout.engine import NO_WEIGHTS
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import tensor_checksum
from tests.support.one_rank import OneRank
from tests.support.tiny_models import save_tiny_model, tiny_model


def test_the_sync_of_a_built_engine_brings_the_policys_weights(tmp_path, minimal_toml):
    save_tiny_model("qwen2", tmp_path / "model")
    config = load_config(minimal_toml, [f"model.path={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}"])
    policy = OneRank(tmp_path / "model")
    parts = build_local_engine(config, policy.topology, Ranks())
    assert parts.engine.policy_version == NO_WEIGHTS and parts.startup_note == ""
    sync = parts.make_weight_sync(policy)
    state = tiny_model("qwen2", seed=4).state_dict()
    policy.fill(state)
    sync.push(3)
    assert parts.engine.policy_version == 3
    assert parts.engine.weights.checksums() == {name: tensor_checksum(t) for name, t in state.items()}
    sync.resync(0)
    sync.close()
    assert parts.engine.policy_version == 3, "the tensors are the engine's"
    parts.engine.close()
