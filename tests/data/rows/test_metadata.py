import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from megatron_prime.data.rows import DataRow
from megatron_prime.data.rows.json_text import parse_json
from megatron_prime.data.rows.metadata import MAX_VALUE_CHARS, MetadataReader


def metadata(fields, *columns):
    reader = MetadataReader(columns)
    return json.loads(reader.text(DataRow(fields, Path("a.jsonl"), 1))), reader.log_lines()


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = {
    # value in the file -> in the metadata
    "text": ("né \ud800 \U0001f600", "né \ud800 \U0001f600"),
    "null": (None, None),
    "NaN": (float("nan"), None),
    "infinite, within": ({"a": [float("-inf"), 1.5]}, {"a": [None, 1.5]}),
    "large number": (10**30, 10**30),
    "written digits": (parse_json("0.1000000000000000000001"), 0.1),
    "true": (True, True),
    "decimal": (Decimal("1.10"), "1.10"),
    "date": (date(2024, 2, 29), "2024-02-29"),
    "time": ([datetime(2024, 2, 29, 1)], ["2024-02-29T01:00:00"]),
    "pairs of a parquet map": ([("a", 1)], [["a", 1]]),
    "keys": ({1: "a"}, {"1": "a"}),
    "longest": ("x" * (MAX_VALUE_CHARS - 2), "x" * (MAX_VALUE_CHARS - 2)),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_become_json(case):
    value, expected = VALUES[case]
    assert metadata({"prompt": "q", "x": value}, "prompt") == ({"x": expected}, [])


@pytest.mark.parametrize("value", [b"bytes", "x" * MAX_VALUE_CHARS, {1, 2}, nested(100_000)], ids=type)
def test_what_is_no_json_or_too_long_is_left_out_and_counted(value):
    found, lines = metadata({"x": value, "y": 1})
    assert found == {"y": 1}
    (line,) = lines
    assert line.startswith("metadata: the column 'x' is left out of 1 rows: ")


@pytest.mark.parametrize(
    ("column", "rest"),
    [
        ("prompt", {"a": {"b": 1, "c": 2}, "a.d": 3}),
        ("a.b", {"prompt": "q", "a": {"c": 2}, "a.d": 3}),
        ("a", {"prompt": "q", "a.d": 3}),
        ("a.d", {"prompt": "q", "a": {"b": 1, "c": 2}}),
        ("prompt.x", {"prompt": "q", "a": {"b": 1, "c": 2}, "a.d": 3}),
        ("none", {"prompt": "q", "a": {"b": 1, "c": 2}, "a.d": 3}),
    ],
)
def test_what_the_problem_has_is_no_metadata(column, rest):
    fields = {"prompt": "q", "a": {"b": 1, "c": 2}, "a.d": 3}
    assert metadata(fields, column)[0] == rest
    assert fields == {"prompt": "q", "a": {"b": 1, "c": 2}, "a.d": 3}
