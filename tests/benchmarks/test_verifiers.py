"""The verifier benchmark counts both kinds of mistakes, for both verifiers on the same cases."""

from benchmarks import verifiers
from megatron_prime.rewards.code.sandbox import Completed
from megatron_prime.rewards.math.answer import MathVerifier


def test_mistakes_are_counted_by_direction():
    always_right = verifiers.mistakes(lambda response, answer: 1.0, [("a", "b", True), ("c", "d", False)])
    always_wrong = verifiers.mistakes(lambda response, answer: 0.0, [("a", "b", True), ("c", "d", True)])
    assert always_right == (0, 1)
    assert always_wrong == (2, 0)


def test_both_judges_see_the_same_cases():
    of_kind = verifiers.cases()["multiple_choice"]
    assert {is_right for _, _, is_right in of_kind} == {True, False}
    assert verifiers.mistakes(MathVerifier().verify, of_kind) == (0, 0)
    assert verifiers.plain(r"$\boxed{\frac{1}{2}}$", "0.5") == 1.0
    assert verifiers.plain(r"$\boxed{2}$", "0.5") == 0.0


def test_independent_cases_are_judged_as_reported():
    """The authors of the last set knew the kinds, but neither this verifier nor its tables."""
    of_set = verifiers.independent_cases()["set 3"]
    rejected, accepted = verifiers.mistakes(MathVerifier().verify, of_set)
    assert accepted == 0
    assert rejected <= 0.05 * sum(is_right for *_, is_right in of_set)


def test_a_row_of_the_table():
    assert verifiers.accuracy_row("sets", [10, 1, 1, 2, 3]) == "| sets | 10 | 80.0% | 50.0% | 2 | 3 |"


def test_a_row_of_the_attack_table():
    stopped = Completed(None, b"", "it ran past 1 s")
    assert verifiers.attack_row("spin", False, stopped) == "| spin | no | killed: it ran past 1 s |"
    fooled = Completed(0, b"42")
    assert verifiers.attack_row("forge", True, fooled) == "| forge | YES | exit code 0: prints b'42' |"
