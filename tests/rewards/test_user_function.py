import functools
import operator

import pytest

from megatron_prime.rewards import VerificationStatus, VerifierPool
from megatron_prime.rewards.user_function import UserFunction, asked_fields
from megatron_prime.sample import Sample
from tests.support.samples import samples

MODULE = r"""
import os, time
NUM_CALLS = 0
def length(response_text, answer):
    global NUM_CALLS
    NUM_CALLS += 1
    return min(1.0, len(response_text) / float(answer))
def calls(response_text, answer): return NUM_CALLS / 10
def slow(response_text, answer): time.sleep(60)
def wrong(response_text, answer): return 2.0
def die(response_text, answer): os.kill(os.getpid(), 9)
def nothing(response_text, answer): return None
def looks(response_text, answer, metadata, *, turns=(), messages, weight=0.5):
    assert (messages, turns) == ([{"role": "user", "content": "\ud800 né"}], [("a", "b")])
    return weight * metadata["level"]
def everything(text, truth, **known):
    expected = {"source", "ability", "messages", "metadata", "response_ids", "finish_reason", "turns"}
    return float(known.keys() == expected and known["response_ids"] == [1, 2] and known["finish_reason"] == "length")
def unknown(response_text, answer, prompt): return 1.0
"""


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda name, seconds=30.0: VerifierPool(
        "function", 1, seconds, settings={"path": f"my_rewards:{name}"}
    )


def test_the_function_gives_the_reward(my_rewards):
    with my_rewards("length") as pool:
        outcomes = pool.verify_all(samples([("abcd", "8"), ("", "8"), ("abc", "zero")]))
    assert [outcome.reward for outcome in outcomes[:2]] == [0.5, 0.0]
    assert outcomes[2].status is VerificationStatus.ERROR
    assert "could not convert" in outcomes[2].detail


@pytest.mark.parametrize(("name", "fault"), [("wrong", "outside"), ("nothing", "TypeError")])
def test_an_invalid_reward_is_an_error(my_rewards, name, fault):
    with my_rewards(name) as pool:
        (outcome,) = pool.verify_all(samples([("a", "1")]))
    assert outcome.status is VerificationStatus.ERROR
    assert fault in outcome.detail


def test_a_module_that_no_longer_loads_is_not_tried_for_each_response(my_rewards, tmp_path):
    with my_rewards("die") as pool:
        (tmp_path / "my_rewards.py").write_text("raise RuntimeError('the tables are gone')")
        outcomes = pool.verify_all(samples([("a", "1")] * 40))
        assert all("the tables are gone" in outcome.detail for outcome in outcomes)
        assert pool.counts["error"] == 40
        (tmp_path / "my_rewards.py").write_text(MODULE)
        assert "killed by signal 9" in pool.verify_all(samples([("a", "1")]))[0].detail


def test_it_is_killed_at_the_deadline(my_rewards):
    with my_rewards("slow", seconds=0.5) as pool:
        (outcome,) = pool.verify_all(samples([("a", "1")]))
    assert outcome.status is VerificationStatus.TIMEOUT


def test_an_error_is_shown_with_its_traceback_in_the_users_file(my_rewards, tmp_path):
    with my_rewards("length") as pool:
        (outcome,) = pool.verify_all(samples([("abc", "zero")]))
    file = tmp_path / "my_rewards.py"
    line = MODULE.splitlines().index("    return min(1.0, len(response_text) / float(answer))") + 1
    assert outcome.detail == f"ValueError: could not convert string to float: 'zero' ({file}, line {line})"
    assert outcome.traceback.startswith(
        f'Traceback (most recent call last):\n  File "{file}", line {line}, in length\n'
    )
    assert "return min(1.0" in outcome.traceback and "megatron_prime" not in outcome.traceback


def test_an_error_on_import_is_shown_with_its_traceback(my_rewards, tmp_path):
    (tmp_path / "my_rewards.py").write_text("def f(): pass\nTABLE = open('no_such_file')\n")
    with pytest.raises(
        RuntimeError, match=r"does not start: FileNotFoundError.*my_rewards.py, line 2\)\nTraceback.*"
    ):
        my_rewards("f")


@pytest.mark.parametrize("name", ["no_such_function"])
def test_a_missing_function_is_an_error_at_start(my_rewards, name):
    with pytest.raises(RuntimeError, match="does not start"):
        my_rewards(name)


@pytest.mark.parametrize("path", ["", "module", ":f", "module:"])
def test_a_malformed_path_is_rejected(path):
    with pytest.raises(ValueError, match="not of the form"):
        UserFunction(path)


def test_without_a_pool_it_imports_on_the_first_call():
    assert UserFunction("operator:eq").verify("a", "a") == 1.0


FULL = Sample(
    "r",
    "a",
    "gsm8k",
    "math",
    [{"role": "user", "content": "\ud800 né"}],
    {"level": 1},
    (1, 2),
    "length",
    [("a", "b")],
)


@pytest.mark.parametrize(("name", "reward"), [("looks", 0.5), ("everything", 1.0)])
def test_a_function_gets_what_it_names(my_rewards, name, reward):
    with my_rewards(name) as pool:
        (outcome,) = pool.verify_all([FULL])
    assert (outcome.reward, outcome.detail) == (reward, "")


def test_a_signature_that_nothing_satisfies_is_refused_at_start_without_a_traceback(my_rewards):
    with pytest.raises(RuntimeError) as caught:
        my_rewards("unknown")
    message = str(caught.value)
    assert "my_rewards:unknown': there is nothing for its parameter 'prompt'" in message
    assert "messages, metadata" in message and "Traceback" not in message


def wrapper(*arguments, **keywords):
    return 1.0


class Judge:
    def __call__(self, response_text, answer, metadata):
        return 1.0


ALL = ("source", "ability", "messages", "metadata", "response_ids", "finish_reason", "turns")
SIGNATURES = {
    # function -> the fields that it gets, or a part of the reason why it is refused
    "old": (lambda response_text, answer: 1, ()),
    "other names": (lambda text, truth: 1, ()),
    "default": (lambda response_text, answer, strict=True: 1, ()),
    "one field": (lambda response_text, answer, metadata: 1, ("metadata",)),
    "field with a default": (lambda response_text, answer, messages=None, x=1: 1, ("messages",)),
    "keyword only": (lambda response_text, answer, *, turns: 1, ("turns",)),
    "all": (lambda response_text, answer, **rest: 1, ALL),
    "all, one named": (
        lambda response_text, answer, turns, **rest: 1,
        ("turns", *(n for n in ALL if n != "turns")),
    ),
    "decorator": (wrapper, ()),
    "decorated": (functools.wraps(lambda a, b, source: 1)(lambda *a, **k: 1), ("source",)),
    "partial": (functools.partial(lambda a, b, source, c: 1, c=3), ("source",)),
    "object": (Judge(), ("metadata",)),
    "of C": (operator.eq, ()),
    "without a signature": (max, ()),
    "none": (lambda: 1, "must take the response text and the answer, in this order; they are none"),
    "one": (lambda response_text: 1, "they are response_text"),
    "swapped": (lambda answer, response_text: 1, "they are answer, response_text"),
    "fields in place of texts": (lambda response_text, metadata: 1, "they are response_text, metadata"),
    "fields alone": (lambda messages, metadata: 1, "they are messages, metadata"),
    "fields by position alone": (lambda text, answer, metadata, /: 1, "for its parameter 'metadata'"),
    "of others": (lambda text, answer, ground_truth: 1, "'ground_truth'.*it may name source, "),
    "keywords alone": (lambda *, response_text, answer: 1, "first two parameters"),
    "by place": (eval("lambda r, a, metadata, /: 1"), "'metadata'"),
    "a number": (3, "it is no function, but of the type int"),
}


@pytest.mark.parametrize("case", SIGNATURES)
def test_fields_are_asked_for_by_the_names_of_parameters(case):
    function, expected = SIGNATURES[case]
    if isinstance(expected, tuple):
        assert asked_fields(function) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            asked_fields(function)
