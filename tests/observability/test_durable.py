import pytest

from megatron_prime.observability.durable import replace_file


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
