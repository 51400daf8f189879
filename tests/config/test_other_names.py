"""Every name of another system leads to keys that exist."""

import pytest

from megatron_prime.config.faults import dotted_keys
from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.other_names import NAMES, NOT_NEEDED, our_names
from megatron_prime.config.run import PrimeConfig


def test_all_translations_are_keys_of_the_configuration():
    known = set(dotted_keys(PrimeConfig))
    assert not {ours for keys in NAMES.values() for ours in keys} - known
    assert not set(NAMES) & known
    assert not set(NAMES) & set(NOT_NEEDED)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("actor.lr=1", "policy.lr"),
        ("total_epochs=1", "trainer.num_steps"),
        ("trainer.total_epochs=1", "trainer.num_steps"),
        ("trainer.total_training_steps=1", "trainer.num_steps"),
        ("actor_rollout_ref.actor.optim.lr=1", "policy.lr"),
        ("actor_rollout_ref.rollout.n=1", "rollout.group_size"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=1", "policy.num_minibatches"),
        ("actor_rollout_ref.model.path=x", "model.path"),
        ("actor_rollout_ref.rollout.gpu_memory_utilization=1", "rollout.sglang.mem_fraction"),
        ("reward_model.model.optim.lr=1", "prm.lr"),
        ("train_batch_size=1", "trainer.prompts_per_step"),
        ("data.train_batch_size=1", "trainer.prompts_per_step"),
        ("data.train_files=x", "data.train"),
        ("data.max_response_length=1", "rollout.max_response_tokens"),
        ("algorithm.adv_estimator=x", "advantage.estimator"),
        ("grpo.num_generations_per_prompt=1", "rollout.group_size"),
        ("policy.max_grad_norm=1", "policy.grad_clip"),
        ("policy.learning_rate=1", "policy.lr"),
        ("learning_rate=1", "policy.lr or prm.lr"),
        ("sft.learning_rate=1", "sft.lr"),
        ("sft.max_grad_norm=1", "sft.grad_clip"),
        ("critic.optim.lr=1", "prm.lr"),
        ("reward_model.mini_batch_size=1", "prm.num_minibatches"),
        ("policy.optimizer.kwargs.lr=1", "policy.lr"),
        ("policy.kl=1", "policy.kl_coef"),
        ("kl_loss_coef=1", "policy.kl_coef"),
        ("max_response_length=1", "rollout.max_response_tokens"),
        ("trainer.lr=1", "policy.lr or prm.lr"),
        ("trainer.batch_size=1", "trainer.prompts_per_step"),
        ("data.truncation=left", "rollout.max_prompt_tokens"),
        ("parallel.tp=1", "parallel.tensor"),
        ("rollout.tp=1", "rollout.sglang.tensor"),
        ("evaluation.n=1", "evaluation.samples_per_prompt"),
        ("num_generations=1", "rollout.group_size"),
        ("n_samples_per_prompt=1", "rollout.group_size"),
        ("output_dir=x", "run_dir"),
        ("trainer.save_freq=1", "checkpoint.save_every"),
        ("trainer.n_gpus_per_node=1", "parallel.num_processes"),
    ],
)
def test_an_override_of_another_system_is_answered_with_our_key(override, key, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('run_dir = "run"\n[model]\npath = "model"\n[trainer]\nnum_steps = 1\n')
    with pytest.raises(ConfigError) as refused:
        load_config(file, [override])
    name = override.partition("=")[0]
    assert refused.value.faults == (f"unknown key {name}; did you mean {key}?",)


@pytest.mark.parametrize("override", ["trainer.logger=['wandb']", "use_wandb=true", "trainer.project_name=x"])
def test_a_key_without_a_counterpart_is_answered_with_the_reason(override, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('run_dir = "run"\n[model]\npath = "model"\n[trainer]\nnum_steps = 1\n')
    with pytest.raises(ConfigError) as refused:
        load_config(file, [override])
    (fault,) = refused.value.faults
    assert fault.endswith(": metrics are always written to run_dir, for TensorBoard too")


@pytest.mark.parametrize("override", ["+policy.lr=1", "++policy.lr=1", "~policy.lr=1"])
def test_the_signs_of_hydra_are_answered_with_the_plain_key(override, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('run_dir = "run"\n[model]\npath = "model"\n[trainer]\nnum_steps = 1\n')
    with pytest.raises(ConfigError) as refused:
        load_config(file, [override])
    assert refused.value.faults == (f"override {override!r}: a key is written without + or ~: policy.lr=1",)


def test_the_longest_known_end_of_a_name_decides():
    assert our_names("reward_model.optim.lr") == ("prm.lr",)
    assert our_names("nothing.known") == ()
