"""Replies on disk: whole or absent, whatever happens to processes and files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_prime.rewards.judge.replies import ABANDONED_S, MAX_REPLY_CHARS, StoredReplies
from tests.support import deadlines

KEY, OTHER = "ab" * 32, "ac" * 32
WRITER = """
import sys
from pathlib import Path
from megatron_prime.rewards.judge.replies import StoredReplies
replies = StoredReplies(Path(sys.argv[1]), 1 << 30)
print("ready", flush=True)
for number in range(10**9):
    replies.put(StoredReplies.key({"number": number % 50}), f"{number % 50}" * 20_000)
"""


@pytest.mark.parametrize("text", ["", "Score: 1", "né \ud800 \U0001f600\n\0", "x" * 100_000])
def test_a_reply_is_found_by_its_key(tmp_path, text):
    StoredReplies(tmp_path, 1 << 20).put(KEY, text)
    stored = StoredReplies(tmp_path, 1 << 20)
    assert stored.get(KEY) == text
    assert stored.get(OTHER) is None


def test_keys_depend_on_everything_and_not_on_the_order():
    key = StoredReplies.key
    assert key({"a": 1, "b": [1, "é"]}) == key({"b": [1, "é"], "a": 1})
    others = [{}, {"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": [1]}, {"a": {"b": 1}}, {"a": "\ud800"}]
    assert len({key(content) for content in others}) == len(others)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "one letter": lambda path: path.write_bytes(path.read_bytes().replace(b"Score: 1", b"Score: 9")),
    "no JSON": lambda path: path.write_bytes(b"\xff\0"),
    "another JSON": lambda path: path.write_text("[1]"),
    "no text": lambda path: path.write_text(json.dumps({"text": 1, "sum": ""})),
    "deep": lambda path: path.write_text("[" * 100_000),
    "huge": lambda path: path.write_bytes(b" " * (9 * MAX_REPLY_CHARS)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another key": lambda path: path.write_bytes((path.parents[1] / "ac" / f"{OTHER}.json").read_bytes()),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_reply_is_absent_and_may_be_written_again(tmp_path, case):
    stored = StoredReplies(tmp_path, 1 << 20)
    stored.put(KEY, "Score: 1")
    path = tmp_path / "ab" / f"{KEY}.json"
    stored.put(OTHER, "Score: 3")
    DAMAGE[case](path)
    assert stored.get(KEY) is None
    stored.put(KEY, "Score: 2")
    assert stored.get(KEY) == (None if case == "a folder" else "Score: 2")


def test_the_size_is_limited_and_what_is_in_use_stays(tmp_path):
    stored = StoredReplies(tmp_path, 100_000)
    keys = [StoredReplies.key({"number": number}) for number in range(100)]
    for number, key in enumerate(keys):
        stored.put(key, "x" * 5_000)
        os.utime(tmp_path / key[:2] / f"{key}.json", (number, number))
        stored.get(keys[0])
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.json"))
    assert 50_000 < size < 120_000
    assert stored.get(keys[0]) is not None and stored.get(keys[1]) is None
    assert StoredReplies(tmp_path, 20_000).get(keys[0]) is not None
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.json")) <= 20_000


def test_abandoned_files_are_removed_and_new_ones_are_not(tmp_path):
    (tmp_path / "ab").mkdir()
    old, new = tmp_path / "ab" / "x.tmp", tmp_path / "ab" / "y.tmp"
    for path in (old, new):
        path.touch()
    long_ago = time.time() - 2 * ABANDONED_S
    os.utime(old, (long_ago, long_ago))
    StoredReplies(tmp_path, 1 << 20)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_full_disk_or_a_lost_folder_costs_the_reply_alone(tmp_path):
    stored = StoredReplies(tmp_path / "a", 1 << 20)
    (tmp_path / "a").rmdir()
    stored.put(KEY, "text")
    assert stored.get(KEY) is None


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"reward\.judge\.cache_dir = .* cannot be written to"):
        StoredReplies(tmp_path / "file", 1 << 20)


def test_processes_that_are_killed_while_they_write_leave_only_whole_replies(tmp_path):
    """Two processes write the same keys until they are killed, while this one reads."""
    stored = StoredReplies(tmp_path, 1 << 30)
    keys = {StoredReplies.key({"number": number}): f"{number}" * 20_000 for number in range(50)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    num_found, end = 0, time.monotonic() + 0.3
    while time.monotonic() < end:
        for key, text in keys.items():
            found = stored.get(key)
            assert found in (None, text)
            num_found += found is not None
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait(deadlines.seconds(10))
        assert writer.stdout is not None
        writer.stdout.close()
    assert num_found > 0
    for path in Path(tmp_path).rglob("*.json"):
        assert stored.get(path.stem) == keys[path.stem]
