"""A library keeps the device code of one architecture and every offset, and the wheel's RECORD fits its files."""

import base64
import hashlib
import struct
import zipfile

import pytest

from tools import shrink_te_wheel

CODE = {80: b"\x08" * 64, 90: b"\x09" * 48, 100: b"\x0a" * 32}


def entry(kind, architecture, code):
    header = struct.pack("<HHIQ", kind, 0x101, 64, len(code)) + bytes(12) + struct.pack("<I", architecture)
    return header.ljust(64, b"\0") + code


def library(entries):
    """Return an ELF file with a section of text and one with two containers of the entries, between padding."""
    content = b"".join(entries)
    container = struct.pack("<IHHQ", shrink_te_wheel.FATBIN_MAGIC, 1, 16, len(content)) + content
    fatbin, text = container + bytes(24) + container, b"\x77" * 40
    names = b"\0.text\0.nv_fatbin\0.shstrtab\0"
    parts = [(0, b""), (1, text), (7, fatbin), (18, names)]
    offset, body, table = 64, b"", b""
    for name, part in parts:
        table += struct.pack("<IIQQQQ", name, 1, 0, 0, offset + len(body), len(part)).ljust(64, b"\0")
        body += part.ljust(-(-len(part) // 16) * 16, b"\0")
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", header, 0x28, 64 + len(body))
    struct.pack_into("<HHH", header, 0x3A, 64, len(parts), 3)
    return bytes(header) + body + table


def all_kinds():
    return library([*(entry(2, number, code) for number, code in CODE.items()), entry(1, 90, b"ptx " * 8)])


@pytest.mark.parametrize("architecture", CODE)
def test_only_one_architecture_is_left_and_nothing_moves(architecture):
    before = all_kinds()
    after = bytearray(before)
    kept, zeroed = shrink_te_wheel.zero_other_architectures(after, architecture)
    assert (kept, zeroed) == (2 * len(CODE[architecture]), 2 * (64 + 48 + 32 + 32 - len(CODE[architecture])))
    expected = before
    for code in [code for number, code in CODE.items() if number != architecture] + [b"ptx " * 8]:
        expected = expected.replace(code, bytes(len(code)))
    assert bytes(after) == expected


def test_the_wheel_is_smaller_and_its_record_fits(tmp_path):
    source = tmp_path / "te.whl"
    files = {"te/lib.so": all_kinds(), "te/jax/lib.so": all_kinds(), "te/a.py": b"pass\n"}
    files["te.dist-info/RECORD"] = "".join(f"{name},sha256=old,1\n" for name in files).encode()
    with zipfile.ZipFile(source, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    assert shrink_te_wheel.main([str(source), "--out", str(tmp_path / "small")]) == 0
    with zipfile.ZipFile(tmp_path / "small" / "te.whl") as wheel:
        assert sorted(wheel.namelist()) == ["te.dist-info/RECORD", "te/a.py", "te/lib.so"]
        content = wheel.read("te/lib.so")
        record = wheel.read("te.dist-info/RECORD").decode().splitlines()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    assert record == [f"te/lib.so,sha256={digest},{len(content)}", "te/a.py,sha256=old,1"]
    assert CODE[90] in content and CODE[80] not in content


def test_a_wheel_without_the_architecture_is_refused(tmp_path, capsys):
    source = tmp_path / "te.whl"
    with zipfile.ZipFile(source, "w") as wheel:
        wheel.writestr("te/lib.so", all_kinds())
    arguments = [str(source), "--out", str(tmp_path / "small"), "--architecture", "70"]
    assert shrink_te_wheel.main(arguments) == 1
    assert "no device code for architecture 70" in capsys.readouterr().err
    assert not list((tmp_path / "small").iterdir())
    assert shrink_te_wheel.main([str(source), "--out", str(tmp_path)]) == 2
