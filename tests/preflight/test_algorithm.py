"""Names and requirements of algorithm objects are checked by `check` and `train` alike, before a process starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prime.algorithm.registry import ESTIMATORS, IMPORTANCE_RATIOS, POLICY_LOSSES, PRM_OBJECTIVES
from megatron_prime.config.loading import ConfigError
from megatron_prime.config.run import PrimeConfig
from megatron_prime.preflight.algorithm import (
    algorithm_faults,
    critic_command_faults,
    scored_tokens_faults,
)
from megatron_prime.preflight.checks import check_run
from tests.support import deadlines

MODULE = """
from megatron_prime.algorithm.estimators import rloo
from megatron_prime.algorithm.registry import Requirements

class Mine(rloo.Estimator):
    requires = Requirements(prm=True)

class Unfinished:
    requires = Requirements()

class Untold:
    requires, targets, losses_B = Requirements(), None, None

class Stepwise(Untold):
    requires, prefix_logits_BL = Requirements(units=True), None

a_number = 3
"""


GAME = {"name": "guess_number"}
CRITIC = {"estimator": "gae", "process_credit": "td", "process_normalization": "none"}
VALUE = {"loss": "value"}
GAE = {"estimator": "prm_gae", "process_credit": "td", "process_normalization": "none"}


@pytest.fixture(autouse=True)
def my_module(tmp_path, monkeypatch):
    (tmp_path / "my_estimators.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_estimators", None)


def build(**sections) -> PrimeConfig:
    return PrimeConfig.model_validate(
        {"run_dir": "runs/a", "model": {"path": "m"}, "trainer": {"num_steps": 1}} | sections
    )


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        (
            {"advantage": {"estimator": "vtrace"}},
            f"advantage.estimator = 'vtrace': known names are {', '.join(ESTIMATORS.names())}; "
            "a class of your own is package.module:Class",
        ),
        ({"advantage": {"estimator": "rlo"}}, "; did you mean 'rloo'?"),
        ({"prm": {"loss": "mse"}}, f"prm.loss = 'mse': known names are {', '.join(PRM_OBJECTIVES.names())}"),
        (
            {"policy": {"loss": "ppo"}},
            f"policy.loss = 'ppo': known names are {', '.join(POLICY_LOSSES.names())}",
        ),
        (
            {"policy": {"correction": "tokens"}},
            f"policy.correction = 'tokens': known names are {', '.join(IMPORTANCE_RATIOS.names())}",
        ),
        (
            {"rollout": {"top_p": 0.9}},
            "rollout.top_p = 0.9: engines and trainer compute the probabilities",
        ),
        ({"rollout": {"group_size": 1}}, "advantage.estimator = 'rloo' compares the responses of a group"),
        (
            {"rollout": {"group_size": 1}, "advantage": {"estimator": "grpo"}},
            "advantage.estimator = 'grpo' compares the responses of a group",
        ),
        (
            {
                "rollout": {"group_size": 1},
                "advantage": {"estimator": "reinforce"},
                "prm": {"loss": "dpo"},
            },
            "prm.loss = 'dpo' compares the responses of a group",
        ),
        (
            {"prm": {"loss": "dpo_units"}},
            "prm.loss = 'dpo_units' compares steps or turns: set prm.granularity",
        ),
        (
            {"prm": {"loss": "dpo_units", "granularity": "whole"}, "environment": GAME},
            "prm.loss = 'dpo_units' compares steps or turns: set prm.granularity",
        ),
        (
            {
                "rollout": {"group_size": 1},
                "advantage": {"estimator": "reinforce"},
                "prm": {"loss": "dpo_units", "granularity": "step"},
            },
            "prm.loss = 'dpo_units' compares the responses of a group",
        ),
        (
            {"prm": {"loss": "my_estimators:Untold"}},
            "prm.loss = 'my_estimators:Untold' must name a class with requires, targets, losses_B, prefix_logits_BL; "
            "missing: prefix_logits_BL",
        ),
        (
            {"prm": {"loss": "my_estimators:Stepwise"}},
            "prm.loss = 'my_estimators:Stepwise' compares steps or turns",
        ),
        (
            {"prm": {"enabled": False}, "advantage": {"estimator": "prm_value"}},
            "advantage.estimator = 'prm_value' needs the PRM: set prm.enabled = true",
        ),
        (
            {"advantage": {"estimator": "prm_value", "gamma_process": 0.9}},
            "advantage.estimator = 'prm_value' needs advantage.gamma_process = 1, not 0.9",
        ),
        (
            {"prm": {"enabled": False}, "advantage": {"estimator": "my_estimators:Mine"}},
            "advantage.estimator = 'my_estimators:Mine' needs the PRM",
        ),
        ({"advantage": {"estimator": "no_such:Mine"}}, "No module named 'no_such'; install the module"),
        ({"advantage": {"estimator": "my_estimators:Other"}}, "has no attribute 'Other'"),
        (
            {"advantage": {"estimator": "my_estimators:Unfinished"}},
            "missing: outcome_advantages_B, process_advantages_BT",
        ),
        (
            {"advantage": {"estimator": "prm_value", "process_credit": "hindsight"}},
            "advantage.estimator = 'prm_value' needs advantage.process_credit = 'own'",
        ),
        (
            {"advantage": {"process_credit": "hindsight"}, "prm": {"granularity": "whole"}},
            "advantage.process_credit = 'hindsight' credits a unit with what follows it",
        ),
        (
            {"advantage": {"process_credit": "min"}, "prm": {"granularity": "whole"}},
            "advantage.process_credit = 'min' compares the rewards of a response",
        ),
        (
            {"advantage": {"process_credit": "td"}, "prm": {"reward_scale": "raw"}},
            "advantage.process_credit = 'td' takes differences of probabilities",
        ),
        (
            {"advantage": {"process_credit": "td"}, "prm": {"source": "policy"}},
            "nothing is trained to be one: set prm.source = 'model'",
        ),
        (
            {"advantage": {"estimator": "prm_gae", "process_normalization": "none"}},
            "advantage.estimator = 'prm_gae' needs advantage.process_credit = 'td'",
        ),
        (
            {"advantage": GAE | {"gamma_process": 0.9}},
            "has one lambda: set advantage.gamma_outcome = 1.0 and gamma_process = 0.9 alike",
        ),
        (
            {"advantage": GAE | {"process_normalization": "batch_max"}},
            "advantage.process_normalization = 'none'",
        ),
        ({"advantage": GAE | {"whitening": "per_source"}}, "set advantage.whitening to 'joint' or 'none'"),
        (
            {"advantage": {"estimator": "spro"}, "prm": {"granularity": "step"}},
            "advantage.estimator = 'spro' compares tokens",
        ),
        (
            {"advantage": {"process_credit": "observation"}},
            "but environment.name = 'single_turn' never replies",
        ),
        (
            {
                "advantage": {"process_credit": "observation"},
                "environment": GAME,
                "prm": {"scored_tokens": "policy"},
            },
            "advantage.process_credit = 'observation' rewards the replies of an environment: set prm.scored_tokens",
        ),
        ({"prm": {"granularity": "turn"}}, "prm.granularity = 'turn': with environment.name = 'single_turn'"),
        (
            {"advantage": {"estimator": "istar"}, "environment": GAME},
            "advantage.estimator = 'istar' normalizes the rewards of turns: set prm.granularity = 'turn'",
        ),
        (
            {"advantage": CRITIC},
            "advantage.estimator = 'gae' needs a critic: set prm.loss = 'value', not 'ce'",
        ),
        (
            {"advantage": GAE, "prm": VALUE},
            "whose values are baselines: set advantage.estimator = 'gae', not 'prm_gae'",
        ),
        (
            {"advantage": CRITIC | {"process_trust": "pair_accuracy"}, "prm": VALUE},
            "could not tell a good one",
        ),
        (
            {"advantage": CRITIC, "prm": VALUE | {"scored_tokens": "environment"}, "environment": GAME},
            "needs a value before every token that the policy writes",
        ),
        (
            {"advantage": CRITIC, "prm": VALUE | {"probe": Path("p.json")}},
            "measures log-ratios: leave it out",
        ),
        ({"policy": {"loss": "my_estimators:a_number"}}, "must name a class with token_losses_BT"),
    ],
)
def test_what_cannot_train_is_refused(sections, fault):
    (line,) = algorithm_faults(build(**sections))
    assert fault in line


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"advantage": {"estimator": "my_estimators:Mine"}},
        {"rollout": {"group_size": 1}, "advantage": {"estimator": "reinforce"}},
        # Without a PRM nobody reads its loss.
        {"prm": {"enabled": False, "loss": "mse"}},
        {"advantage": {"gamma_process": 0.9}},
        {"advantage": {"estimator": "istar"}, "environment": GAME, "prm": {"granularity": "turn"}},
        {"advantage": {"process_credit": "hindsight", "gamma_process": 0.0}, "prm": {"granularity": "step"}},
        {"prm": {"enabled": False, "granularity": "turn"}},
        {"prm": {"loss": "dpo_units", "granularity": "step"}},
        {"prm": {"loss": "dpo_units", "granularity": "turn"}, "environment": GAME},
        {
            "rollout": {"group_size": 1},
            "advantage": {"estimator": "reinforce"},
            "prm": {"loss": "ce_intercept"},
        },
        {"advantage": GAE | {"gamma_process": 0.9, "gamma_outcome": 0.9}},
        {"advantage": {"estimator": "spro"}, "prm": {"source": "policy"}},
        {"advantage": CRITIC, "prm": VALUE, "rollout": {"group_size": 1}},
    ],
)
def test_what_can_train_passes(sections):
    assert list(algorithm_faults(build(**sections))) == []


def test_train_is_checked_and_other_commands_are_not():
    config = build(advantage={"estimator": "vtrace"})
    with pytest.raises(ConfigError) as caught:
        check_run(config, 1, "train")
    assert any("'vtrace'" in fault for fault in caught.value.faults)
    with pytest.raises(ConfigError) as caught:
        check_run(config, 1, "sft")
    assert not any("'vtrace'" in fault for fault in caught.value.faults)


def test_the_default_configuration_is_checked_without_torch():
    program = (
        "import sys\n"
        "from megatron_prime.config.run import PrimeConfig\n"
        "from megatron_prime.preflight.algorithm import algorithm_faults\n"
        "sections = {'run_dir': 'a', 'model': {'path': 'm'}, 'trainer': {'num_steps': 1}}\n"
        "assert not list(algorithm_faults(PrimeConfig.model_validate(sections)))\n"
        "wrong = {**sections, 'advantage': {'estimator': 'vtrace'}}\n"
        "assert len(list(algorithm_faults(PrimeConfig.model_validate(wrong)))) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=deadlines.seconds(60))


@pytest.mark.parametrize(
    ("command", "sections", "fault"),
    [
        ("train", {}, "environment.name = 'single_turn' never replies: name an environment"),
        (
            "train",
            {"environment": GAME, "prm": {"probe": Path("probe.json")}},
            "solutions of prm.probe have none",
        ),
        ("train", {"environment": GAME}, None),
        ("train", {"prm": {"enabled": False}}, None),
        ("train_prm", {}, None),
        ("evaluate_prm", {"prm_evaluation": {"pairs": [Path("pairs.jsonl")]}}, "and pairs have none"),
        ("evaluate_prm", {"prm_evaluation": {"responses": [Path("r.parquet")]}}, None),
        ("serve_prm", {}, "requests have none: take 'all' or 'policy'"),
    ],
)
def test_replies_cannot_be_scored_where_there_are_none(command, sections, fault):
    of_prm = {"scored_tokens": "environment"} | sections.get("prm", {})
    faults = list(scored_tokens_faults(build(**sections | {"prm": of_prm}), command))
    assert len(faults) == (fault is not None) and all(fault in each for each in faults)
    assert not list(scored_tokens_faults(build(**sections), command))


def test_a_critic_is_no_prm_for_other_commands():
    for command, name in (
        ("train_prm", "train-prm"),
        ("evaluate_prm", "eval-prm"),
        ("serve_prm", "serve-prm"),
    ):
        (fault,) = critic_command_faults(build(prm=VALUE), command)
        assert f"{name} works with log-ratios" in fault
        assert not list(critic_command_faults(build(), command))
    assert not list(critic_command_faults(build(prm=VALUE), "train"))
