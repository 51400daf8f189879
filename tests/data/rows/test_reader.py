import pyarrow
import pyarrow.parquet
import pytest

from megatron_prime.data.rows import read_rows


def test_jsonl_rows_keep_line_numbers_across_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": "zwölf"}\n', encoding="utf-8")
    assert [(row.number, dict(row.fields)) for row in read_rows(path)] == [(1, {"a": 1}), (3, {"a": "zwölf"})]


def test_parquet_returns_nested_values(tmp_path):
    path = tmp_path / "a.parquet"
    records = [
        {"prompt": [{"role": "user", "content": f"q{n}"}], "reward_model": {"ground_truth": str(n)}}
        for n in range(3)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    rows = list(read_rows(path))
    assert [dict(row.fields) for row in rows] == records
    assert [row.number for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl, row 2: not a JSON object"),
        ("a.jsonl", b"[1]\n", "row 1: a list where a JSON object"),
        ("a.jsonl", b'{"a": "\xff"}\n', "row 1: not a JSON object"),
        ("a.parquet", b"no parquet", "not readable as parquet"),
        ("a.tsv", b"a,b\n", "unknown type '.tsv'"),
        ("a.csv", b"a,b\n1\n", "row 1: 1 values for the 2 columns"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "row 2: 3 values for the 2 columns"),
        ("a.csv", b'a,b\n"1"2,3\n', "not readable as csv"),
    ],
)
def test_the_error_names_an_unreadable_file(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        list(read_rows(tmp_path / name))


def test_a_json_file_holds_a_list_or_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(' [{"a": 1},\n {"a": 2}, 3]')
    errors = []
    assert [(row.number, row.fields["a"]) for row in read_rows(path, errors.append)] == [(1, 1), (2, 2)]
    assert "row 3: a int where" in str(errors[0])
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert [(row.number, row.fields["a"]) for row in read_rows(path)] == [(1, 1), (2, 2)]
    path.write_text('[{"a": 1}')
    with pytest.raises(ValueError, match="not readable as JSON"):
        list(read_rows(path))


def test_csv_rows_are_text_and_may_hold_line_breaks(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfproblem,answer\n"one,\ntwo",7\nthree,8\n')
    assert [(row.number, dict(row.fields)) for row in read_rows(path)] == [
        (1, {"problem": "one,\ntwo", "answer": "7"}),
        (2, {"problem": "three", "answer": "8"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "good"),
    [("a.jsonl", b'{"a": 1}\n{\n[2]\n{"a": 3}\n', [1, 4]), ("a.csv", b"a\n1\n2,2\n3\n", [1, 3])],
)
def test_lines_without_a_record_are_reported_and_reading_continues(tmp_path, name, content, good):
    (tmp_path / name).write_bytes(content)
    errors = []
    assert [row.number for row in read_rows(tmp_path / name, errors.append)] == good
    assert [str(error).partition(":")[0].rpartition(" ")[2] for error in errors] == [
        str(number) for number in range(1, good[-1]) if number not in good
    ]


def test_a_missing_file_and_a_folder_have_different_errors(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is a directory"):
        read_rows(tmp_path)
