"""The documents agree with the tree: the modules, files, tests, decisions, options and commands they name exist."""

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from pydantic import BaseModel

from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.catalog import described_metrics

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_prime"
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "benchmarks" / "results").glob("*.md"),
]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TREES = ("megatron_prime", "tests", "tools", "benchmarks", "examples", "docs")
"""Folders of the repository whose paths documents name."""

PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def spans(document: Path) -> list[str]:
    """Return what stands between backticks in a document, outside of its code blocks."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def documented(pattern: str) -> list[tuple[Path, str]]:
    """Return each backticked span that matches the whole pattern, with its document."""
    return [
        (document, span) for document in DOCUMENTS for span in spans(document) if re.fullmatch(pattern, span)
    ]


def files_of_the_tree() -> set[str]:
    """Return the names, without folders, of all files that documents can name."""
    below = (path for tree in TREES for path in (ROOT / tree).rglob("*") if "__pycache__" not in path.parts)
    return {path.name for path in (*below, *ROOT.iterdir()) if path.is_file()}


def test_the_architecture_lists_every_package():
    section = ARCHITECTURE.partition("\n## Packages\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    actual = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(listed) == sorted([*actual, "types", "sample"])


def test_the_layers_of_the_architecture_are_those_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    [layers] = [contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers"]
    block = ARCHITECTURE.partition("\n## Layers\n")[2].split("```")[1].strip()
    assert block.splitlines() == [line for line in layers if line != "__main__"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_docstring_of_a_package_lists_its_modules(package: Path):
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    lines = re.findall(r"^- ((?:`\w+/?`, )*`\w+/?`): ", docstring, flags=re.MULTILINE)
    listed = Counter(re.findall(r"`(\w+)/?`", " ".join(lines)))
    modules = [path.stem for path in package.glob("*.py") if path.name != "__init__.py"]
    subpackages = [path.parent.name for path in package.glob("*/__init__.py")]
    assert listed == Counter([*modules, *subpackages])


def test_paths_in_the_documents_exist():
    missing = [
        f"{document.relative_to(ROOT)}: {path}"
        for document, path in documented(r"(?:[\w-]+/)+[\w.-]+\.(?:py|md|toml|sh)")
        if not any((base / path).exists() for base in (ROOT, PACKAGE))
    ]
    # The mirror convention is explained with names that stand for any module.
    assert [
        line for line in missing if not re.search(r"(tests/)?(megatron_prime/)?a/(test_)?b\.py$", line)
    ] == []


def test_folders_in_the_documents_exist():
    trees = "|".join(TREES)
    assert [
        f"{document.relative_to(ROOT)}: {path}"
        for document, path in documented(rf"(?:{trees})/[\w/]*")
        if not (ROOT / path).exists()
    ] == []


def test_files_that_the_documents_name_without_a_folder_exist():
    names = files_of_the_tree()
    assert [
        f"{document.relative_to(ROOT)}: {name}"
        for document, name in documented(r"[\w-]+\.(?:py|md|sh)")
        if name not in names
    ] == []


def test_python_commands_in_the_documents_exist():
    missing = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        own = "|".join(tree for tree in TREES if tree != "docs")
        modules = [
            name.replace(".", "/") for name in re.findall(rf"-m ((?:{own})(?:\.[a-z_]+)*)(?=[\s`])", text)
        ]
        scripts = re.findall(r"python ([\w/]+)\.py", text)
        for name in (*modules, *scripts):
            if not (ROOT / f"{name}.py").exists() and not (ROOT / name / "__main__.py").exists():
                missing.append(f"{document.relative_to(ROOT)}: {name}")
    assert missing == []


def test_options_in_the_documents_exist():
    """A backticked `table.key` is an option if the configuration has such a table, or a module `package.name`."""
    tables = "|".join(PrimeConfig.model_fields)
    unknown = []
    for document, span in documented(rf"(?:{tables})\.[\w.]+(?: ?= ?[^`]+)?"):
        path = re.match(r"[\w.]+", span)[0].rstrip(".")
        is_module = (PACKAGE / f"{path.replace('.', '/')}.py").exists()
        is_file_name = path.endswith((".py", ".toml", ".json", ".jsonl"))
        if not is_module and not is_file_name and not is_option(path):
            unknown.append(f"{document.relative_to(ROOT)}: {span}")
    assert unknown == []


def is_option(path: str) -> bool:
    """Return whether a dotted path leads to a field of the configuration; keys of a dictionary are free."""
    section: type[BaseModel] | None = PrimeConfig
    for key in path.split("."):
        if section is None:
            return True
        if key not in section.model_fields:
            return False
        annotation = section.model_fields[key].annotation
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return True


def test_make_targets_in_the_documents_exist():
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    for document in DOCUMENTS:
        for words in re.findall(r"`make ([a-z ]+)`", document.read_text(encoding="utf-8")):
            assert set(words.split()) <= targets, f"{document.name}: make {words}"


def joined_literals() -> str:
    """Return the code of the package with every message in one piece, and @ for what is filled in."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))
    return re.sub(r"\{[^{}]*\}", "@", re.sub(r'"\s*\n\s*f?r?"', "", sources))


@pytest.mark.parametrize(
    ("page", "heading", "at_least"),
    [
        ("placement", "## When a weight sync fails", 15),
        ("troubleshooting", "# Troubleshooting by message", 40),
    ],
)
def test_the_messages_that_a_page_explains_are_those_of_the_code(page: str, heading: str, at_least: int):
    code = joined_literals()
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    messages = re.findall(r"^\| `([^`|]+)` (?:\([^|]*\) )?\|", text, flags=re.MULTILINE)
    assert len(messages) > at_least
    unknown = []
    for message in messages:
        parts = re.split(r"\.\.\.|\b[A-Z]\b|\b\d+\b", message)
        unknown += [
            part.strip() for part in parts if len(part.strip(" :'")) > 3 and part.strip(" :'") not in code
        ]
    assert unknown == []


def test_the_functions_that_compute_the_equations_exist():
    text = (ROOT / "docs" / "prime-in-ten-minutes.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:algorithm|training)\.[\w.]+)`", text)
    assert text.count("```math") < len(set(names))
    assert [name for name in names if not is_defined(name)] == []


def is_defined(name: str) -> bool:
    """Return whether a dotted name, such as `algorithm.groups.group_mean`, is defined in a module of the package."""
    path, words = PACKAGE, name.split(".")
    while words and (path / words[0]).is_dir():
        path /= words.pop(0)
    if not words or not (path / f"{words[0]}.py").is_file():
        return False
    body: list[ast.stmt] = ast.parse((path / f"{words[0]}.py").read_text(encoding="utf-8")).body
    for word in words[1:]:
        found = [node for node in body if getattr(node, "name", None) == word]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return len(words) > 1


def test_metrics_in_the_documents_exist():
    """A backticked `group/name` of a group that is logged is a declared metric."""
    metrics = described_metrics()
    groups = "|".join(sorted({metric.group for metric in metrics}))
    unknown = [
        f"{document.relative_to(ROOT)}: {name}"
        for document, name in documented(rf"(?:{groups})/[\w/<>]+")
        if document.name != "CHANGELOG.md"  # which names what was renamed
        and not any(name == metric.tag or metric.covers(name) for metric in metrics)
        and not (ROOT / name).exists()
        and not (PACKAGE / name).exists()
    ]
    assert unknown == []


def test_decisions_are_listed_in_order_with_their_titles():
    folder = ROOT / "docs" / "adr"
    listing = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d{4})\]\((\d{4}-[\w-]+\.md)\) \| (.*) \|$", listing, flags=re.MULTILINE)
    actual = []
    for path in sorted(folder.glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0]
        number, words = re.fullmatch(r"# (\d{4}) (.*)", title).groups()
        actual.append((number, path.name, words))
    assert rows == actual


def test_decisions_have_a_status():
    without = [
        path.name
        for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")
        if not re.search(
            r"^Status: (accepted|superseded|proposed)", path.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
    ]
    assert without == []


def test_the_documents_use_the_terms_of_the_field():
    """A word that has a standard counterpart is not used: restart or attempt, fix, expensive, option, report."""
    pattern = re.compile(r"\b(life|mend(?:s|ed|ing)?|dear(?:er|est)?|knobs?|goes round|torment)\b")
    assert [
        f"{document.relative_to(ROOT)}: {line.strip()}"
        for document in DOCUMENTS
        for line in document.read_text(encoding="utf-8").splitlines()
        if pattern.search(line.lower())
    ] == []


def test_no_document_or_script_names_a_machine():
    """Paths of one machine and hosts of package registries have no place in the repository."""
    pattern = re.compile(r"/work/|/root/|/tmp/|pypi\.org|pythonhosted|registry\.npmjs|download\.pytorch")
    # The table of attacks in a result quotes programs that write to /tmp.
    documents = [path for path in DOCUMENTS if path.parent.name != "results"]
    files = [*documents, ROOT / "setup.py", ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "constraints.txt"]
    assert [path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_the_configuration_of_the_first_run_is_one():
    page = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```toml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    config = PrimeConfig.model_validate(tomllib.loads(text))
    assert config.data.train and config.data.evaluation


def test_every_page_is_in_the_navigation_of_the_site():
    """`make docs` refuses a page that is not; this finds it in a moment."""
    listed = re.findall(
        r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - set(listed) == set(), "add them below `nav` in mkdocs.yml"
    assert len(listed) == len(set(listed))
