"""Sizes that are possible but hardly meant are questioned; the defaults and the examples are not."""

import pytest

from megatron_prime.config import load_config
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.preflight.plausibility import RANGES, doubts
from tests.preflight.workspace import write_model
from tests.support.toy_runs import ROOT


def doubts_of(workspace, *overrides: str) -> list[str]:
    config = load_config(workspace / "run.toml", overrides)
    return list(doubts(config, BatchArithmetic.of(config, 1)))


def test_the_minimal_configuration_is_not_questioned(workspace):
    assert doubts_of(workspace) == []


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.toml")))
def test_the_examples_are_not_questioned(name):
    config = load_config(ROOT / "examples" / name)
    assert list(doubts(config, BatchArithmetic.of(config, 1))) == []


@pytest.mark.parametrize(
    ("override", "doubt"),
    [
        (
            "policy.lr=0.0",
            "policy.lr = 0: AdamW changes each weight by about this much in every update; usual are",
        ),
        ("policy.lr=1e3", "policy.lr = 1000: AdamW changes each weight by about this much"),
        ("prm.lr=0.05", "prm.lr = 0.05: AdamW changes"),
        ("policy.kl_coef=5.0", "policy.kl_coef = 5: the KL term outweighs the rewards"),
        ("policy.num_epochs=50", "policy.num_epochs = 50"),
        ("rollout.temperature=20.0", "rollout.temperature = 20: responses are all alike, or noise"),
        ("rollout.max_response_tokens=2", "almost every response would be truncated"),
        ("rollout.max_prompt_tokens=1", "almost every prompt would be left out"),
        ("trainer.num_steps=1000000", "trainer.num_steps = 1,000,000: 16,000,000 responses; usual are"),
        ("trainer.prompts_per_step=1000000", "= 4,000,000 responses"),
        (
            "checkpoint.save_every=50",
            "checkpoint.save_every = 50 exceeds trainer.num_steps = 3: only the last",
        ),
        ("trainer.eval_every=50", "trainer.eval_every = 50 exceeds trainer.num_steps = 3: only the start"),
        (
            "filter.accuracy_min=0.8",
            "filter.accuracy_min = 0.8, accuracy_max = 0.8: with rollout.group_size = 4",
        ),
        (
            "rollout.max_staleness=1",
            "rollout.max_staleness = 1 with rollout.engine = 'local': the training proc",
        ),
        ("filter.enabled=false", "filter.enabled = false: a group without a right response then follows"),
    ],
)
def test_a_size_that_is_hardly_meant_is_questioned(override, doubt, workspace):
    lines = doubts_of(workspace, override)
    assert len([line for line in lines if doubt in line]) == 1, lines


def test_a_learning_rate_is_large_for_a_large_model(workspace):
    assert doubts_of(workspace, "policy.lr=1e-3", "prm.lr=1e-3") == []
    write_model(workspace / "model", hidden_size=1024)
    policy, prm = doubts_of(workspace, "policy.lr=1e-3", "prm.lr=1e-3")
    assert policy.startswith("policy.lr = 0.001: large for a model of hidden size 1024")
    assert prm.startswith("prm.lr = 0.001: large for a model of hidden size 1024")
    assert (
        len(
            doubts_of(
                workspace, "policy.lr=1e-3", "prm.lr=1e-3", "prm.update_order=none", "reference.path=other"
            )
        )
        == 1
    )


def test_every_range_is_that_of_an_option():
    for key, low, high, _ in RANGES:
        table, name = key.split(".")
        config = load_config(ROOT / "examples" / "prime_7b.toml")
        assert low <= getattr(getattr(config, table), name) <= high, key


@pytest.mark.parametrize(
    "override",
    [
        "advantage.process_trust=pair_accuracy",
        "advantage.process_coef=0.0",
        "prm.enabled=false",
        "advantage.process_credit=hindsight",
    ],
)
def test_a_run_without_the_filter_is_not_questioned_where_process_rewards_cannot_mislead_it(
    override, workspace
):
    assert doubts_of(workspace, "filter.enabled=false", override) == []


def test_the_released_estimator_without_the_filter_is_named(workspace):
    (line,) = doubts_of(workspace, "filter.enabled=false")
    assert "both small runs of the released estimator have collapsed" in line
    (line,) = doubts_of(workspace, "filter.enabled=false", "advantage.process_baseline=token_mean")
    assert "small runs have collapsed" in line


def test_a_prm_that_knows_nothing_and_never_learns_is_questioned(workspace):
    (line,) = doubts_of(workspace, "prm.update_order=none")
    assert line.startswith("prm.update_order = 'none' with model as PRM and reference: a PRM that equals its")
    (line,) = doubts_of(workspace, "prm.update_order=none", "prm.path=other")
    assert "with other as PRM and reference" in line, "the reference of a run is the PRM that it starts from"
    for override in (
        "reference.path=other",
        "reference.mode=policy",
        "advantage.process_coef=0.0",
        "prm.enabled=false",
    ):
        assert doubts_of(workspace, "prm.update_order=none", override) == []


@pytest.mark.parametrize(
    ("overrides", "questioned"),
    [
        (["policy.clip_high=2.0"], ["clip_high"]),
        (["policy.loss=gspo"], ["clip_low", "clip_high"]),
        (["policy.loss=gspo", "policy.clip_low=3e-4", "policy.clip_high=4e-4"], []),
        (["policy.loss=cispo", "policy.clip_low=0.99", "policy.clip_high=4.0"], []),
        (["policy.loss=examples.mine:Loss", "policy.clip_high=50.0"], []),
    ],
)
def test_what_is_a_usual_clip_depends_on_the_loss(overrides, questioned, workspace):
    """A ratio of a whole response differs from 1 a thousand times less than that of a token."""
    lines = [line for line in doubts_of(workspace, *overrides) if "clip" in line]
    assert [line.split(" = ")[0] for line in lines] == [f"policy.{name}" for name in questioned]


def test_stale_batches_without_a_correction_are_questioned(workspace):
    before = doubts_of(workspace, "rollout.max_staleness=1")
    (line,) = set(doubts_of(workspace, "rollout.max_staleness=1", "policy.correction=none")) - set(before)
    assert line.startswith("policy.correction = 'none' with rollout.max_staleness = 1: nothing corrects")
    assert doubts_of(workspace, "policy.correction=none") == []
