import re

import pytest

from megatron_prime.observability.catalog import described_metrics, description_of, metric_of
from megatron_prime.observability.metrics import process_memory
from tests.support.metric_names import undocumented


def test_undocumented_names_are_found():
    assert undocumented(["policy/policy_loss", "rollout/num_groups_kept", "rollout/accuracy_batch"]) == []
    assert undocumented(["zzz/y", "rollout/new", *process_memory()]) == ["rollout/new", "zzz/y"]
    assert undocumented(["policy/", "policy/x/entropy", "rollout/samples"]) == [
        *("policy/", "policy/x/entropy", "rollout/samples")
    ]


def test_every_declaration_has_a_description_and_a_unit_and_is_made_once():
    metrics = described_metrics()
    assert len({metric.tag for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert re.fullmatch(r"[a-z0-9_]+(/[\w@<>]+)+", metric.tag), metric.tag
        assert metric.group == metric.tag.split("/")[0]
        assert metric.unit and re.fullmatch(r"[A-Z0-9].*\.", metric.description), metric.tag
        assert (metric.unit == "text") == (metric.kind == "text")


def test_a_unit_agrees_with_the_name():
    for metric in described_metrics():
        quantity = metric.tag.split("/")[-1]
        if metric.kind != "scalar":
            continue
        expected = {
            "_per_s": "tokens/s",
            "_s": "s",
            "_gib": "GiB",
            "_fraction": "fraction",
            "_tokens": "tokens",
        }
        unit = next((unit for end, unit in expected.items() if quantity.endswith(end)), None)
        if quantity == "num_tokens":
            unit = "tokens"
        elif quantity.startswith("num_"):
            unit = "count"
        assert unit in (None, metric.unit), metric.tag


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("policy/entropy", "policy/entropy"),
        ("eval/accuracy", "eval/accuracy"),
        ("eval/pass_at_16_ci_low", "eval/pass_at_<k>_ci_low"),
        ("eval/aime24/accuracy", "eval/<benchmark>/accuracy"),
        ("eval/accuracy_by_source/numina/olympiads (v2)", "eval/accuracy_by_source/<source>"),
        ("eval/aime24/accuracy_by_source/AIME 24", "eval/<benchmark>/accuracy_by_source/<source>"),
        ("prm_eval/aime24/best_sum@4", "prm_eval/<set>/best_sum@<N>"),
        ("memory/rollout/policy_gib", "memory/<phase>/<role>_gib"),
        ("memory/rollout/device_peak_gib", "memory/<phase>/device_peak_gib"),
    ],
)
def test_a_name_that_the_run_chooses_is_covered_by_the_most_specific_declaration(name, tag):
    metric = metric_of(name)
    assert metric is not None and metric.tag == tag
    assert description_of(name) == metric.documentation


def test_a_loggers_description_ends_with_the_unit():
    assert description_of("time/step_s").endswith("checkpoints. Unit: s.")
    assert "fraction in [0, 1]" in description_of("eval/accuracy")
    assert description_of("policy/of_a_users_own_loss") == ""
