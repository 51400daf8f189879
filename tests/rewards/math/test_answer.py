import threading
import tomllib
from pathlib import Path

import pytest

from megatron_prime.rewards import VerifierPool
from megatron_prime.rewards.math.answer import MathVerifier, answers_equal
from tests.rewards.math.pathological_answers import ANSWERS
from tests.support import deadlines
from tests.support.samples import samples

CASES = {
    kind: pairs
    for name in ("math_cases.toml", "form_cases.toml", "near_misses.toml", "writing_cases.toml")
    for kind, pairs in tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8")).items()
}
"""Kind -> right and wrong pairs; the files document the conventions by which they were classified."""


def verify(answer, boxed):
    return MathVerifier().verify(rf"Thus \boxed{{{boxed}}}.", answer)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("verdict", ["right", "wrong"])
def test_table_of_cases(kind, verdict):
    pairs = CASES[kind].get(verdict, [])
    misjudged = []
    for answer, text in pairs:
        response = text if kind == "responses" else rf"Thus \boxed{{{text}}}."
        if MathVerifier().verify(response, answer) != (verdict == "right"):
            misjudged.append((answer, text))
    assert not misjudged


def test_the_table_is_large_and_has_no_repetitions():
    cases = [(kind, *pair) for kind, of_kind in CASES.items() for pairs in of_kind.values() for pair in pairs]
    assert len(cases) >= 2800
    assert len(cases) == len(set(cases))
    assert set().union(*CASES.values()) == {"right", "wrong"}


def test_pathological_answers_are_wrong_and_end_by_the_deadline():
    # Unfinished operations are refused before they are evaluated, unless the user wants them.
    with VerifierPool("math", 1, deadlines.seconds(6.0), settings={"accept_unevaluated": True}) as pool:
        outcomes = pool.verify_all(samples([(rf"\boxed{{{text}}}", answer) for answer, text in ANSWERS]))
    late = [pair for pair, outcome in zip(ANSWERS, outcomes, strict=True) if outcome.status == "timeout"]
    assert all(outcome.status == "timeout" or outcome.reward == 0.0 for outcome in outcomes)
    assert len(late) <= 1, late


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("120", "5!"),
        ("3", r"\log_2 8"),
        (r"\frac12", r"\sin 30^\circ"),
        ("2x", r"\frac{d}{dx}x^2"),
        ("55", r"\sum_{k=1}^{10} k"),
        (r"\frac12", r"\int_0^1 x\,dx"),
        ("1", r"\lim_{x\to 0}\frac{\sin x}{x}"),
        ("6", r"\gcd(54,24)"),
    ],
)
def test_unfinished_operations_are_answers_only_if_configured(answer, text):
    assert verify(answer, text) == 0.0
    assert MathVerifier(accept_unevaluated=True).verify(rf"\boxed{{{text}}}", answer) == 1.0


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("the answer is 42", 0.0),
        ("", 0.0),
        (r"\boxed{42", 0.0),
        (r"\fbox{42}", 1.0),
        (r"\boxed{41} no, \boxed{42}", 1.0),
        (r"\boxed{42} no, \boxed{41}", 0.0),
        (r"\boxed{41} or \boxed{42}", 0.0),
        (r"\boxed{41}, \boxed{42}", 0.0),
    ],
)
def test_only_the_boxed_answer_counts(response, reward):
    assert MathVerifier().verify(response, "42") == reward


def test_adjacent_boxes_are_parts_of_one_answer():
    assert MathVerifier().verify(r"$\boxed{3}$ and $\boxed{2}$", "2, 3") == 1.0
    assert MathVerifier().verify(r"\boxed{x=3}, \boxed{x=2}", "2, 3") == 1.0


def test_a_blank_ground_truth_is_an_error():
    with pytest.raises(ValueError, match="blank"):
        verify("  ", "1")
    with pytest.raises(ValueError, match="blank"):
        verify('["1", " "]', "1")


def test_it_works_off_the_main_thread():
    rewards = []
    thread = threading.Thread(target=lambda: rewards.append(verify("1/2", "0.5")))
    thread.start()
    thread.join()
    assert rewards == [1.0]


def test_no_text_raises():
    for text in [
        "\\",
        "{",
        "}}",
        "\\frac{",
        "^",
        "_",
        "\\sqrt",
        "(",
        "[,]",
        "\\pm",
        "=",
        "1=2=3",
        "\0",
        "\ud800",
        "∮",
        "," * 99,
    ]:
        assert not answers_equal("42", text), text
