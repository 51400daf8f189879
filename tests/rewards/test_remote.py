import pytest

from megatron_prime.config.tables.reward import RequestConfig
from megatron_prime.rewards.remote import token_of


def test_requests_have_no_token_by_default():
    assert token_of(RequestConfig(), "reward.judge") == ""


@pytest.mark.parametrize(
    ("value", "fault"),
    [(None, "is not set"), ("", "is not set"), ("a b", "without spaces"), ("é", "ASCII"), ("a\nb", "ASCII")],
)
def test_a_token_that_no_request_can_have_is_refused_without_being_shown(monkeypatch, value, fault):
    if value is None:
        monkeypatch.delenv("KEY", raising=False)
    else:
        monkeypatch.setenv("KEY", value)
    with pytest.raises(ValueError, match=f"reward.judge.token_variable = 'KEY': .*{fault}") as caught:
        token_of(RequestConfig(token_variable="KEY"), "reward.judge")
    assert not value or value not in str(caught.value)


def test_a_token_is_read_without_the_space_around_it(monkeypatch):
    monkeypatch.setenv("KEY", " s3cret\n")
    assert token_of(RequestConfig(token_variable="KEY"), "reward.http") == "s3cret"
