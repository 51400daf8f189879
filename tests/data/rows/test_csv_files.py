import csv
import io

import pytest

from megatron_prime.data.rows import read_rows

NAMES = ["prompt", "answer"]


def written(*rows, **form) -> bytes:
    text = io.StringIO()
    csv.writer(text, **form).writerows(rows)
    return text.getvalue().encode()


GOOD = {
    "plain": written(NAMES, ["a", "1"], ["b", "2"]),
    "byte order mark": b"\xef\xbb\xbf" + written(NAMES, ["a", "1"], ["b", "2"]),
    "line ends of Unix": written(NAMES, ["a", "1"], ["b", "2"], lineterminator="\n"),
    "line ends of old computers": written(NAMES, ["a", "1"], ["b", "2"], lineterminator="\r"),
    "all quoted": written(NAMES, ["a", "1"], ["b", "2"], quoting=csv.QUOTE_ALL),
    "blank lines": b"\n\nprompt,answer\n\na,1\n\nb,2\n\n",
}


@pytest.mark.parametrize("case", GOOD)
def test_rows_are_found_in_each_form(case, tmp_path):
    (tmp_path / "a.csv").write_bytes(GOOD[case])
    rows = [(row.number, dict(row.fields)) for row in read_rows(tmp_path / "a.csv")]
    assert rows == [(1, {"prompt": "a", "answer": "1"}), (2, {"prompt": "b", "answer": "2"})]


def test_values_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_bytes(written(NAMES, ["x" * 300_000, "1"]))
    (row,) = read_rows(tmp_path / "a.csv")
    assert row.fields["prompt"] == "x" * 300_000


BAD_ROWS = {
    # content of the second of three rows -> reason
    "too few": (b"a\r\n", "1 values for the 2 columns"),
    "too many": (b"a,1,2\r\n", "3 values for the 2 columns"),
    "names again": (b"prompt,answer\r\n", "the column names again"),
    "quotation mark": (b'"a"b,1\r\n', "not readable as csv"),
    "lines in a quotation": (b'"a,1\r\nb,2\r\n"c,3\r\n', r"not readable as csv: .* \(lines 3 to 5\)"),
    "Latin-1": (b"\xe9,1\r\n", "it is not UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_read(case, tmp_path):
    line, reason = BAD_ROWS[case]
    (tmp_path / "a.csv").write_bytes(written(NAMES, ["a", "1"]) + line + written(["c", "3"]))
    errors: list[ValueError] = []
    rows = [(row.number, row.fields["prompt"]) for row in read_rows(tmp_path / "a.csv", errors.append)]
    assert rows == [(1, "a"), (3, "c")]
    assert len(errors) == 1
    with pytest.raises(ValueError, match=rf"a\.csv, row 2: {reason}"):
        list(read_rows(tmp_path / "a.csv"))


def test_a_quotation_without_end_names_the_lines_that_it_swallows(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'prompt,answer\na,1\n"b,2\nc,3\n')
    errors: list[ValueError] = []
    assert len(list(read_rows(tmp_path / "a.csv", errors.append))) == 1
    assert "row 2: not readable as csv: unexpected end of data (lines 3 to 4)" in str(errors[0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"prompt,answer,answer\na,1,2\n", "several columns named answer"),
        (b"prompt;answer\na;1\n", "separated by semicolons"),
        (b"prompt\tanswer\na\t1\n", "separated by tabs"),
        (b'"prompt"x,answer\na,1\n', "is not readable as csv"),
    ],
)
def test_a_file_whose_columns_are_unclear_is_refused(content, reason, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        list(read_rows(tmp_path / "a.csv", lambda error: None))
