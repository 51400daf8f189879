"""Paths that cannot be data files."""

import pytest

from megatron_prime.data.files import SUFFIXES, data_file_fault


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_type_is_accepted(suffix, tmp_path):
    (tmp_path / f"a{suffix}").touch()
    assert data_file_fault(tmp_path / f"a{suffix}") is None


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.tsv", "a"])
def test_other_types_are_refused(name, tmp_path):
    (tmp_path / name).touch()
    assert data_file_fault(tmp_path / name).endswith("use .jsonl, .json, .parquet or .csv")


def test_missing_files_and_directories_are_refused(tmp_path):
    assert data_file_fault(tmp_path / "x.jsonl").startswith("does not exist")
    assert data_file_fault(tmp_path).startswith("is a directory, not a file")
