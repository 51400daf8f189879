import json

import pytest

from megatron_prime.data.rows import DataRow
from megatron_prime.data.rows.row import is_blank, is_missing_text


def row(fields, tmp_path):
    return DataRow(fields, tmp_path / "a.jsonl", 5)


def test_dots_descend_through_objects_and_json_text(tmp_path):
    fields = {"a": {"b": {"c": 1}}, "text": json.dumps({"b": [2]}), "x.y": 3}
    assert row(fields, tmp_path).field("a.b.c") == 1
    assert row(fields, tmp_path).field("text.b") == [2]
    assert row(fields, tmp_path).field("text") == fields["text"]
    assert row(fields, tmp_path).field("x.y") == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("b", r"row 5: no field 'b' .*the fields are \['a', 'n', 'text'\]"),
        ("a.c", r"no field 'c' in 'a'"),
        ("n.c", "'n' is a int"),
        ("text.c", "'text' is text that is not JSON"),
    ],
)
def test_a_missing_field_is_explained(tmp_path, name, reason):
    with pytest.raises(ValueError, match=reason):
        row({"a": {"b": 1}, "n": 2, "text": "{"}, tmp_path).field(name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x \ud835", "half of a character"),
        ("\udc80", "half of a character"),
        ("a\0", "a NUL character"),
        ("é\0", "NUL"),
    ],
)
def test_text_with_what_is_no_character_is_damaged(tmp_path, text, reason):
    with pytest.raises(ValueError, match=f"a.jsonl, row 5: the prompt has {reason}|{reason}"):
        row({}, tmp_path).check_text("prompt", text)
    row({}, tmp_path).check_text("prompt", "é \U0001d435 \t")


def test_texts_that_tables_have_for_missing_values():
    assert all(map(is_missing_text, ("nan", "NaN ", "NaT", "<NA>", "#N/A", "null", "NULL")))
    assert not any(map(is_missing_text, ("None", "0", "nano", "inf", "", "n" * 10**6)))


def test_text_that_shows_nothing_is_blank():
    assert all(map(is_blank, ("", " \n", "\u00a0", "\u200b\ufeff ", "\u3000")))
    assert not any(map(is_blank, ("a", "\u200ba", " ∅ ")))
