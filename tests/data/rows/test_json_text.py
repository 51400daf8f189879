import json
import math

import pytest

from megatron_prime.data.rows.json_text import parse_json, parse_json_at, shown

DEEP = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "nested too deeply"),
        ('{"a": ' * 20_000 + "1" + "}" * 20_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"b": [{"a": 1, "a": null}]}', "the key 'a' occurs twice"),
        ('{"a": 1,}', "property name"),
        ("[1,]", "Expecting value"),
        ('{"a": 1} {"a": 2}', "Extra data"),
        ("{'a': 1}", "property name"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
        ("", "Expecting value"),
    ],
)
def test_text_that_is_not_strictly_json_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_values_are_those_of_json():
    assert parse_json('{"a": [1, 2.5, null, "\\ud835"]}') == {"a": [1, 2.5, None, "\ud835"]}
    assert parse_json('{"a": 1, "a": 1}') == {"a": 1}
    assert math.isnan(parse_json("NaN"))
    assert parse_json_at('x {"a": 1} y', 2) == ({"a": 1}, 10)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json_at(DEEP, 0)


def test_a_number_keeps_its_digits():
    for text in (
        "12345678901234567890.5",
        "0.12345678901234567890",
        "-1.00000000000000000001e-30",
        "0.1",
        "27.0",
    ):
        number = parse_json(text)
        assert str(number) == text
        assert number == float(text) and isinstance(number, float)
    assert json.dumps(parse_json("[12345678901234567890.5]")) == "[1.2345678901234567e+19]"


def test_a_value_is_shown_shortly_however_large_or_deep_it_is():
    deep: list = []
    for _ in range(20_000):
        deep = [deep]
    assert all(len(shown(value)) < 500 for value in ("x" * 10**6, deep, [1] * 10**6, {"a": "b" * 10**6}))
    assert shown({"role": "user"}) == "{'role': 'user'}"
