"""Hides credentials and query strings of URLs, which may be secrets, in everything that a run writes or prints."""

import re
from base64 import b64encode
from collections.abc import Collection
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import PlainSerializer

HIDDEN = "***"
_URL = re.compile(
    # A quoted URL ends at the same quote, any other one at white space. A path has one slash where a URL has two.
    r"""(?P<quote>["'])?(?P<scheme>[a-z][a-z0-9+.-]{1,30}:/{1,3})"""
    r"""(?P<rest>(?(quote)(?:(?!(?P=quote)).)*|\S*))""",
    re.IGNORECASE,
)
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?[^\w@]*")
"""A host and its port, and what may follow it in a sentence."""
Value = TypeVar("Value")


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """Return a text without credentials, query strings and fragments of the URLs in it, and without some secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _URL.sub(lambda url: f"{url['quote'] or ''}{url['scheme']}{_without_secrets(url['rest'])}", text)


def redact_all(value: Value) -> Value:
    """Return JSON values with every string in them redacted."""
    found: Any = value
    if isinstance(value, str):
        found = redact(value)
    elif isinstance(value, dict):
        found = {key: redact_all(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(redact_all(item) for item in value)
    return found


def secrets_of(url: str) -> set[str]:
    """Return the parts of a URL that must not be shown, in each form in which an answer or error may repeat them."""
    parts = urlsplit(url)
    userinfo = parts.netloc.rpartition("@")[0]
    pairs = [pair.partition("=") for pair in parts.query.split("&")]
    found = {userinfo, *userinfo.split(":", 1)[1:], parts.query, parts.fragment}
    # The form in which a request has it: a name without a password gets an empty one.
    basic = unquote(userinfo if ":" in userinfo else f"{userinfo}:").encode()
    found |= {b64encode(basic).decode()} if userinfo else set()
    found |= {value if equals else name for name, equals, value in pairs}
    # Hiding a text of one or two letters would leave a message without sense, and show where it was.
    return {form for text in found for form in (text, unquote(text)) if len(form) > 2}


def _without_secrets(rest: str) -> str:
    """Hide the secret parts of a URL behind its scheme."""
    end = re.search(r"[/?#\\]", rest)
    authority, tail = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    if "@" in tail or not _HOST.fullmatch(authority.rpartition("@")[2]):
        # It may be a password with one of these characters, which should have been escaped, or be cut off.
        return HIDDEN
    userinfo, at, host = authority.rpartition("@")
    path, mark, _ = re.split(r"([?#])", f"{tail}?", maxsplit=1)
    return f"{HIDDEN if userinfo else ''}{at}{host}{path}{mark + HIDDEN if len(path) < len(tail) else ''}"


Address = Annotated[str, PlainSerializer(redact)]
"""A text that may be a URL; it is redacted wherever a configuration is written."""
