"""Shrink the wheel of Transformer Engine's kernels to one GPU architecture, so that it can be carried to a machine.

    python -m tools.shrink_te_wheel transformer_engine_cu13-2.11.0-py3-none-manylinux_2_28_x86_64.whl --out small

The library contains its kernels once per architecture, about 460 MB. This overwrites those of other architectures with
zeros, which compress to nothing, and leaves everything else where it is: 18 MB for Hopper (90). JAX's part is left out.
Not proven on a GPU.
"""

import argparse
import base64
import hashlib
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

FATBIN_MAGIC = 0xBA55ED50
"""Start of a container of device code, one for each source file, in the section .nv_fatbin."""
DEVICE_ELF = 2
"""Kind of a container's entry that is compiled for one architecture; PTX has kind 1."""
LEFT_OUT = "/jax/"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheel, which keeps its name")
    parser.add_argument("--architecture", type=int, default=90, help="compute capability times ten")
    options = parser.parse_args(arguments)
    target = options.out / options.wheel.name
    if target.resolve() == options.wheel.resolve():
        print("shrink_te_wheel: --out must be another folder than the wheel's", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        kept, zeroed = shrink_wheel(options.wheel, target, options.architecture)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"shrink_te_wheel: {options.wheel}: {error}", file=sys.stderr)
        return 1
    size = target.stat().st_size
    print(
        f"{target}: {size / 1e6:.1f} MB, device code kept {kept / 1e6:.1f} MB, zeroed {zeroed / 1e6:.1f} MB"
    )
    return 0


def shrink_wheel(source: Path, target: Path, architecture: int) -> tuple[int, int]:
    """Write the wheel with smaller libraries and a matching RECORD; return bytes of device code kept and zeroed.

    Raises ValueError if it has no device code for the architecture.
    """
    kept = zeroed = 0
    changed: dict[str, bytes] = {}
    aside = target.with_name(target.name + ".partial")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as new:
        # RECORD is the last file of a wheel by convention; it needs the hashes of all others.
        for entry in sorted(old.infolist(), key=lambda entry: entry.filename.endswith(".dist-info/RECORD")):
            if LEFT_OUT in entry.filename:
                continue
            content = old.read(entry)
            if entry.filename.endswith(".so"):
                library = bytearray(content)
                of_library = zero_other_architectures(library, architecture)
                kept, zeroed = kept + of_library[0], zeroed + of_library[1]
                content = changed[entry.filename] = bytes(library)
            elif entry.filename.endswith(".dist-info/RECORD"):
                content = _record(content.decode(), changed).encode()
            new.writestr(entry, content, zipfile.ZIP_DEFLATED)
    if not kept:
        aside.unlink()
        raise ValueError(f"it has no device code for architecture {architecture}")
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    aside.rename(target)
    return kept, zeroed


def _record(text: str, changed: dict[str, bytes]) -> str:
    lines = []
    for line in text.splitlines():
        name = line.split(",")[0]
        if LEFT_OUT in name:
            continue
        if name in changed:
            digest = base64.urlsafe_b64encode(hashlib.sha256(changed[name]).digest()).rstrip(b"=").decode()
            line = f"{name},sha256={digest},{len(changed[name])}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def zero_other_architectures(library: bytearray, architecture: int) -> tuple[int, int]:
    """Zero the device code for other architectures in a 64-bit ELF library; return bytes kept and zeroed."""
    kept = zeroed = 0
    for start, end in _sections(library, ".nv_fatbin"):
        position = start
        while position < end - 16:
            magic, _, header_size, size = struct.unpack_from("<IHHQ", library, position)
            if magic != FATBIN_MAGIC:
                position += 8  # containers are aligned
                continue
            entry, position = position + header_size, position + header_size + size
            while entry < position:
                kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, entry)
                of_architecture = struct.unpack_from("<I", library, entry + 28)[0]
                code = slice(entry + entry_header, entry + entry_header + entry_size)
                if kind == DEVICE_ELF and of_architecture == architecture:
                    kept += entry_size
                else:
                    library[code] = bytes(entry_size)
                    zeroed += entry_size
                entry = code.stop
    return kept, zeroed


def _sections(library: bytearray, wanted: str) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the sections with a name."""
    if library[:5] != b"\x7fELF\x02":
        return
    (table,) = struct.unpack_from("<Q", library, 0x28)
    entry_size, number, names = struct.unpack_from("<HHH", library, 0x3A)
    # Each entry: name, type, flags, address, offset, size.
    entries = [struct.unpack_from("<IIQQQQ", library, table + index * entry_size) for index in range(number)]
    strings = entries[names][4] if entries else 0
    for name, _, _, _, offset, size in entries:
        first = strings + name
        if library[first : library.index(b"\0", first)].decode() == wanted:
            yield offset, offset + size


if __name__ == "__main__":
    sys.exit(main())
