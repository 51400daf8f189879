import pytest
from pydantic import ValidationError

from megatron_prime.config.tables.reward import JudgeConfig, RewardConfig


def test_each_possible_verifier_is_listed_once():
    assert RewardConfig().verifiers == ("math",)
    assert RewardConfig(verifier="auto").verifiers == ("math", "code")
    routes = {"a": "math", "b": "exact_match", "c": "math"}
    assert RewardConfig(verifier="auto", routes=routes).verifiers == ("math", "exact_match")
    assert RewardConfig(verifier="x.y:f", routes=routes).verifiers == ("x.y:f",)


def test_a_prompt_is_routed_by_source_and_then_by_ability():
    reward = RewardConfig(verifier="auto", routes={"math": "math", "toy": "exact_match"})
    assert reward.verifier_of("toy", "math") == "exact_match"
    assert reward.verifier_of("other", "math") == "math"
    assert RewardConfig(verifier="math").verifier_of("x", "y") == "math"
    with pytest.raises(ValueError, match=r"neither the source 'x' nor the ability ''.*'toy'"):
        reward.verifier_of("x", "")


@pytest.mark.parametrize("routes", [{}, {"math": "auto"}])
def test_auto_needs_routes_to_other_verifiers(routes):
    with pytest.raises(ValidationError, match="routes"):
        RewardConfig(verifier="auto", routes=routes)


@pytest.mark.parametrize(
    "code",
    [{"sandbox": "none"}, {"memory_mib": 0}, {"test_timeout_s": 0}, {"max_test": 3}, {"max_processes": -1}],
)
def test_code_limits_are_checked(code):
    with pytest.raises(ValidationError):
        RewardConfig(code=code)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"score_pattern": "("}, "score_pattern is no regular expression: "),
        ({"score_pattern": r"Score: \d"}, "must have one group.*it has 0"),
        ({"score_pattern": r"(\d)/(\d)"}, "must have one group.*it has 2"),
        ({"min_score": 5, "max_score": 5}, "min_score = 5 is not below max_score = 5"),
        ({"max_score": float("nan")}, "finite"),
        ({"votes": 0}, "greater than 0"),
        ({"votes": 2}, "votes = 2 are all equal at temperature = 0"),
        ({"max_concurrency": 0}, "greater than 0"),
        ({"timeout_s": 0}, "greater than 0"),
        ({"parameters": {"n": 2, "top_p": 1}}, r"parameters has \['n'\], which the judge sets itself"),
        ({"api_key": "x"}, "Extra inputs"),
    ],
)
def test_settings_of_the_judge_that_cannot_work_are_refused(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        JudgeConfig.model_validate(changes)
