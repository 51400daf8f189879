"""Complete training steps: zero rewards at step 0, outcome-only training, every option, independence of the layout."""

import itertools
import math
from pathlib import Path

import pytest

from megatron_prime.observability.rollout_log import COLUMNS
from tests.support import toy_worker
from tests.support.distributed_runner import run_distributed
from tests.support.toy_runs import LAYOUTS, NUM_STEPS, Toy, differences, records, rollouts

FLOATS = {column.name for column in COLUMNS if "float" in str(column.type)}
ORDERS, LOSSES = ("after", "before", "none", "reverse"), ("ce", "dpo", "bon_acc", "bon_rm")
GRANULARITIES = ("token", "step", "whole")
PRM_VARIANTS = {
    " ".join(combination): [
        f"prm.{key}={value}"
        for key, value in zip(("update_order", "loss", "granularity"), combination, strict=True)
    ]
    for combination in itertools.product(ORDERS, LOSSES, GRANULARITIES)
}
OUTCOME_ONLY = ["prm.enabled=false"]
CRITIC = [
    *("prm.loss=value", "advantage.estimator=gae", "advantage.process_credit=td"),
    *("advantage.process_normalization=none", "advantage.gamma_process=0.9", "advantage.gamma_outcome=0.9"),
]
OTHER_VARIANTS = {
    **{
        f"advantage.{key}={value}": [f"advantage.{key}={value}"]
        for key, values in {
            "estimator": ("rloo", "grpo", "reinforce", "prm_value"),
            "process_baseline": ("sequence_sum", "sequence_spread", "token_mean", "released"),
            "process_normalization": ("none", "batch_max"),
            "whitening": ("none", "joint", "per_source"),
            "gamma_process": ("0.9",),
            "gamma_outcome": ("0.9",),
        }.items()
        for value in values
    },
    **{
        f"policy.aggregation={value}": [f"policy.aggregation={value}"]
        for value in ("token", "sequence", "constant")
    },
    **{
        f"kl {estimator}": ["policy.kl_coef=0.1", f"policy.kl_estimator={estimator}"]
        for estimator in ("k1", "k2", "k3")
    },
    "kl without prm": [*OUTCOME_ONLY, "policy.kl_coef=0.1"],
    "reference.mode=policy": ["reference.mode=policy", "policy.kl_coef=0.1"],
    **{
        f"policy.correction={ratio}": [f"policy.correction={ratio}"]
        for ratio in ("token", "sequence", "geometric")
    },
    "masked tokens": [
        "policy.correction=token",
        "policy.correction_low=0.5",
        "policy.correction_outside=mask",
    ],
    "entropy_coef": ["policy.entropy_coef=0.01"],
    "dual_clip": ["policy.dual_clip=3.0"],
    "clip higher": ["policy.clip_high=0.28"],
    "reward_scale=raw": ["prm.reward_scale=raw", "prm.update_order=before"],
    "temperature": ["rollout.temperature=0.7"],
    "epochs": ["policy.num_epochs=2", "policy.lr=1e-4", "prm.num_epochs=2", "prm.num_minibatches=4"],
    "filter off": ["filter.enabled=false"],
    "bf16": ["platform.dtype=bf16"],
    "overlong mask": ["filter.overlong=mask", "rollout.max_response_tokens=9", "filter.enabled=false"],
    "overlong penalize": [
        "filter.overlong=penalize",
        "filter.overlong_buffer_tokens=6",
        "rollout.max_response_tokens=10",
    ],
    "few prompts": ["filter.max_prompts_factor=1.5"],
    "outcome only": OUTCOME_ONLY,
    "process_coef=0": ["advantage.process_coef=0.0"],
    "process warm-up": ["advantage.process_warmup_steps=1", "trainer.num_steps=2", "prm.update_order=before"],
    "lowest reward": ["advantage.process_credit=min", "prm.update_order=before"],
    "changes of the value": [
        *("advantage.process_credit=td", "prm.loss=ce_intercept", "prm.update_order=before"),
        *(
            "advantage.estimator=prm_gae",
            "advantage.process_normalization=none",
            "advantage.gamma_process=0.9",
        ),
        "advantage.gamma_outcome=0.9",
    ],
    "critic": [*CRITIC, "prm.num_minibatches=2"],
    "critic and kl": [
        *CRITIC,
        "policy.kl_coef=0.1",
        "advantage.process_warmup_steps=1",
        "trainer.num_steps=2",
    ],
    "policy as prm": ["prm.source=policy", "prm.lr=1e-6"],
    "spro": ["advantage.estimator=spro", "advantage.process_normalization=none", "prm.update_order=before"],
}


TURNS = ["filter.enabled=false", "rollout.max_response_tokens=30", "prm.update_order=before"]
"""Overrides of the runs whose environment replies once."""
TURN_VARIANTS = {
    "turns": [],
    "turns in steps": ["prm.granularity=step"],
    "turns as units": ["prm.granularity=turn", "advantage.process_baseline=sequence_spread"],
    "turns of a whole": ["prm.granularity=whole", "policy.aggregation=sequence"],
    "turns by hindsight": ["advantage.process_credit=hindsight", "advantage.gamma_process=0.0"],
    "turns by observation": ["advantage.process_credit=observation"],
    "turns as units by hindsight": ["prm.granularity=turn", "advantage.process_credit=hindsight"],
    "turns without scores of replies": ["prm.scored_tokens=policy", "policy.correction=sequence"],
    "turns with scores of replies alone": [
        "prm.scored_tokens=environment",
        "advantage.process_credit=hindsight",
    ],
    "turns by istar": [
        *("advantage.estimator=istar", "prm.granularity=turn", "prm.loss=dpo"),
        *("prm.scored_tokens=policy", "reference.mode=policy"),
    ],
    "turns without a PRM": OUTCOME_ONLY,
    "turns with a critic and no PRM": [*CRITIC, "prm.scored_tokens=policy"],
}


@pytest.fixture(scope="module")
def first_steps(toy: Toy) -> tuple[dict[str, dict[str, float] | str], dict]:
    """Return the first step's metrics of every variant on small batches, and outcome-only advantages of a batch."""
    small = ["trainer.prompts_per_step=4"]
    turns = {name: [*TURNS, *overrides] for name, overrides in TURN_VARIANTS.items()}
    everything = PRM_VARIANTS | OTHER_VARIANTS | turns
    variants = {name: [*small, *overrides] for name, overrides in everything.items()}
    (results,) = run_distributed(toy_worker.one_step_each, 1, str(toy.folder), variants)
    return results


@pytest.fixture
def steps(first_steps) -> dict[str, dict[str, float] | str]:
    return first_steps[0]


@pytest.fixture
def outcome_only(first_steps) -> dict:
    return first_steps[1]


COUNTED = ("prm/length_correlation", "prm/format_", "prm/best_is_wrong_", "prm/lowest_on_last_")
"""Statistics that are NaN in a batch where there is nothing to count, such as one without pairs of unequal lengths."""


@pytest.mark.parametrize("variant", [*PRM_VARIANTS, *OTHER_VARIANTS, *TURN_VARIANTS])
def test_every_option_gives_finite_metrics(steps, variant):
    metrics = steps[variant]
    assert isinstance(metrics, dict), metrics
    unknown = [name for name, value in metrics.items() if not math.isfinite(value)]
    assert [name for name in unknown if not name.startswith(COUNTED)] == []
    assert metrics["policy/grad_norm"] > 0
    assert metrics["advantage/std"] > 0


@pytest.mark.parametrize("variant", TURN_VARIANTS)
def test_replies_are_scored_and_not_trained_on(steps, variant):
    metrics = steps[variant]
    assert isinstance(metrics, dict), metrics
    assert 1.5 < metrics["rollout/mean_turns"] <= 2
    replies = metrics["rollout/mean_response_tokens"] - metrics["rollout/mean_policy_tokens"]
    assert replies == pytest.approx(2 * (metrics["rollout/mean_turns"] - 1))
    # With the 0 that stands for the engine's log-prob of a reply, the gap would be above 1.
    assert metrics["rollout/logprob_gap_max"] < 1e-3
    assert ("prm/reply_share" in metrics) == ("PRM" not in variant)
    if "prm/reply_share" in metrics:
        is_scored = variant not in ("turns without scores of replies", "turns by istar")
        assert (metrics["prm/reply_share"] > 0) == is_scored
        assert metrics["prm/turn_reward_std"] > 0


@pytest.mark.parametrize("order", ORDERS)
def test_rewards_are_zero_unless_the_prm_is_updated_first(steps, order):
    for loss, granularity in itertools.product(LOSSES, GRANULARITIES):
        largest = steps[f"{order} {loss} {granularity}"]["prm/process_reward_max_abs"]
        assert (largest > 0) == (order == "before"), (loss, granularity, largest)


def test_a_prm_without_updates_has_no_update_metrics(steps):
    assert "prm/grad_norm" not in steps["none ce token"]
    assert "prm/grad_norm" in steps["after ce token"]


@pytest.mark.parametrize("layout", ["single", *LAYOUTS])
def test_the_process_reward_is_exactly_zero_at_step_0_in_every_layout(toy: Toy, layout_runs, layout):
    history = records(layout_runs.get(layout, toy.run_dir("single")))
    first, second = (next(record for record in history if record["step"] == step) for step in (1, 2))
    assert first["prm/process_reward_max_abs"] == 0.0
    assert second["prm/process_reward_max_abs"] > 0.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_run_does_not_depend_on_the_layout(toy: Toy, layout_runs: dict[str, Path], layout):
    # Random numbers are keyed by prompt, so rollouts of two layouts differ only at a near-tie; seed 0 has none here.
    found = differences(records(toy.run_dir("single")), records(layout_runs[layout]))
    assert {name: gap for name, gap in found.items() if gap > 1e-4} == {}
    alone, shared = rollouts(toy.run_dir("single")), rollouts(layout_runs[layout])
    assert list(alone) == list(shared) == list(range(1, NUM_STEPS + 1))
    for step, rows in alone.items():
        for mine, other in zip(rows, shared[step], strict=True):
            for name, value in mine.items():
                if name in FLOATS and value is not None:
                    assert other[name] == pytest.approx(value, abs=1e-3), (step, name)
                else:
                    assert other[name] == value, (step, name)


def test_the_rollout_log_agrees_with_the_metrics(toy: Toy):
    run_dir = toy.run_dir("single")
    for record in records(run_dir):
        rows = rollouts(run_dir).get(int(record["step"]), [])
        if not rows:
            continue
        batch = [row for row in rows if row["filter"] == "kept"]
        pairs = list(itertools.chain.from_iterable(map(_tokens, batch)))
        gaps = [abs(token["policy_logprobs"] - token["rollout_logprobs"]) for token in pairs]
        ratios = [token["prm_logprobs"] - token["ref_logprobs"] for token in pairs]
        expected = {
            "rollout/accuracy_sampled": _mean([row["outcome_reward"] for row in rows]),
            "rollout/accuracy_batch": _mean([row["outcome_reward"] for row in batch]),
            "rollout/num_rollouts_sampled": len(rows),
            "rollout/num_groups_dropped_too_easy": len(
                {row["group"] for row in rows if row["filter"] == "dropped_too_easy"}
            ),
            "rollout/logprob_gap": _mean(gaps),
            "advantage/mean": _mean([token["advantages"] for token in pairs]),
            "prm/process_reward_mean": _mean([token["process_rewards"] for token in pairs]),
        }
        assert {name: record[name] for name in expected} == pytest.approx(expected, abs=1e-5)
        assert [token["process_rewards"] for token in pairs] == pytest.approx(
            [0.1 * ratio for ratio in ratios], abs=1e-6
        )
        assert all(token["mask"] and token["entropy"] >= 0 for token in pairs)
        for row in rows:
            assert row["step_ends"][-1] == len(row["response_token_ids"]) == len(row["token_ends"])
            assert row["token_ends"][-1] == len(row["response"])
            assert row["policy_version"] == record["step"] - 1
            assert (row["advantages"] is None) == (row["filter"] != "kept")


def _tokens(row):
    names = [name for name in FLOATS | {"mask"} if isinstance(row[name], list)]
    return [
        dict(zip(names, values, strict=True)) for values in zip(*(row[name] for name in names), strict=True)
    ]


def _mean(values):
    return math.fsum(values) / len(values)


def test_without_a_prm_advantages_are_leave_one_out_and_constant_along_a_response(outcome_only):
    outcomes, groups = outcome_only["outcomes"], outcome_only["groups"]
    assert len(set(outcomes)) > 1
    for row, (outcome, group) in enumerate(zip(outcomes, groups, strict=True)):
        others = [
            outcomes[other] for other in range(len(outcomes)) if groups[other] == group and other != row
        ]
        expected = outcome - sum(others) / len(others)
        for advantage, is_response in zip(
            outcome_only["advantages"][row], outcome_only["mask"][row], strict=True
        ):
            assert advantage == pytest.approx(expected if is_response else 0.0, abs=1e-6)


def test_outcome_only_training_logs_no_prm_and_equals_a_process_coefficient_of_zero(steps):
    alone = steps["outcome only"]
    assert [name for name in alone if name.startswith("prm/")] == []
    for weightless in (steps["process_coef=0"], steps["process warm-up"]):
        for name, value in alone.items():
            if name.startswith(("policy/", "advantage/", "rollout/")):
                assert weightless[name] == pytest.approx(value, abs=1e-6), name
    assert steps["process warm-up"]["prm/process_reward_max_abs"] > 0


def test_the_policy_as_its_own_prm_trains_none_and_starts_at_zero(steps):
    metrics = steps["policy as prm"]
    assert metrics["prm/process_reward_max_abs"] == 0
    assert [name for name in metrics if name.startswith("prm/") and ("grad" in name or "lr" in name)] == []
    assert metrics["prm/pair_accuracy"] == 0.5


def test_a_critic_gives_values_from_the_first_step_on_and_no_signs_of_log_ratios(steps):
    metrics = steps["critic"]
    assert 0 < metrics["prm/process_reward_max_abs"] < 1, "changes of probabilities"
    assert [name for name in metrics if name.startswith(COUNTED)] == []


def test_the_engine_releases_its_memory_between_sampling_and_scoring(stale_step):
    calls = stale_step["calls"]
    last_sampled, first_scored = len(calls) - 1 - calls[::-1].index("stream"), calls.index("score")
    assert calls[last_sampled + 1 : first_scored] == ["release_memory"]


def test_the_weights_are_pushed_once_after_a_step_and_not_before_they_are_needed(stale_step):
    calls = stale_step["calls"]
    assert calls[-1] == "push" and calls.count("push") == calls.count("release_memory") == 1


def test_a_batch_of_other_weights_is_corrected_by_the_ratio_to_the_weights_before_the_step(stale_step):
    metrics, gaps = stale_step["metrics"], stale_step["gaps"]
    ratios = [math.exp(gap) for row in gaps for gap in row]
    expected = {
        "policy/correction_mean": _mean([min(ratio, 2.0) for ratio in ratios]),
        "policy/correction_outside_fraction": _mean([ratio > 2.0 for ratio in ratios]),
        "policy/rollout_kl": _mean([ratio - 1 - math.log(ratio) for ratio in ratios]),
        "policy/rollout_token_ess": sum(ratios) ** 2 / len(ratios) / sum(ratio**2 for ratio in ratios),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert 0 < metrics["policy/rollout_response_ess"] < metrics["policy/rollout_token_ess"] < 1


def test_the_process_rewards_of_a_batch_are_those_of_the_present_prm(stale_step):
    """The PRM has changed since the batch was sampled, too; what it said before does not count."""
    assert stale_step["prm_difference"] < 1e-6
