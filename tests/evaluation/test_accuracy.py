"""avg@k and pass@k against values computed by hand."""

import itertools
import math
from types import SimpleNamespace

import pytest

from megatron_prime.config.tables.environment import EnvironmentConfig
from megatron_prime.config.tables.evaluation import EvaluationConfig
from megatron_prime.config.tables.rollout import RolloutConfig
from megatron_prime.evaluation.accuracy import (
    EvaluationReport,
    evaluate,
    evaluation_sampling,
    pass_at_k,
)
from megatron_prime.evaluation.confidence import BootstrapSettings, bootstrap_interval
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import SamplingParams
from tests.support.episodes import ScriptedEnvironments, echo
from tests.support.rollout_doubles import (
    BAD,
    BROKEN,
    GOOD,
    CountingStream,
    FixedOutcome,
    ScriptedEngine,
    WordTokenizer,
    verify_words,
)

SCRIPTS = [
    [[GOOD], [3, GOOD], [BAD], [BAD]],
    [[BAD], [BAD], [BAD], [BAD]],
    [[BROKEN], [GOOD], [BAD], [3, 3, BAD]],
]


def evaluate_scripts(**changes):
    prompts = CountingStream(sources=("x", "y", "x")).next(3)
    verifier = RolloutVerifier(verify_words, WordTokenizer())
    arguments = {"samples_per_prompt": 4, "stream_key": 9, **changes}
    return evaluate(
        ScriptedEngine(lambda index: SCRIPTS[index]), prompts, verifier, SamplingParams(4), **arguments
    )


def test_environments_reach_the_engine():
    engine, environments = ScriptedEngine(lambda index: SCRIPTS[index]), ScriptedEnvironments(echo(1))
    evaluate(
        engine,
        CountingStream().next(3),
        RolloutVerifier(verify_words, WordTokenizer()),
        SamplingParams(4),
        samples_per_prompt=4,
        stream_key=0,
        environments=environments,
    )
    assert engine.environments is environments


def test_scores_and_counts():
    result = evaluate_scripts()
    assert result.accuracy == 3 / 12
    assert (
        result.num_prompts,
        result.samples_per_prompt,
        result.num_correct,
        result.num_verifier_errors,
    ) == (3, 4, 3, 1)
    assert result.pass_at_k == pytest.approx({1: 3 / 12, 2: (5 / 6 + 0 + 1 / 2) / 3, 4: 2 / 3})
    assert result.accuracy_by_source == {"x": 3 / 8, "y": 0}
    assert result.mean_response_tokens == 15 / 12
    assert result.truncated_fraction == 0
    assert math.isnan(result.rollouts[8].outcome_reward)
    metrics = result.metrics()
    assert metrics["pass_at_4"] == pytest.approx(2 / 3)
    assert metrics["accuracy_by_source/x"] == 3 / 8
    assert all(isinstance(value, float) for value in metrics.values())


def test_one_sample_per_prompt():
    assert evaluate_scripts(samples_per_prompt=1).pass_at_k == {1: 1 / 3}


@pytest.mark.parametrize(("num_samples", "num_correct"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5)])
def test_pass_at_k_is_the_fraction_of_subsets_with_a_correct_response(num_samples, num_correct):
    is_correct = [index < num_correct for index in range(num_samples)]
    for k in range(1, num_samples + 1):
        subsets = [any(subset) for subset in itertools.combinations(is_correct, k)]
        assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(subsets) / len(subsets))


def test_sampling_parameters_follow_the_configuration_and_empty_data_is_refused():
    config = SimpleNamespace(
        evaluation=EvaluationConfig(temperature=0, top_p=0.5),
        rollout=RolloutConfig(max_response_tokens=7),
        environment=EnvironmentConfig(max_turns=3, max_turn_tokens=5),
    )
    params = evaluation_sampling(config, [3, 4])  # type: ignore[arg-type]
    assert params == SamplingParams(7, 0, 0.5, (3, 4), max_turns=3, max_turn_tokens=5)
    with pytest.raises(ValueError, match="no prompts"):
        evaluate(
            ScriptedEngine(None),
            [],
            RolloutVerifier(verify_words, WordTokenizer()),
            params,
            samples_per_prompt=1,
            stream_key=0,
        )


def test_intervals_are_bootstrapped_over_the_means_of_the_problems():
    result = evaluate_scripts(bootstrap=BootstrapSettings(0.9, 200, seed=4))
    assert result.intervals == {
        "accuracy": bootstrap_interval([0.5, 0.0, 0.25], 0.9, 200, 4),
        "pass_at_1": bootstrap_interval([0.5, 0.0, 0.25], 0.9, 200, 4),
        "pass_at_2": bootstrap_interval([5 / 6, 0.0, 1 / 2], 0.9, 200, 4),
        "pass_at_4": bootstrap_interval([1.0, 0.0, 1.0], 0.9, 200, 4),
    }
    assert result.metrics()["pass_at_2_ci_high"] == result.intervals["pass_at_2"][1]
    assert evaluate_scripts(bootstrap=BootstrapSettings(num_resamples=0)).intervals == {}


def test_a_report_combines_held_out_prompts_and_benchmarks():
    one, two = evaluate_scripts(), evaluate_scripts(samples_per_prompt=1)
    report = EvaluationReport({"": one, "aime24": two})
    metrics = report.metrics()
    assert report.accuracy == metrics["accuracy"] == one.accuracy
    assert metrics["aime24/accuracy"] == metrics["benchmark_average"] == two.accuracy
    assert report.summary() == "0.250 (3 prompts x 4), aime24 0.333 (3 prompts x 1)"
    alone = EvaluationReport({"amc": one, "aime24": two})
    assert alone.accuracy == alone.metrics()["accuracy"] == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert "benchmark_average" not in EvaluationReport({"": one}).metrics()


def test_whole_only_counts_partial_outcomes_as_wrong():
    def verify(samples):
        return [
            FixedOutcome(0.5 if text == "good" else 1.0 if text.endswith("good") else 0.0)
            for text in (sample.response_text for sample in samples)
        ]

    def evaluate_first(**options):
        prompts = CountingStream().next(1)
        verifier = RolloutVerifier(verify, WordTokenizer())
        engine = ScriptedEngine(lambda index: SCRIPTS[0])
        arguments = {"samples_per_prompt": 4, "stream_key": 1, "bootstrap": BootstrapSettings(0.9, 50)}
        return evaluate(engine, prompts, verifier, SamplingParams(4), **arguments, **options)

    assert (evaluate_first().accuracy, evaluate_first(whole_only=True).accuracy) == (1.5 / 4, 1 / 4)
    assert evaluate_first().pass_at_k == evaluate_first(whole_only=True).pass_at_k
    assert evaluate_first(whole_only=True).intervals["accuracy"] == (1 / 4, 1 / 4)
