"""Each update order scores with the documented PRM weights; rewards are exactly 0 before any update."""

import math

import pytest
import torch

from megatron_prime.algorithm.prm_loss import prm_metrics
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.training.prm_phase import policy_as_prm
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch, Turn
from tests.support.distributed_runner import run_distributed
from tests.support.tiny_models import save_tiny_model
from tests.support.training_batches import BETA, GROUPS, LABELS, TURNS, masks, ragged_batch
from tests.training import training_worker

LAYOUTS = {1: ("one",), 2: ("tp2", "pp2", "dp2")}
ALL_LAYOUTS = [layout for layouts in LAYOUTS.values() for layout in layouts]
CASES = {
    "after": {},
    "after, minibatches": {"num_minibatches": 7, "loss": "ce_intercept"},
    "after, epochs": {"num_epochs": 2, "loss": "ipvrm"},
    "after, noisy_and": {"loss": "noisy_and"},
    "reverse": {"update_order": "reverse"},
    "reverse, bon": {"update_order": "reverse", "loss": "bon_rm"},
    "before": {"update_order": "before"},
    "before, dpo_units": {"update_order": "before", "loss": "dpo_units", "granularity": "turn"},
    "before, minibatches": {"update_order": "before", "num_minibatches": 7},
    "before, epochs": {"update_order": "before", "num_epochs": 2},
    "after, without replies": {"scored_tokens": "policy"},
    "none": {"update_order": "none"},
    "after, critic": {"loss": "value", "scored_tokens": "policy"},
    "before, critic": {"update_order": "before", "loss": "value", "num_minibatches": 7},
}
SCORED_FIRST = [name for name in CASES if not name.startswith("before") and "critic" not in name]
TRAINED = [name for name in CASES if name != "none"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prm") / "model"
    batch = ragged_batch(save_tiny_model("shallow qwen2", folder))
    rollouts = [
        Rollout(
            prompt=Prompt(group, tuple(prompt), ""),
            sample_index=row,
            response_ids=tuple(response),
            rollout_logprobs=(0.0,) * len(response),
            finish_reason=FinishReason.STOP,
            policy_version=0,
            outcome_reward=label,
            turns=tuple(Turn(*ends) for ends in TURNS.get(row, ())),
        )
        for row, ((prompt, response), group, label) in enumerate(
            zip(batch["sequences"], GROUPS, LABELS, strict=True)
        )
    ]
    rollout_batch = RolloutBatch.from_rollouts(rollouts, GROUPS)
    reports = {}
    for num_processes, layouts in LAYOUTS.items():
        by_rank = run_distributed(
            training_worker.run_prm_phases, num_processes, layouts, folder, batch, rollout_batch, CASES, 2
        )
        reports |= {key: [of_rank[key] for of_rank in by_rank] for key in by_rank[0]}
    return reports


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("name", SCORED_FIRST)
def test_rewards_are_exactly_zero_before_the_first_update(name, layout, results):
    for steps in results[layout, name]:
        assert torch.equal(steps[0]["rewards"], torch.zeros_like(steps[0]["rewards"]))
        assert steps[0]["metrics"]["ce"] == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_rewards_come_from_the_documented_prm_weights(name, layout, results):
    promised = "after" if name.startswith("before") else "before"
    for steps in results[layout, name]:
        for step in steps:
            assert torch.equal(step["result"], step[promised])


def scored_before(step, rows=slice(None)):
    """Return the scores, from before the update, of some responses."""
    mask_BT, _ = masks()
    ratios_BT = torch.where(mask_BT, step["before"] - step["reference"], 0.0).double()
    return BETA * ratios_BT.sum(dim=1)[rows]


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("name", ["after", "after, epochs", "reverse", "before", "before, epochs", "none"])
def test_what_the_prm_knows_is_measured_before_it_learns_in_every_order(name, layout, results):
    labels_B, ids_B = torch.tensor(LABELS), torch.tensor(GROUPS)
    for steps in results[layout, name]:
        for step in steps:
            expected = prm_metrics(scored_before(step), labels_B, ids_B)
            for metric in ("ce", "pair_accuracy"):
                assert step["metrics"][f"unseen_{metric}"] == pytest.approx(expected[metric], abs=1e-6)
        assert steps[0]["metrics"]["unseen_ce"] == pytest.approx(math.log(2), abs=1e-7)
        assert steps[0]["metrics"]["unseen_pair_accuracy"] == 0.5


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_measuring_before_the_update_costs_no_forward_pass(layout, results):
    for steps in results[layout, "before"]:
        assert [step["num_forward"] for step in steps] == [1, 1], "the scores behind the rewards alone"


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_each_response_is_measured_before_the_first_update_on_it(layout, results):
    """With seven minibatches of a row, the first row is scored before all updates; others after some."""
    for steps in results[layout, "before, minibatches"]:
        first, second = (step["metrics"] for step in steps)
        assert math.isnan(first["unseen_pair_accuracy"]), "no minibatch has a pair"
        assert 0 < abs(first["unseen_ce"] - math.log(2)) < 0.5
        assert first["unseen_ce"] != first["ce"]
        assert second["unseen_ce"] != second["ce"]


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("name", TRAINED)
def test_the_prm_learns_in_every_order(name, layout, results):
    for first, second in results[layout, name]:
        assert not torch.equal(first["before"], first["after"])
        assert torch.equal(first["after"], second["before"])
        assert second["rewards"].any()
        assert first["metrics"]["lr"] == 1e-3
        assert first["metrics"]["grad_norm"] > 0


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_without_updates_the_prm_does_not_change(layout, results):
    for first, second in results[layout, "none"]:
        assert torch.equal(first["before"], second["after"])
        assert not {"loss", "lr", "grad_norm"} & set(first["metrics"])


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_the_update_order_changes_the_scores_but_not_the_update(layout, results):
    after, reverse, before = (results[layout, order][0] for order in ("after", "reverse", "before"))
    for one, two, three in zip(after, reverse, before, strict=True):
        assert torch.equal(one["after"], two["after"])
        assert torch.equal(one["after"], three["after"])


@pytest.mark.parametrize("name", TRAINED)
def test_layouts_train_the_same_prm(name, results):
    expected = results["one", name][0]
    for layout in ALL_LAYOUTS[1:]:
        for of_rank in results[layout, name]:
            for step, reference in zip(of_rank, expected, strict=True):
                torch.testing.assert_close(step["after"], reference["after"], rtol=0, atol=2e-4)
                assert step["metrics"] == pytest.approx(reference["metrics"], rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_a_critic_is_measured_by_its_value_before_the_last_token_of_the_policy(layout, results):
    _, own_BT = masks()
    last_B = torch.where(own_BT, torch.arange(own_BT.shape[1]), 0).max(dim=1).values
    for steps in results[layout, "after, critic"]:
        for step in steps:
            values_B = step["before"].gather(1, last_B[:, None])[:, 0]
            quality = prm_metrics(values_B, torch.tensor(LABELS), torch.tensor(GROUPS))
            assert {name: step["metrics"][name] for name in quality} == pytest.approx(quality, abs=1e-6)


@pytest.mark.parametrize("name", ["after", "before", "after, critic"])
def test_cross_entropy_falls(name, results):
    first, second = results["one", name][0]
    assert second["metrics"]["ce"] < first["metrics"]["ce"]


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_replies_are_scored_unless_configured_otherwise(layout, results):
    mask_BT, own_BT = masks()
    for name, scores_replies in (("after", True), ("after, without replies", False)):
        for _, second in results[layout, name]:
            assert bool(second["rewards"][mask_BT & ~own_BT].all()) == scores_replies
            assert not second["rewards"][~(mask_BT if scores_replies else own_BT)].any()
            assert second["rewards"][own_BT].any()
    for with_replies, without in zip(
        results[layout, "after"], results[layout, "after, without replies"], strict=True
    ):
        assert not torch.equal(with_replies[0]["after"], without[0]["after"]), "the PRM's loss differs"


def test_the_policy_as_its_own_prm_is_scored_like_one():
    rollouts = [
        Rollout(Prompt(0, (1,), ""), row, (5, 6), (0.0, 0.0), FinishReason.STOP, 0, outcome_reward=float(row))
        for row in range(2)
    ]
    batch = RolloutBatch.from_rollouts(rollouts, [0, 0])
    old_BT, ref_BT = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]]), torch.tensor([[-1.0, -1.0], [-2.0, -2.0]])
    result = policy_as_prm(batch, old_BT, ref_BT, PRMConfig(beta=0.5, source="policy"))
    assert torch.equal(result.logprobs_BT, old_BT)
    assert (result.metrics["pair_accuracy"], result.metrics["num_pairs"]) == (1.0, 1.0)
    assert result.metrics["score_mean"] == pytest.approx(0.25)
