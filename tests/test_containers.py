"""The container files pin every version, agree with the versions that are tested, and copy files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
FROM_THE_IMAGE = {"torch", "numpy"}
"""Packages of NVIDIA's image that are built together, and stay."""
OTHERS = {"pandas", "pyarrow", "pytz"}
"""Packages that NVIDIA's image needs in another version, or in addition, because its numpy may be older."""


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile as pairs of a word and its arguments."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def pinned(path: Path) -> dict[str, str]:
    """Return the versions of a file of requirements, every line of which must name one."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    pairs = [re.fullmatch(r"([a-z0-9._-]+)(?:\[\w+\])?==([\w.!+]+)", line.lower()) for line in lines]
    assert all(pairs), f"{path.name}: {[line for line, pair in zip(lines, pairs, strict=True) if not pair]}"
    names = [pair[1].replace("_", "-") for pair in pairs]
    assert len(names) == len(set(names))
    return dict(zip(names, [pair[2] for pair in pairs], strict=True))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_version_is_pinned(path):
    for word, arguments in instructions(path):
        if word == "FROM":
            assert re.fullmatch(r"[\w./-]+:\d+\.[\w.-]+(@sha256:[0-9a-f]{64})?( AS \w+)?", arguments)
        for command in re.split(r" && |; ", arguments) if word == "RUN" else []:
            words = command.split()
            if words[:2] == ["apt-get", "install"]:
                assert "--no-install-recommends" in words
                packages = [name for name in words[2:] if not name.startswith("-")]
                assert packages and all(re.fullmatch(r"'[\w.+-]+=\d[\w.:~-]*\*'", name) for name in packages)
            elif words[0].endswith("pip") and words[1] == "install":
                names = [name for name in words[2:] if not name.startswith("-") and "/" not in name]
                assert all("==" in name for name in names), command


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_sent_to_the_builder(path):
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for word, arguments in instructions(path):
        if word == "COPY" and not arguments.startswith("--from="):
            *sources, _ = arguments.split()
            assert all((ROOT / source).exists() and source.split("/")[0] not in ignored for source in sources)
    assert {"megatron_prime", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"}.isdisjoint(
        ignored
    )


def test_the_image_for_cpus_has_the_tested_versions():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    required = re.search(r"install_requires=\[(.*?)\n    \]", setup, flags=re.DOTALL)[1]
    names = {
        name.lower().replace("_", "-")
        for name in re.findall(r'^ +"([\w-]+)[=>]', required, flags=re.MULTILINE)
    }
    tested, image = pinned(ROOT / "constraints.txt"), pinned(ROOT / "docker" / "requirements-cpu.txt")
    assert len(names) > 15
    assert {name: image.get(name) for name in names} == {name: tested.get(name) for name in names}
    assert {name: tested.get(name, version) for name, version in image.items()} == image


def test_the_image_for_gpus_has_the_same_versions_except_those_of_its_base():
    cpu, cuda = (pinned(ROOT / "docker" / f"requirements-{kind}.txt") for kind in ("cpu", "cuda"))
    assert set(cuda) == (set(cpu) | OTHERS) - FROM_THE_IMAGE
    assert {name for name in cuda if cuda[name] != cpu.get(name)} == OTHERS


def test_sglang_has_the_version_that_the_tests_run():
    installer = (ROOT / "tools" / "install_sglang.py").read_text(encoding="utf-8")
    version = re.search(r'^SGLANG = "sglang==([\d.]+)"$', installer, flags=re.MULTILINE)[1]
    assert pinned(ROOT / "docker" / "requirements-sglang-cuda.txt")["sglang"] == version
