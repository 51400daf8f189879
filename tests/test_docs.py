"""What the documents say of the tree is true: modules, tests, decisions and targets that they name exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_prime"
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def packages_table() -> dict[str, set[str]]:
    """Package -> modules, from the rows of the table under the heading Packages."""
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \|$", ARCHITECTURE.partition("\n## Packages\n")[2], flags=re.MULTILINE
    )
    return {package: set(re.findall(r"`(\w+)`", text)) for package, text in rows}


def test_the_packages_table_lists_every_module():
    actual = {
        folder.name: {path.stem for path in folder.glob("*.py") if path.name != "__init__.py"}
        for folder in PACKAGE.iterdir()
        if (folder / "__init__.py").exists()
    }
    table = packages_table()
    assert {name: table.get(name) for name in actual} == actual


def test_paths_in_the_documents_exist():
    missing = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for path in re.findall(r"`((?:\w+/)+[\w.-]+\.(?:py|md|toml))`", text):
            if not any((base / path).exists() for base in (ROOT, PACKAGE)):
                missing.append(f"{document.relative_to(ROOT)}: {path}")
    # The mirror convention is explained with names that stand for any module.
    assert [
        line for line in missing if not re.search(r"(tests/)?(megatron_prime/)?a/(test_)?b\.py$", line)
    ] == []


def test_make_targets_in_the_documents_exist():
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    for document in DOCUMENTS:
        for words in re.findall(r"`make ([a-z ]+)`", document.read_text(encoding="utf-8")):
            assert set(words.split()) <= targets, f"{document.name}: make {words}"


def test_the_errors_that_the_placement_page_explains_are_those_of_the_code():
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    # A message is written as several literals: join them, and drop what is filled in.
    code = re.sub(r"\{[^{}]*\}", "@", re.sub(r'"\s*\n\s*f?r?"', "", "\n".join(sources)))
    page = (ROOT / "docs" / "placement.md").read_text(encoding="utf-8")
    messages = re.findall(
        r"^\| `([^`|]+)` \|", page.partition("\n## When a weight sync fails\n")[2], flags=re.MULTILINE
    )
    assert len(messages) > 15
    unknown = []
    for message in messages:
        parts = re.split(r"\.\.\.|\b[A-Z]\b|\b\d+\b", message)
        unknown += [
            part.strip() for part in parts if len(part.strip(" :'")) > 3 and part.strip(" :'") not in code
        ]
    assert unknown == []


def test_every_decision_is_listed():
    listing = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")]
    assert sorted(files) == sorted(set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", listing)))


def test_no_document_or_script_names_a_machine():
    """Paths of one machine and hosts of package registries have no place in the repository."""
    pattern = re.compile(r"/work/|/root/|/tmp/|pypi\.org|pythonhosted|registry\.npmjs|download\.pytorch")
    files = [*DOCUMENTS, ROOT / "setup.py", ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "constraints.txt"]
    assert [path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []
