"""Training on saved responses is the same in every layout, and is measured as the equations say."""

import itertools
import math

import pytest
import torch

from megatron_prime.data.responses.table import GroupTable, SavedResponse
from megatron_prime.training.offline_prm import HeldOutPRM, batch_of
from megatron_prime.types import Turn
from tests.support.distributed_runner import run_distributed
from tests.support.metric_names import undocumented
from tests.support.tiny_models import save_tiny_model
from tests.support.training_batches import BETA, GROUPS, LABELS, TURNS, masks, ragged_batch
from tests.training import offline_prm_worker

LAYOUTS = {1: ("one",), 2: ("tp2", "pp2", "dp2")}
CASES = {"ce": {}, "dpo": {"loss": "dpo"}, "ce, without replies": {"scored_tokens": "policy"}}
STEPS = 2


def saved_groups(sequences) -> GroupTable:
    table = GroupTable()
    rows = zip(sequences, GROUPS, LABELS, itertools.count(), strict=False)
    for _, members in itertools.groupby(rows, key=lambda row: row[1]):
        group = [
            (prompt, SavedResponse(response, label, tuple(Turn(*ends) for ends in TURNS.get(row, ()))))
            for (prompt, response), _, label, row in members
        ]
        table.append(group[0][0], [response for _, response in group])
    return table


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline") / "model"
    groups = saved_groups(ragged_batch(save_tiny_model("shallow qwen2", folder))["sequences"])
    reports = {}
    for num_processes, layouts in LAYOUTS.items():
        by_rank = run_distributed(
            offline_prm_worker.train, num_processes, layouts, folder, groups, CASES, STEPS
        )
        reports |= {key: [of_rank[key] for of_rank in by_rank] for key in by_rank[0]}
    return reports


@pytest.mark.parametrize("name", CASES)
def test_the_layout_changes_nothing(name, results):
    (expected,) = results["one", name]
    for layout in LAYOUTS[2]:
        for of_rank in results[layout, name]:
            for found, one in zip(of_rank["held out"], expected["held out"], strict=True):
                assert found.metrics() == pytest.approx(one.metrics(), abs=1e-3)
            for found, one in zip(of_rank["steps"], expected["steps"], strict=True):
                mine = {name: value for name, value in found.items() if name.startswith("prm/")}
                assert mine == pytest.approx({name: one[name] for name in mine}, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_held_out_responses_are_measured_by_the_log_ratio(name, results):
    """Sums in float64, one token and one pair at a time."""
    (report,) = results["one", name]
    prm_BT, ref_BT = report["logprobs"]
    mask_BT = masks()[name == "ce, without replies"]
    scores = [
        BETA * sum((prm - ref).item() for prm, ref, scored in zip(*row, strict=True) if scored)
        for row in zip(prm_BT.double(), ref_BT.double(), mask_BT, strict=True)
    ]
    ce = [
        -math.log(1 / (1 + math.exp(-score if label else score)))
        for score, label in zip(scores, LABELS, strict=True)
    ]
    pairs = [
        (scores[right] > scores[wrong]) + 0.5 * (scores[right] == scores[wrong])
        for right, wrong in itertools.permutations(range(len(scores)), 2)
        if GROUPS[right] == GROUPS[wrong] and LABELS[right] > LABELS[wrong]
    ]
    values = report["held out"][-1].metrics()
    assert values["prm_ce"] == pytest.approx(sum(ce) / len(ce), abs=1e-5)
    assert values["prm_pair_accuracy"] == pytest.approx(sum(pairs) / len(pairs))
    assert values["prm_num_pairs"] == len(pairs)


@pytest.mark.parametrize("name", CASES)
def test_the_prm_starts_at_chance_and_learns(name, results):
    (report,) = results["one", name]
    before, *_, after = report["held out"]
    assert before.metrics()["prm_ce"] == pytest.approx(math.log(2), abs=1e-6)
    assert before.metrics()["prm_pair_accuracy"] == 0.5
    assert after.metrics()["prm_pair_accuracy"] > 0.5
    assert report["done"] == STEPS
    assert undocumented([*report["steps"][0], *(f"eval/{name}" for name in after.metrics())]) == []
    assert report["steps"][0]["prm/ce"] == pytest.approx(math.log(2), abs=1e-6), "measured before the update"


def test_a_batch_has_the_steps_of_its_responses_where_they_are_needed():
    groups = list(saved_groups([([1, 2], [3] * length) for _, length in [(0, 5), (0, 2), (0, 9)]]))
    batch = batch_of(groups, lambda token_ids: [0] * len(token_ids))
    assert batch.group_ids_B.tolist() == [0, 0, 0]
    assert batch.step_ids_BT is not None and batch.step_ids_BT.max() == 1, "a turn begins a step"
    assert batch_of(groups).step_ids_BT is None
    assert torch.equal(batch.outcome_rewards_B, torch.tensor(LABELS[:3]))


def test_a_summary_says_when_there_is_no_pair():
    values = {"pair_accuracy": math.nan, "num_pairs": 0.0, "ce": 0.5}
    assert "no pairs of a right and a wrong response" in HeldOutPRM(values, 3).summary()
    assert HeldOutPRM({**values, "pair_accuracy": 0.75, "num_pairs": 8.0}, 12).summary() == (
        "0.750 of 8 pairs, cross-entropy 0.5000 nats (12 responses)"
    )
