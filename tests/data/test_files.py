"""Paths that cannot be data files."""

import gzip
import re
from pathlib import Path

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


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"is compressed \(gzip\): unpack it"),
        ("a.parquet", b"\x28\xb5\x2f\xfd", r"is compressed \(zstd\)"),
        ("a.csv", b"PK\x03\x04...", "as spreadsheets are"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.json", b"PAR1....", r"must end in \.parquet"),
        ("a.parquet", b"ARROW1..", "write it as parquet"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "save it as UTF-8"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), "save it as UTF-8"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16-be"), "save it as UTF-8"),
        ("a.jsonl", b'{"a": "one \\u0000 and a raw \0"}', None),
        ("a.csv", b"\xef\xbb\xbfa,b\n", None),
        ("a.parquet", b"PAR1\0\0\0\0\0", None),
    ],
)
def test_content_of_another_type_is_recognised(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    fault = data_file_fault(tmp_path / name)
    assert fault is None if reason is None else re.search(reason, fault or ""), fault


def test_a_data_set_of_the_hub_is_answered_with_how_to_download_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "`hf download --repo-type dataset PRIME-RL/Eurus-2 --local-dir PRIME-RL/Eurus-2`" in (
        data_file_fault(Path("PRIME-RL/Eurus-2")) or ""
    )
    for path in ("data/train.jsonl", "train.parquet", "/a/b", "a/b/c"):
        assert "hf download" not in (data_file_fault(Path(path)) or "")


def test_hints_fit_the_cause(tmp_path):
    (tmp_path / "a.jsonl.gz").touch()
    assert "unpack it" in (data_file_fault(tmp_path / "a.jsonl.gz") or "")
    (tmp_path / "part-0.parquet").touch()
    assert (data_file_fault(tmp_path) or "").endswith(
        f"name its files one by one, such as {tmp_path}/part-0.parquet"
    )
