import json

import pytest

from megatron_prime.data.rows import read_rows

A, B, C = {"prompt": "a", "answer": "1"}, {"prompt": "b"}, {"prompt": "c"}
DEEP = "[" * 20_000 + "]" * 20_000


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def listed(*elements: str) -> bytes:
    return f"[{', '.join(elements)}]".encode()


GOOD = {
    # file name, content -> rows by number
    "lines": ("a.jsonl", lines(A, B)),
    "lines of Windows": ("a.jsonl", lines(A, B).replace(b"\n", b"\r\n")),
    "lines behind a byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + lines(A, B)),
    "joined files with byte order marks": (
        "a.jsonl",
        b"\xef\xbb\xbf" + lines(A) + b"\xef\xbb\xbf" + lines(B),
    ),
    "no last line end": ("a.jsonl", lines(A, B)[:-1]),
    "a character that others take for a line end": (
        "a.jsonl",
        lines({"p": "x"}, B).replace(b'"x"', '"\u2028"'.encode()),
    ),
    "lines in .json": ("a.json", lines(A, B)),
    "list": ("a.json", json.dumps([A, B]).encode()),
    "list behind a byte order mark": ("a.json", b"\xef\xbb\xbf" + json.dumps([A, B], indent=1).encode()),
    "list behind much space": ("a.json", b" \n" * 2000 + json.dumps([A, B]).encode() + b"\n\n"),
    "list of Windows": ("a.json", json.dumps([A, B], indent=1).replace("\n", "\r\n").encode()),
    "data": ("a.json", json.dumps({"data": [A, B]}).encode()),
    "data on several lines": (
        "a.json",
        json.dumps({"version": "1", "data": [A, B], "n": 2}, indent=2).encode(),
    ),
    "one row": ("a.json", json.dumps(A).encode()),
    "one row on several lines": ("a.json", json.dumps(A, indent=2).encode()),
    "one row of messages": ("a.json", json.dumps({"data": [{"role": "user", "content": "x"}]}).encode()),
}


@pytest.mark.parametrize("case", GOOD)
def test_rows_are_found_in_each_form(case, tmp_path):
    name, content = GOOD[case]
    (tmp_path / name).write_bytes(content)
    rows = list(read_rows(tmp_path / name))
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    fields = [dict(row.fields) for row in rows]
    if "messages" in case:
        assert fields == [{"data": [{"role": "user", "content": "x"}]}]
    elif "character" in case:
        assert fields == [{"p": "\u2028"}, B]
    else:
        assert fields == ([A] if "one row" in case else [A, B])


BAD_ROWS = {
    # file name, content -> reason of the second of three rows
    "deep line": ("a.jsonl", lines(A) + f'{{"x": {DEEP}}}\n'.encode() + lines(C), "nested too deeply"),
    "repeated key": ("a.jsonl", lines(A) + b'{"a": 1, "a": 2}\n' + lines(C), "'a' occurs twice"),
    "comma behind a line": ("a.jsonl", lines(A) + lines(B)[:-1] + b",\n" + lines(C), "Extra data"),
    "two objects on a line": ("a.jsonl", lines(A) + lines(B)[:-1] + lines(B) + lines(C), "Extra data"),
    "cut line": ("a.jsonl", lines(A) + b'{"prompt": "b\n' + lines(C), "not a JSON object"),
    "zero bytes": ("a.jsonl", lines(A) + b"\0" * 16 + b"\n" + lines(C), "not a JSON object"),
    "Latin-1": ("a.jsonl", lines(A) + b'{"prompt": "\xe9"}\n' + lines(C), "can't decode byte 0xe9"),
    "number": ("a.jsonl", lines(A, 5, C), "a int where a JSON object"),
    "null": ("a.jsonl", lines(A, None, C), "a NoneType where a JSON object"),
    "bad line in .json": ("a.json", lines(A) + b"{\n" + lines(C), "not a JSON object"),
    "deep element": (
        "a.json",
        listed(json.dumps(A), f'{{"x": {DEEP}, "y": "]}}"}}', json.dumps(C)),
        "nested too deeply",
    ),
    "comma in an element": (
        "a.json",
        listed(json.dumps(A), '{"x": "}\\"",}', json.dumps(C)),
        "not a JSON object",
    ),
    "repeated key in an element": (
        "a.json",
        listed(json.dumps(A), '{"x": 1, "x": 2}', json.dumps(C)),
        "'x' occurs twice",
    ),
    "list in a list": ("a.json", listed(json.dumps(A), "[1]", json.dumps(C)), "a list where a JSON object"),
    "number in data": ("a.json", json.dumps({"data": [A, 3, C]}).encode(), "a int where a JSON object"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_read(case, tmp_path):
    name, content, reason = BAD_ROWS[case]
    (tmp_path / name).write_bytes(content)
    errors: list[ValueError] = []
    assert [(row.number, row.fields) for row in read_rows(tmp_path / name, errors.append)] == [(1, A), (3, C)]
    assert len(errors) == 1
    assert str(errors[0]).startswith(f"{tmp_path / name}, row 2: ")
    assert reason in str(errors[0])
    with pytest.raises(ValueError, match="row 2: "):
        list(read_rows(tmp_path / name))


BAD_FILES = {
    "cut list": ("a.json", json.dumps([A, B]).encode()[:-3], "not readable as JSON"),
    "comma at the end": ("a.json", listed(json.dumps(A), ""), "not readable as JSON: Expecting value"),
    "no comma": ("a.json", b"[" + lines(A, B) + b"]", "no comma behind its element 1"),
    "two lists": ("a.json", json.dumps([A]).encode() * 2, "text follows its list"),
    "objects on several lines": (
        "a.json",
        "\n".join(json.dumps(row, indent=1) for row in (A, B)).encode(),
        "neither a list of objects nor",
    ),
    "splits": (
        "a.json",
        json.dumps({"train": [A], "test": [B]}, indent=1).encode(),
        r"object of lists \['train', 'test'\]",
    ),
    "Latin-1": ("a.json", b'[{"prompt": "\xe9"}]', "not readable as JSON: .*can't decode"),
    "list in .jsonl": (
        "a.jsonl",
        json.dumps([A], indent=1).encode(),
        r"row 1: .*belongs to a file that ends in \.json",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_without_readable_rows_is_refused(case, tmp_path):
    name, content, reason = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        list(read_rows(tmp_path / name))
