"""Texts and values lose the secrets of the URLs in them, and nothing else."""

import pytest

from megatron_prime.config.redaction import Address, redact, redact_all, secrets_of
from megatron_prime.config.section import Section

CASES = {
    "http://h:1/v": "http://h:1/v",
    "http://u:p@h/v?t=s#f": "http://***@h/v?***",
    "https://token@h:1": "https://***@h:1",
    "http://h/v#f": "http://h/v#***",
    "http://h?x=1": "http://h?***",
    "http://h/v?": "http://h/v?***",
    "http://[::1]:8/v?x": "http://[::1]:8/v?***",
    "HTTP://u:p@h": "HTTP://***@h",
    "wss://u:p@h and s3://k:s@b/c?v=1": "wss://***@h and s3://***@b/c?***",
    "see 'http://u:p@h/v?q=a b' now": "see 'http://***@h/v?***' now",
    "\"http://u:p'x@h/v?t='s\" end": '"http://***@h/v?***" end',
    "reward.verifier=http://u:p@h/v?t=s more": "reward.verifier=http://***@h/v?*** more",
    "('http://a?x=1', 'http://b?y=2')": "('http://a?***', 'http://b?***')",
    'a="http://u:p@h/?q=1" b=2': 'a="http://***@h/?***" b=2',
    "(http://u:p@h/v?q): no answer": "(http://***@h/v?*** no answer",
    # As a path, a URL has lost one of its slashes.
    "http:/u:p@h/d.jsonl": "http:/***@h/d.jsonl",
    # Characters that a password should have escaped.
    "http://u:p/w@h/x": "http://***",
    "http://u:p?w@h/x": "http://***",
    "http://u:p#w@h/x": "http://***",
    "http://u:p@w@h/x": "http://***@h/x",
    "http://u:p\\w@h/x": "http://***",
    "http://h/@scope/x": "http://***",
    "http://u:p": "http://***",
    "'http://u:9p/x'": "'http://***'",
    "http://a:1, http://[::1]:2; (http://c:3) http://d: http://e:4: f": (
        "http://a:1, http://[::1]:2; (http://c:3) http://d: http://e:4: f"
    ),
    "file /a/b, c:/d?e, 1:/2?3 and a@b.c?d": "file /a/b, c:/d?e, 1:/2?3 and a@b.c?d",
    "http://": "http://",
    "": "",
}


@pytest.mark.parametrize("text", CASES)
def test_secrets_of_urls_are_hidden(text):
    assert redact(text) == CASES[text]
    assert redact(CASES[text]) == CASES[text]


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "s3", "postgresql+psycopg"])
@pytest.mark.parametrize("secret", ["S3cr3t", "S3cr3t!$&()*+,;=:-._~", "S3cr3t%40%2F%3F", "S3cr3t'"])
@pytest.mark.parametrize("form", ["{}", "x={}", "{!r}", "[{!r}]", "a {!r} b", "<{}>", "(see {})", "\n{}\n"])
def test_no_part_of_a_secret_is_left(scheme, secret, form):
    for url in (
        f"{scheme}://user:{secret}@host/p",
        f"{scheme}://{secret}@host",
        f"{scheme}://host/p?key={secret}",
    ):
        shown = redact(form.format(url))
        assert "S3" not in shown and "host" in shown


def test_values_are_redacted_within_each_string():
    value = {"a": ["http://u:p@h", 1, None, {"b": ("http://h?x", True)}], "c": 0.5}
    assert redact_all(value) == {"a": ["http://***@h", 1, None, {"b": ("http://h?***", True)}], "c": 0.5}


def test_given_secrets_are_hidden_in_every_form():
    secrets = secrets_of("http://us:pa%40ss@h/v?token=abc&x=1&flagged#frag")
    for text in (
        "us:pa@ss",
        "pa%40ss",
        "pa@ss",
        "abc",
        "flagged",
        "token=abc&x=1&flagged",
        "frag",
        "dXM6cGFAc3M=",
    ):
        assert redact(f"the path /v?{text} is unknown", secrets) == "the path /v?*** is unknown"
    assert redact("x=1", secrets) == "x=1" and secrets_of("http://h:1/v") == set()


def test_an_address_is_redacted_when_it_is_written():
    class Table(Section):
        url: Address
        many: dict[str, Address]
        rows: tuple[Address, ...]

    url, shown = "http://u:p@h/v?q", "http://***@h/v?***"
    table = Table(url=url, many={"a": url}, rows=(url,))
    assert (table.url, table.many, table.rows) == (url, {"a": url}, (url,))
    assert table.model_dump() == {"url": shown, "many": {"a": shown}, "rows": (shown,)}
    assert "u:p" not in table.model_dump_json()
