"""Files with API keys: those that are used, and those that are refused without a word of their content."""

import os

import pytest

from megatron_prime.config.server_keys import attached_keys
from megatron_prime.config.tables.rollout import SGLangConfig

URLS = ("http://a:1", "http://b:1")


def settings(path, urls=URLS):
    return SGLangConfig(urls=urls, api_key_file=path)


def write(path, content, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b"k1", ["k1", "k1"]),
        (b"\n  k1 \r\n\n", ["k1", "k1"]),
        (b"k1\nk2\n", ["k1", "k2"]),
        (b"k1\nk1\n", ["k1", "k1"]),
    ],
)
def test_a_file_has_one_key_for_all_servers_or_one_for_each(tmp_path, content, keys):
    assert list(attached_keys(settings(write(tmp_path / "keys", content)))) == keys


def test_without_a_file_or_attached_servers_there_are_no_keys(tmp_path):
    assert list(attached_keys(settings(None))) == ["", ""]
    assert list(attached_keys(settings(tmp_path / "missing", urls=()))) == []


def test_a_key_can_be_read_only_by_its_owner_through_a_link_too(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(write(tmp_path / "keys", b"k1", 0o400))
    assert list(attached_keys(settings(link))) == ["k1", "k1"]
    (tmp_path / "keys").chmod(0o440)
    with pytest.raises(ValueError, match="open to other users"):
        attached_keys(settings(link))


REFUSED = {
    "empty": (b"", 0o600, "has 0 lines with keys"),
    "blank": (b" \n\n", 0o600, "has 0 lines with keys"),
    "three keys": (b"SECRET\nk2\nk3", 0o600, "3 lines.*each of the 2"),
    "two words": (b"SECRET word\n", 0o600, "without spaces"),
    "a control character": (b"SECRET\x01\n", 0o600, "without spaces"),
    "not ASCII": ("SECRETé\n".encode(), 0o600, "no text of ASCII"),
    "bytes": (b"SECRET\xff\n", 0o600, "no text of ASCII"),
    "readable by the group": (b"SECRET", 0o640, "open to other users.*mode 640"),
    "readable by all": (b"SECRET", 0o604, "open to other users"),
    "writable by the group": (b"SECRET", 0o620, "open to other users"),
    "executable by all": (b"SECRET", 0o701, "open to other users"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused(tmp_path, case):
    content, mode, words = REFUSED[case]
    path = write(tmp_path / "keys", content, mode)
    with pytest.raises(ValueError, match=words) as caught:
        attached_keys(settings(path))
    assert "SECRET" not in repr(caught.value) and str(path) in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_a_path_without_a_file_is_refused(tmp_path, kind):
    path = tmp_path / "keys"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    words = {"missing": "No such file", "folder": "Is a directory", "pipe": "is no file"}[kind]
    with pytest.raises(ValueError, match=words):
        attached_keys(settings(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user_is_refused_except_to_root(tmp_path, monkeypatch):
    path = write(tmp_path / "keys", b"k1")
    os.chown(path, 12345, 12345)
    assert set(attached_keys(settings(path))) == {"k1"}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ValueError, match="belongs to user 12345: name a file of your own"):
        attached_keys(settings(path))
