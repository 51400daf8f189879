import pytest
from pydantic import ValidationError

from megatron_prime.config.tables.reward import RewardConfig


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
