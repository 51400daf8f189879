"""manifest.json: size and SHA-256 of every file of a checkpoint, so that damage is detected before it is loaded.

The process that writes a large file computes its checksum right away and stores it beside the file in a `*.sums` file;
rank 0 collects those into the manifest and adds the small files.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

MANIFEST = "manifest.json"
SUMS_SUFFIX = ".sums"


class Entry(TypedDict):
    """Size and checksum of a file."""

    bytes: int
    sha256: str


def entry_of(path: Path) -> Entry:
    """Return a file's entry, by reading all of it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def write_sums(files: Iterable[Path], path: Path) -> None:
    """Write the entries of some files of path's folder to `path`, whose name must end in SUMS_SUFFIX."""
    assert path.suffix == SUMS_SUFFIX
    path.write_text(json.dumps({file.name: entry_of(file) for file in sorted(files)}))


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files in a checkpoint's folder, and remove the sums files."""
    entries: dict[str, Entry] = {}
    for sums in sorted(folder.rglob(f"*{SUMS_SUFFIX}")):
        at = sums.parent.relative_to(folder)
        entries |= {str(at / name): entry for name, entry in json.loads(sums.read_text()).items()}
        sums.unlink()
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert entries.keys() <= files.keys()
    entries |= {name: entry_of(path) for name, path in files.items() if name not in entries}
    files_of_all = dict(sorted(entries.items()))
    manifest = {"files": files_of_all, "sha256": _checksum(files_of_all)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Return the entry of each file. Raises ValueError when the manifest is missing or cannot be parsed."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries: dict[str, Entry] = {
            str(name): {"bytes": int(e["bytes"]), "sha256": str(e["sha256"])}
            for name, e in manifest["files"].items()
        }
        # Manifests of earlier versions have no checksum of their own; `unlisted` finds what is missing there.
        if manifest.get("sha256", _checksum(entries)) != _checksum(entries):
            raise ValueError("its entries are not those that were written")
        return entries
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__}: {error})") from error


def unlisted(folder: Path, entries: dict[str, Entry]) -> list[str]:
    """Return a line per file that a checkpoint consists of and that the manifest does not list; empty when none is."""
    needed = [folder / name for name in ("run.json", "rng.pt")]
    needed += [
        path for role in folder.iterdir() if role.is_dir() for path in role.iterdir() if _is_part(path)
    ]
    names = sorted(str(path.relative_to(folder)) for path in needed if path.is_file())
    names += [name for name in ("run.json", "rng.pt") if not (folder / name).is_file()]
    return [f"{name} is not listed in {MANIFEST}" for name in sorted(names) if name not in entries]


def _is_part(path: Path) -> bool:
    # Users and file systems may leave other files in the folder, such as notes and .nfs files.
    return path.name == ".metadata" or path.suffix in (".distcp", ".pt", ".json")


def _checksum(entries: dict[str, Entry]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def share(entries: dict[str, Entry], num_shares: int, index: int) -> dict[str, Entry]:
    """Return one of `num_shares` parts of the files to check, about equal in bytes."""
    by_size = sorted(entries.items(), key=lambda item: (-item[1]["bytes"], item[0]))
    return dict(by_size[index::num_shares])


def faults(folder: Path, entries: dict[str, Entry]) -> list[str]:
    """Return what is wrong with these files, one line each; empty when nothing is."""
    found = []
    for name, expected in sorted(entries.items()):
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                found.append(f"{name} has {size} bytes instead of {expected['bytes']}")
            elif entry_of(path)["sha256"] != expected["sha256"]:
                found.append(f"{name} has another checksum than when it was written")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
    return found
