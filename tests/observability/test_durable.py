import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_prime.observability.durable import AppendedFile, make_private, replace_file


@contextmanager
def full_above(num_bytes):
    """Let every file of this process end at a size, as on a disk that fills up in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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


def test_an_error_names_the_file(tmp_path):
    with full_above(2), pytest.raises(OSError, match=r"state\.json"):
        replace_file(tmp_path / "state.json", "longer")
    with full_above(2), pytest.raises(OSError, match=r"log\.jsonl"):
        AppendedFile(tmp_path / "log.jsonl").append(b"longer")


@pytest.mark.parametrize("room", [0, 3])
def test_what_could_not_be_appended_is_written_later_without_a_trace(room, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"before\n")
    file = AppendedFile(path)
    for line in (b"first\n", b"second\n"):
        with full_above(7 + room), pytest.raises(OSError, match="File too large"):
            file.append(line)
    file.append(b"third\n")
    file.close()
    file.close()
    assert path.read_bytes() == b"before\nfirst\nsecond\nthird\n"


def test_closing_writes_what_is_left(tmp_path):
    file = AppendedFile(tmp_path / "log.jsonl")
    with full_above(2), pytest.raises(OSError, match="File too large"):
        file.append(b"first\n")
    file.close()
    assert file.path.read_bytes() == b"first\n"
