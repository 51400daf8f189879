"""Strict parsing of JSON: whatever a parser would take or drop in silence is an error."""

import json
import reprlib
from typing import Any

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 120
_SHOWN.maxdict = _SHOWN.maxlist = 8
DEEP = "it is nested too deeply"


def parse_json(text: str) -> Any:  # noqa: ANN401 - JSON values
    """Return the value of JSON text; NaN and Infinity are taken, as Python writes them.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, or an object has a key twice with different values.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError(DEEP) from None


def parse_json_at(text: str, position: int) -> tuple[Any, int]:
    """Return the value that starts at a position of a text, and the position behind it; see `parse_json`."""
    try:
        return _DECODER.raw_decode(text, position)
    except RecursionError:
        raise ValueError(DEEP) from None


def shown(value: object) -> str:
    """Return a short form of a value for a message; its `repr` may have megabytes, or be nested too deeply."""
    return _SHOWN.repr(value)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        for key, value in pairs:
            # Compared as text: NaN does not equal itself.
            if json.dumps(value) != json.dumps(fields[key]):
                raise ValueError(f"the key {key!r} occurs twice with different values")
    return fields


class _WrittenFloat(float):
    """A number whose `str` has the digits of the file, because a float cannot hold all of them."""

    def __new__(cls, text: str) -> "_WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text  # type: ignore[attr-defined]
        return number

    def __str__(self) -> str:
        return self.text  # type: ignore[attr-defined]


def _float(text: str) -> float:
    # 15 digits, a point and a sign survive in a float.
    return float(text) if len(text) <= 17 else _WrittenFloat(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repetition, parse_float=_float)
