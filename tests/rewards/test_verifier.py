import math
import subprocess
import sys

import pytest

from megatron_prime.rewards import get, names, register
from megatron_prime.rewards.exact_match import ExactMatch
from megatron_prime.rewards.outcome import VerificationOutcome, VerificationStatus
from megatron_prime.rewards.verifier import Verifier, run_verifier
from megatron_prime.sample import Sample


class Fixed:
    in_process = True

    def __init__(self, reward):
        self.reward = reward

    def verify(self, response_text, answer):
        if isinstance(self.reward, BaseException):
            raise self.reward
        return self.reward


def test_the_built_in_verifiers_are_registered():
    assert names() == tuple(sorted(names()))
    assert {"exact_match", "math"} <= set(names())
    assert all(isinstance(get(name), Verifier) for name in ("exact_match", "math"))


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown verifier 'mathh': known are .*exact_match, .*math"):
        get("mathh")


def test_a_taken_name_is_rejected_and_registering_again_is_harmless():
    register("exact_match", ExactMatch)
    with pytest.raises(ValueError, match="is taken"):
        register("exact_match", lambda: Fixed(1.0))
    assert isinstance(get("exact_match"), ExactMatch)


@pytest.mark.parametrize("reward", [0, 0.25, 1, True])
def test_a_reward_is_passed_on(reward):
    assert run_verifier(Fixed(reward), Sample("r", "a")) == VerificationOutcome(
        float(reward), VerificationStatus.OK
    )


@pytest.mark.parametrize(
    "reward",
    [
        1.5,
        -0.1,
        math.nan,
        math.inf,
        None,
        "x",
        "1.0",
        b"1",
        [1.0],
        1j,
        ValueError("broken"),
        RecursionError(),
        SystemExit(0),
    ],
    ids=repr,
)
def test_an_invalid_reward_is_an_error_and_nan(reward):
    outcome = run_verifier(Fixed(reward), Sample("r", "a"))
    assert outcome.status is VerificationStatus.ERROR
    assert math.isnan(outcome.reward)
    assert outcome.detail


def test_a_verifier_that_explains_is_asked_once():
    class Explained(Fixed):
        def explain(self, response_text, answer):
            return self.reward, "because"

    assert run_verifier(Explained(0.5), Sample("r", "a")) == VerificationOutcome(
        0.5, VerificationStatus.OK, "because"
    )


def test_the_package_imports_no_torch():
    program = "import sys, megatron_prime.rewards as r; r.get('math'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
