"""Every change of a checkpoint's files is detected."""

import hashlib
import json

import pytest

from megatron_prime.training.checkpoint.manifest import (
    entry_of,
    faults,
    read_manifest,
    share,
    unlisted,
    write_manifest,
    write_sums,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "policy").mkdir()
    for name, data in {
        "policy/__0_0.distcp": b"a" * 1000,
        "policy/common.pt": b"common",
        "run.json": b"{}",
    }.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_every_file_is_listed_with_size_and_checksum(folder):
    write_manifest(folder)
    entries = read_manifest(folder)
    assert sorted(entries) == ["policy/__0_0.distcp", "policy/common.pt", "run.json"]
    assert entries["run.json"] == {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    assert faults(folder, entries) == []


def test_checksums_of_the_writers_are_used_and_cleared(folder):
    write_sums(folder.glob("policy/*.distcp"), folder / "policy" / "__0.sums")
    expected = entry_of(folder / "policy" / "__0_0.distcp")
    # A change after the writer computed the checksum is damage, so the file must not be read again here.
    (folder / "policy" / "__0_0.distcp").write_bytes(b"b" * 1000)
    write_manifest(folder)
    assert read_manifest(folder)["policy/__0_0.distcp"] == expected
    assert not list(folder.rglob("*.sums"))
    (fault,) = faults(folder, read_manifest(folder))
    assert fault == "policy/__0_0.distcp has another checksum than when it was written"


def test_damaged_files_are_named(folder):
    write_manifest(folder)
    (folder / "run.json").unlink()
    (folder / "policy" / "common.pt").write_bytes(b"comm")
    assert faults(folder, read_manifest(folder)) == [
        "policy/common.pt has 4 bytes instead of 6",
        "run.json is missing",
    ]


@pytest.mark.parametrize("text", [None, "", "[]", '{"files": 3}', '{"files": {"a": {}}}'])
def test_a_malformed_manifest_is_refused(folder, text):
    if text is not None:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        read_manifest(folder)


def test_shares_of_files_are_complete_disjoint_and_even():
    entries = {f"file{size}": {"bytes": size, "sha256": ""} for size in range(1, 10)}
    shares = [share(entries, 3, index) for index in range(3)]
    assert sorted(name for part in shares for name in part) == sorted(entries)
    sizes = [sum(entry["bytes"] for entry in part.values()) for part in shares]
    assert max(sizes) - min(sizes) <= 6
    assert json.dumps(share(entries, 1, 0), sort_keys=True) == json.dumps(entries, sort_keys=True)


@pytest.mark.parametrize("lost", ["policy/__0_0.distcp", "policy/common.pt", "run.json"])
@pytest.mark.parametrize("file_too", [False, True])
def test_a_manifest_that_lost_an_entry_is_refused(lost, file_too, folder):
    (folder / "rng.pt").write_bytes(b"states")
    write_manifest(folder)
    assert unlisted(folder, read_manifest(folder)) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][lost]
    if file_too:
        (folder / lost).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="its entries are not those that were written"):
        read_manifest(folder)
    # An earlier version wrote no checksum of the manifest; there the files tell.
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if not file_too or lost == "run.json":
        assert unlisted(folder, read_manifest(folder)) == [f"{lost} is not listed in manifest.json"]


def test_files_that_others_left_are_no_damage(folder):
    (folder / "rng.pt").write_bytes(b"states")
    write_manifest(folder)
    for name in ("notes.txt", "policy/.nfs0001"):
        (folder / name).write_text("not a part")
    assert unlisted(folder, read_manifest(folder)) == []
