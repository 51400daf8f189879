import pytest

from megatron_prime.rewards import VerificationStatus, VerifierPool
from megatron_prime.rewards.user_function import UserFunction

MODULE = """
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
        outcomes = pool.verify_all([("abcd", "8"), ("", "8"), ("abc", "zero")])
    assert [outcome.reward for outcome in outcomes[:2]] == [0.5, 0.0]
    assert outcomes[2].status is VerificationStatus.ERROR
    assert "could not convert" in outcomes[2].detail


@pytest.mark.parametrize(("name", "fault"), [("wrong", "outside"), ("nothing", "TypeError")])
def test_an_invalid_reward_is_an_error(my_rewards, name, fault):
    with my_rewards(name) as pool:
        (outcome,) = pool.verify_all([("a", "1")])
    assert outcome.status is VerificationStatus.ERROR
    assert fault in outcome.detail


def test_a_module_that_no_longer_loads_is_not_tried_for_each_response(my_rewards, tmp_path):
    with my_rewards("die") as pool:
        (tmp_path / "my_rewards.py").write_text("raise RuntimeError('the tables are gone')")
        outcomes = pool.verify_all([("a", "1")] * 40)
        assert all("the tables are gone" in outcome.detail for outcome in outcomes)
        assert pool.counts["error"] == 40
        (tmp_path / "my_rewards.py").write_text(MODULE)
        assert "killed by signal 9" in pool.verify_all([("a", "1")])[0].detail


def test_it_is_killed_at_the_deadline(my_rewards):
    with my_rewards("slow", seconds=0.5) as pool:
        (outcome,) = pool.verify_all([("a", "1")])
    assert outcome.status is VerificationStatus.TIMEOUT


def test_an_error_is_shown_with_its_traceback_in_the_users_file(my_rewards, tmp_path):
    with my_rewards("length") as pool:
        (outcome,) = pool.verify_all([("abc", "zero")])
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
