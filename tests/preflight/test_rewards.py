"""Verifiers that can and cannot be used, each with a message that names the option."""

import pytest

from megatron_prime.config.tables.reward import RewardConfig
from megatron_prime.preflight.rewards import verifier_faults


def faults(**fields):
    return list(verifier_faults(RewardConfig(**fields)))


@pytest.mark.parametrize(
    "verifier", ["math", "exact_match", "json:loads", "os.path:join", "http://localhost:1/x", "https://host"]
)
def test_a_verifier_that_can_be_used_has_no_fault(verifier):
    assert faults(verifier=verifier) == []


@pytest.mark.parametrize(
    ("verifier", "fault"),
    [
        ("maths", "known are code, exact_match, judge, math; a function is package.module:function"),
        ("function", "known are code, exact_match, judge, math"),
        ("no_such_module_x:f", "there is no module no_such_module_x"),
        ("no_such_package_x.y:f", "there is no module no_such_package_x.y"),
        ("json:", "not of the form"),
        ("a b:c", "not of the form"),
        ("ftp://host", "no URL of the form"),
        ("http://", "no URL of the form"),
        ("http://host:99999/x", "no URL of the form"),
        ("http://a host/x", "no URL of the form"),
    ],
)
def test_a_verifier_that_cannot_be_used_is_refused(verifier, fault):
    (message,) = faults(verifier=verifier)
    assert fault in message
    assert message.startswith(f"reward.verifier = {verifier!r}")


def test_every_route_is_checked():
    assert faults(verifier="auto", routes={"math": "math", "gsm8k": "exact_match"}) == []
    (message,) = faults(verifier="auto", routes={"math": "maths"})
    assert message.startswith("reward.routes = 'maths'")


def test_code_needs_bubblewrap_or_the_risk_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (message,) = faults(verifier="auto")
    assert "apt-get install bubblewrap" in message
    assert faults(verifier="code", code={"sandbox": "none-i-accept-the-risk"}) == []
    (message,) = faults(
        verifier="code", code={"sandbox": "none-i-accept-the-risk", "readable_paths": [tmp_path / "x"]}
    )
    assert message.endswith("x does not exist")


@pytest.mark.parametrize(
    "verifier",
    [
        "http://host:SECRET/x",
        "http://[::1/SECRET@",
        "ftp://u:SECRET@host",
        "http://u:SECRET",
        "http://u:SEC RET@host",
        "http:///?SECRET",
        'http://u:SE"CRET@host',
    ],
)
def test_a_refused_address_is_shown_without_its_secrets(verifier):
    for fields in ({"verifier": verifier}, {"verifier": "auto", "routes": {"math": verifier}}):
        (message,) = faults(**fields)
        assert "no URL of the form" in message and "SE" not in message


JUDGE = {"url": "http://localhost:1/v1", "model": "m"}
JUDGES = {
    # changes of the table -> the only fault, or none
    "usable": ({}, None),
    "with a path and a query": ({"url": "https://host/openai?api-version=1"}, None),
    "no address": ({"url": ""}, "reward.judge.url is missing: the address of an OpenAI-compatible server"),
    "no model": ({"model": ""}, "reward.judge.model is missing"),
    "not HTTP": ({"url": "host:30000/v1"}, "reward.judge.url = 'host:30000/v1' is no URL of the form"),
    "whole path": ({"url": "http://h/v1/chat/completions"}, "leave out /chat/completions, which is added"),
    "no file": ({"template_file": "none.jinja"}, "reward.judge.template_file = none.jinja cannot be read"),
    "no token": ({"token_variable": "NO_SUCH_VARIABLE_X"}, "this environment variable is not set"),
}


@pytest.mark.parametrize("case", JUDGES)
def test_a_judge_that_cannot_be_asked_is_refused(case):
    changes, fault = JUDGES[case]
    found = faults(verifier="judge", judge=JUDGE | changes)
    assert len(found) == (fault is not None), found
    assert fault is None or fault in found[0]
