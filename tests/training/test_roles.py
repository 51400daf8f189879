"""The roles of a run follow its configuration."""

from pathlib import Path

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.hf.shape import read_shape
from megatron_prime.training.roles import role_spec, scoring_settings
from tests.support.tiny_models import save_tiny_model


@pytest.fixture
def config() -> PrimeConfig:
    return PrimeConfig.model_validate(
        {
            "run_dir": "runs/a",
            "model": {"path": "m"},
            "trainer": {"num_steps": 1, "max_tokens_per_microbatch": 20000, "logprob_chunk_tokens": 7},
            "memory": {"offload_reference": True},
        }
    )


def test_models_score_with_the_settings_of_the_trainer_table(config):
    settings = scoring_settings(config, temperature=0.5)
    assert (settings.max_tokens_per_microbatch, settings.chunk_tokens) == (20000, 7)
    assert (settings.temperature, settings.kernel) == (0.5, "auto")
    assert scoring_settings(config).temperature == 1.0


def test_a_spec_carries_the_memory_and_options_of_the_run(config):
    spec = role_spec(config, "reference", Path("r"))
    assert (spec.name, spec.hf_path, spec.scoring) == ("reference", Path("r"), scoring_settings(config))
    assert spec.memory.offloaded_parts("reference")
    assert spec.options == config.model_options


def test_the_scores_of_a_critic_are_read_from_two_tokens_and_need_no_reference(config, tmp_path):
    save_tiny_model("shallow qwen2", tmp_path)
    critic = config.model_copy(update={"prm": PRMConfig(loss="value")})
    vocab_size = read_shape(tmp_path).vocab_size
    assert role_spec(critic, "prm", tmp_path).scoring.value_tokens == (vocab_size - 1, vocab_size - 2)
    assert role_spec(critic, "policy", tmp_path).scoring.value_tokens is None
    assert role_spec(config, "prm", tmp_path).scoring.value_tokens is None
    assert config.has_reference_model and not critic.has_reference_model
    assert set(critic.model_paths("train")) == {"policy", "prm"}
