import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from megatron_prime.observability.rollout_log.reader import RolloutFile, logged_steps
from megatron_prime.observability.rollout_log.schema import (
    COLUMN_NAMES,
    COLUMNS,
    METADATA_KEY,
    FileInfo,
    step_path,
)
from megatron_prime.observability.rollout_log.writer import ROWS_PER_BLOCK, write_rollouts
from tests.support.logged_rollouts import logged_response

NULLABLE = [column.name for column in COLUMNS if column.is_optional]


@pytest.fixture
def path(tmp_path):
    path = step_path(tmp_path, 12)
    rows = [logged_response(group, sample, 5) for group in range(ROWS_PER_BLOCK) for sample in range(2)]
    write_rollouts(path, FileInfo(12, policy_version=11), rows)
    return path


def test_rows_come_back_as_written(path):
    rows = list(RolloutFile(path).rows())
    assert len(rows) == RolloutFile(path).num_rows == 2 * ROWS_PER_BLOCK
    for number in (0, 1, 2 * ROWS_PER_BLOCK - 1):
        written = logged_response(number // 2, number % 2, 5)
        assert list(rows[number]) == list(COLUMN_NAMES)
        for name, value in written.items():
            np.testing.assert_array_equal(rows[number][name], value, err_msg=name)


def test_some_columns_are_read_alone(path):
    file = RolloutFile(path)
    assert file.table(["group", "filter"]).column_names == ["group", "filter"]
    assert next(file.rows(["sample"])) == {"sample": 0}
    assert file.info == FileInfo(12, policy_version=11)


def test_values_that_were_not_computed_are_null(tmp_path):
    path = tmp_path / "a.parquet"
    row = {name: value for name, value in logged_response().items() if name not in NULLABLE}
    write_rollouts(path, FileInfo(1), [row])
    (read,) = RolloutFile(path).rows()
    assert [name for name, value in read.items() if value is None] == NULLABLE


def test_a_step_may_have_no_rows(tmp_path):
    write_rollouts(tmp_path / "a.parquet", FileInfo(1), [])
    assert list(RolloutFile(tmp_path / "a.parquet").rows()) == []


def test_steps_of_a_run_are_listed_in_order(tmp_path, path):
    for step in (100_000_000, 3):
        write_rollouts(step_path(tmp_path, step), FileInfo(step), [])
    (tmp_path / ".step-00000004.parquet.host.1.tmp").touch()
    (tmp_path / "notes.txt").touch()
    assert list(logged_steps(tmp_path)) == [3, 12, 100_000_000]
    assert logged_steps(tmp_path)[12] == path
    assert logged_steps(tmp_path / "absent") == {}


def test_cut_files_are_refused_by_name(path):
    content = path.read_bytes()
    for length in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"step-00000012\.parquet is damaged"):
            RolloutFile(path)


def test_a_flipped_bit_is_found(path):
    chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(COLUMN_NAMES.index("advantages"))
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 20] ^= 16
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step-00000012\.parquet is damaged"):
        RolloutFile(path).table()


def _with_metadata(path, metadata):
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "not a rollout log"),
        ({METADATA_KEY: b'{"schema": 9, "step": 1}'}, "version 9 of the format"),
        ({METADATA_KEY: b"{"}, "its description is damaged"),
    ],
)
def test_other_files_are_refused(path, metadata, message):
    _with_metadata(path, metadata)
    with pytest.raises(ValueError, match=message):
        RolloutFile(path)


def test_a_file_without_a_column_is_refused(path):
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.drop_columns(["advantages"]), path)
    with pytest.raises(ValueError, match=r"no column advantages of type list<"):
        RolloutFile(path)


def test_columns_that_an_older_file_lacks_are_null(path):
    later = [column.name for column in COLUMNS if column.is_later]
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.drop_columns(later), path)
    file = RolloutFile(path)
    assert next(file.rows(["sample", *later])) == {"sample": 0, **dict.fromkeys(later)}
    assert set(file.table().column_names) == set(COLUMN_NAMES)
    assert file.table(["group"]).column_names == ["group"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.parquet does not exist"):
        RolloutFile(tmp_path / "absent.parquet")


def test_reading_needs_no_torch():
    code = "import sys; import megatron_prime.observability.rollout_log; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
