"""The licence, the distributions and the citation of a release: complete, and in agreement with each other."""

import datetime
import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from megatron_prime import __version__

ROOT = Path(__file__).parents[1]
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
PERSON = {
    "family-names",
    "given-names",
    "name-particle",
    "name-suffix",
    "alias",
    "affiliation",
    "email",
    "orcid",
    "website",
}
ENTITY = {
    "name",
    "alias",
    "email",
    "website",
    "orcid",
    "address",
    "city",
    "country",
    "date-start",
    "date-end",
}
WORK = {
    *(
        "abstract",
        "authors",
        "contact",
        "date-released",
        "doi",
        "identifiers",
        "keywords",
        "license",
        "license-url",
    ),
    *("repository", "repository-artifact", "repository-code", "title", "type", "url", "version", "commit"),
}
"""Keys of the work itself in the Citation File Format 1.2.0."""
REFERENCE = WORK | {
    "collection-title",
    "conference",
    "issue",
    "journal",
    "month",
    "notes",
    "pages",
    "publisher",
    "volume",
    "year",
}
"""Keys of a reference, of which the format knows more."""


def built(backend: str, source: Path, output: Path) -> Path:
    """Build a distribution as pip and build do, without an environment of its own, and return its file."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, backend, str(output)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> SimpleNamespace:
    """Return the files of the checkout, of a source distribution and of the wheel that is built from it."""
    # The checkout of a source distribution has no history to ask; files that git would ignore are no part of it.
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("no git checkout")
    files = {name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()}
    copy, folder = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("distributions")
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    shutil.unpack_archive(built("build_sdist", copy, folder), folder)
    [source] = [path for path in folder.iterdir() if path.is_dir()]
    in_source = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    with zipfile.ZipFile(built("build_wheel", source, folder)) as wheel:
        return SimpleNamespace(
            files=files,
            source=in_source,
            wheel=set(wheel.namelist()),
            texts={name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name},
        )


def test_the_source_distribution_holds_every_file_of_the_checkout(release):
    added = {"PKG-INFO", "setup.cfg"}
    found = {name for name in release.source if ".egg-info/" not in name} - added
    assert sorted(release.files - found) == [], "name them in MANIFEST.in"
    assert sorted(found - release.files) == []


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(release):
    expected = {name for name in release.files if name.startswith("megatron_prime/")}
    assert {name for name in release.wheel if ".dist-info/" not in name} == expected


def test_the_metadata_state_the_licence(release):
    name = f"megatron_prime-{__version__}.dist-info"
    metadata = email.message_from_string(release.texts[f"{name}/METADATA"])
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    for file in ("LICENSE", "NOTICE"):
        assert release.texts[f"{name}/licenses/{file}"] == (ROOT / file).read_text(encoding="utf-8")
    # Indexes refuse uploads with a classifier that begins like this one, and licence classifiers beside an expression.
    assert not [
        text for text in metadata.get_all("Classifier") if text.startswith(("Private ::", "License ::"))
    ]
    assert release.texts[f"{name}/entry_points.txt"].split() == [
        *("[console_scripts]", "megatron-prime", "=", "megatron_prime.__main__:run")
    ]


def test_the_licence_is_the_whole_standard_text():
    words = (ROOT / "LICENSE").read_text(encoding="utf-8").split()
    assert " ".join(words[:5]) == "Apache License Version 2.0, January"
    assert " ".join(words[-4:]) == "limitations under the License."
    assert len(words) == 1581


def check_authors(authors: list[dict[str, str]]) -> None:
    assert authors
    for author in authors:
        assert all(isinstance(value, str) and value for value in author.values())
        assert set(author) <= (ENTITY if "name" in author else PERSON)


def check_work(work: dict, keys: set[str]) -> None:
    """Check what the format requires of the cited work and of a reference alike."""
    assert set(work) <= keys
    assert isinstance(work["title"], str) and work["title"]
    check_authors(work["authors"])
    for identifier in work.get("identifiers", []):
        assert set(identifier) <= {"type", "value", "description"}
        assert identifier["type"] in ("doi", "url", "swh", "other")
        if identifier["type"] == "doi":
            assert re.fullmatch(r"10\.\d{4,9}(\.\d+)?/\S+", identifier["value"])
    for key in ("url", "repository-code", "license-url", "repository"):
        assert re.fullmatch(r"(https?|s?ftp)://\S+", work.get(key, "https://none"))
    keywords = work.get("keywords", ["none"])
    assert (
        keywords and len(keywords) == len(set(keywords)) and all(isinstance(word, str) for word in keywords)
    )


def test_the_citation_follows_its_format_and_agrees_with_the_release():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    check_work(citation, WORK | {"cff-version", "message", "preferred-citation", "references"})
    assert citation["cff-version"] == "1.2.0"
    assert isinstance(citation["message"], str) and citation["type"] in ("software", "dataset")
    assert (citation["version"], citation["license"]) == (__version__, "Apache-2.0")
    assert isinstance(citation.get("date-released", datetime.date.today()), datetime.date)
    [paper] = citation["references"]
    check_work(paper, REFERENCE)
    assert paper["type"] == "article" and paper["year"] == 2025
    assert paper["url"].endswith("2502.01456") and len(paper["authors"]) == 25


def test_the_changelog_has_a_section_of_every_release_in_order():
    """A release is a line `## [version] - date`; the newest is this version, unless it has not been released yet."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    releases = [
        re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]
    ]
    assert all(releases), headings
    keys = [(datetime.date.fromisoformat(found[4]), *map(int, found.groups()[:3])) for found in releases]
    assert keys == sorted(keys, reverse=True)
    numbers = [key[1:] for key in keys]
    current = tuple(int(number) for number in re.findall(r"\d+", __version__))
    assert len(numbers) == len(set(numbers)) and current >= max(numbers, default=current)
