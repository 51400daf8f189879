from pathlib import Path

import pytest

from megatron_prime.observability.durable import make_private, replace_file


def test_a_file_is_replaced_atomically_without_leftovers(tmp_path):
    path = tmp_path / "state.json"
    replace_file(path, "first")
    replace_file(path, "ä")
    assert path.read_text(encoding="utf-8") == "ä"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    replace_file(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_new_folders_are_private_and_existing_ones_keep_their_modes(tmp_path, monkeypatch):
    def mode(path):
        return path.stat().st_mode & 0o777

    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    make_private(shared / "runs" / "first")
    make_private(shared)
    assert [mode(path) for path in (shared, shared / "runs", shared / "runs" / "first")] == [
        0o755,
        0o700,
        0o700,
    ]
    monkeypatch.chdir(shared)
    make_private(Path("here"))
    assert mode(shared / "here") == 0o700
    (shared / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_private(shared / "file" / "folder")
