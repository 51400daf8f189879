import pyarrow
import pyarrow.parquet
import pytest

from megatron_prime.data.rows import read_rows
from megatron_prime.data.rows.parquet_files import PARQUET_BATCH_ROWS


def write(path, names, columns):
    arrays = [pyarrow.array(column) if isinstance(column, list) else column for column in columns]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=names), path)
    return path


def test_a_value_without_representation_makes_a_bad_row(tmp_path):
    number = PARQUET_BATCH_ROWS + 2
    texts = pyarrow.array(["aaaa"] * (number + 1))
    _, offsets, data = texts.buffers()
    damaged = bytearray(data.to_pybytes())
    damaged[4 * (number - 1)] = 0xFF
    texts = pyarrow.StringArray.from_buffers(len(texts), offsets, pyarrow.py_buffer(bytes(damaged)))
    far = pyarrow.array([0] * number + [2**62], pyarrow.timestamp("us"))
    path = write(tmp_path / "a.parquet", ["text", "day"], [texts, far])
    errors: list[ValueError] = []
    assert len(list(read_rows(path, errors.append))) == number - 1
    assert [str(error).split(": ")[0] for error in errors] == [
        f"{path}, row {number}",
        f"{path}, row {number + 1}",
    ]
    assert "can't decode byte 0xff" in str(errors[0])


def test_a_column_name_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.parquet has several columns named answer"):
        list(read_rows(write(tmp_path / "a.parquet", ["p", "answer", "answer"], [["a"], ["1"], ["2"]])))


@pytest.mark.parametrize("damage", ["page", "cut", "empty"])
def test_a_damaged_file_is_named(damage, tmp_path):
    path = write(tmp_path / "a.parquet", ["p"], [[f"question {n}" for n in range(1000)]])
    content = bytearray(path.read_bytes())
    if damage == "page":
        content[30:60] = b"\xff" * 30
    path.write_bytes({"page": content, "cut": content[:-20], "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"data file .*a\.parquet is not readable as parquet"):
        list(read_rows(path))


def test_categories_are_their_texts(tmp_path):
    column = pyarrow.array(["x", "y", "x"]).dictionary_encode()
    rows = read_rows(write(tmp_path / "a.parquet", ["p"], [column]))
    assert [row.fields["p"] for row in rows] == ["x", "y", "x"]


def test_numbers_of_32_bits_have_the_digits_that_were_written(tmp_path):
    number = pyarrow.float32()
    nested = pyarrow.array(
        [{"a": [0.7], "b": "x"}, None], pyarrow.struct({"a": pyarrow.list_(number), "b": "string"})
    )
    path = write(tmp_path / "a.parquet", ["p", "q"], [pyarrow.array([0.1, None], number), nested])
    assert [row.fields for row in read_rows(path)] == [
        {"p": 0.1, "q": {"a": [0.7], "b": "x"}},
        {"p": None, "q": None},
    ]
