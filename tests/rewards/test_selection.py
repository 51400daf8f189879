import json
import sys

import pytest

from megatron_prime.config.tables.reward import RewardConfig
from megatron_prime.rewards.http_endpoint import HttpEndpoint
from megatron_prime.rewards.selection import RewardPools, answer_check, build_pool
from tests.support.samples import samples
from tests.support.sandbox_probe import needs_sandbox

SUM = json.dumps({"inputs": ["13 29\n"], "outputs": ["42\n"]})
PROGRAM = "```python\nprint(sum(map(int, input().split())))\n```"


def test_a_single_verifier_verifies_everything():
    with RewardPools(RewardConfig(verifier="exact_match")) as pools:
        outcomes = pools.verify_all(samples([("1 2", "2", "any", "thing"), ("1 2", "1", "", "")]))
        assert [outcome.reward for outcome in outcomes] == [1.0, 0.0]
        assert pools.verify_all([]) == []
        assert pools.counts == {"ok": 2, "timeout": 0, "error": 0, "restarts": 0}


@needs_sandbox
def test_auto_routes_by_source_and_then_by_ability():
    routes = {"math": "math", "code": "code", "toy": "exact_match"}
    code = {"test_timeout_s": 20.0, "total_timeout_s": 40.0}
    reward = RewardConfig(verifier="auto", routes=routes, timeout_s=30.0, code=code)
    with RewardPools(reward) as pools:
        outcomes = pools.verify_all(
            samples(
                [
                    (PROGRAM, SUM, "taco", "code"),
                    (r"\boxed{0.5}", "1/2", "numina", "math"),
                    ("so 0.5", "0.5", "toy", "math"),
                    (r"\boxed{7}", "1/2", "", "math"),
                ]
            )
        )
        assert [outcome.reward for outcome in outcomes] == [1.0, 1.0, 1.0, 0.0]
        assert pools.counts["ok"] == 4
        with pytest.raises(ValueError, match=r"neither the source 'x' nor the ability 'y'.*'toy'"):
            pools.verify_all(samples([("a", "b", "x", "y")]))


def test_an_import_path_and_a_url_are_verifiers():
    with RewardPools(RewardConfig(verifier="operator:eq", timeout_s=30.0)) as pools:
        outcomes = pools.verify_all(samples([("a", "a", "", ""), ("a", "b", "", "")]))
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0]
    assert isinstance(build_pool("http://localhost:1/verify", RewardConfig()), HttpEndpoint)


def test_a_failed_start_leaves_no_processes():
    routes = {"a": "math", "b": "no_such_module_x:f"}
    with pytest.raises(RuntimeError, match="does not start"):
        RewardPools(RewardConfig(verifier="auto", routes=routes))


def test_the_package_that_workers_import_needs_no_torch():
    import subprocess

    program = "import sys, megatron_prime.rewards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


CHECKED = {
    # verifier, ability of the row, answer -> the reason why it is refused, or None
    "tests": ("code", "", SUM, None),
    "no tests": (
        "code",
        "",
        "42",
        "the verifier 'code' cannot use the answer: .*lists of inputs and outputs",
    ),
    "by ability": ("auto", "code", "42", "the verifier 'code' cannot use the answer"),
    "mathematics": ("auto", "math", "42", None),
    "no mathematics": ("math", "", " ", "the verifier 'math' cannot use the answer: .*blank"),
    "nested": ("math", "", '["1", ' + "[" * 100_000, "the verifier 'math' cannot use the answer"),
    "no route": ("auto", "poetry", "42", None),
    "blank": ("exact_match", "", " ", "is blank"),
    "a function": ("operator:eq", "", "", None),
    "a server": ("http://localhost:1/verify", "", "", None),
}


@pytest.mark.parametrize("case", CHECKED)
def test_answers_that_no_verifier_can_use_are_refused(case):
    verifier, ability, answer, reason = CHECKED[case]
    check = answer_check(RewardConfig(verifier=verifier))
    if reason is None:
        check("", ability, answer)
    else:
        with pytest.raises(ValueError, match=reason):
            check("", ability, answer)
