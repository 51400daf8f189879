"""Gates on the shape of the code: sizes of files and folders, openings of docstrings, dead public functions."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_prime"
OTHER_CODE = tuple(ROOT / name for name in ("examples", "tools", "benchmarks"))

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_MODULES_PER_FOLDER = 20
MAX_FILES_PER_PREFIX = 4
VAGUE_FILE_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}
VAGUE_OPENINGS = {"What", "Which", "Where", "Who", "How", "Of", "Those", "Whose", "Both", "Last"}
"""First words of docstrings that are understood only with the line above them."""
PRIVATE_JARGON = re.compile(
    r"\b(mend(s|ed|ing)?|dear(er|est|ly)?|knobs?|goes round|go round|in its (next|former|new) life|lives of a run)\b",
    re.IGNORECASE,
)
"""Words that this project once used for terms that the field has a word for: fix, expensive, option, restart."""

CALLED_BY_OTHERS = {
    "get_nowait": "megatron-core's checkpoint writers",
    "find_class": "pickle.Unpickler",
    "get_replay_topk": "megatron-core's router",
    "forward": "autograd functions and modules",
    "backward": "autograd functions",
    "log_message": "http.server",
    "send_head": "http.server",
    "do_POST": "http.server",
    "do_GET": "http.server",
    "emit": "logging",
    **dict.fromkeys(("format_arguments", "format_epilog", "format_options"), "click's help pages"),
}
"""Public functions that only a library calls -> which one."""


def python_files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the docstrings of modules, classes, functions, fields and constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([None, *body], body, strict=False):
            is_first = before is None and isinstance(
                node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            )
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
                and (is_first or isinstance(before, (ast.Assign, ast.AnnAssign)))
            ):
                yield statement.lineno, statement.value.value.strip()


def test_files_and_functions_are_short():
    too_long = []
    for path in python_files(PACKAGE, *OTHER_CODE):
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            too_long.append(f"{relative(path)}: {num_lines} lines")
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                # A contract may be as long as it needs to be; the code may not.
                contract = node.body[0] if ast.get_docstring(node) is not None else None
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if contract is not None:
                    length -= (contract.end_lineno or contract.lineno) - contract.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{relative(path)}:{node.lineno} {node.name}: {length} lines")
    assert too_long == []


def test_folders_are_small_and_named_by_subject():
    faults = []
    for folder in {path.parent for path in python_files(PACKAGE, *OTHER_CODE)}:
        modules = [path.stem for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(modules) > MAX_MODULES_PER_FOLDER:
            faults.append(f"{relative(folder)}: {len(modules)} modules; make a subpackage")
        for prefix, count in Counter(name.split("_")[0] for name in modules).items():
            if count > MAX_FILES_PER_PREFIX:
                faults.append(f"{relative(folder)}: {count} modules begin with {prefix}; make a subpackage")
        faults += [
            f"{relative(folder)}/{name}.py: name a subject" for name in set(modules) & VAGUE_FILE_NAMES
        ]
    assert faults == []


def test_docstrings_open_with_a_verb_or_a_name():
    vague = [
        f"{relative(path)}:{line}: {text.splitlines()[0]}"
        for path in python_files(PACKAGE, *OTHER_CODE)
        for line, text in docstrings(parsed(path))
        if text and re.split(r"\W", text, maxsplit=1)[0] in VAGUE_OPENINGS
    ]
    assert vague == [], (
        "begin with an imperative verb (Return ...), or name the thing (A packed batch of ...)"
    )


def test_prose_uses_the_terms_of_the_field():
    files = [*python_files(PACKAGE, *OTHER_CODE), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = [
        f"{relative(path)}:{number}: {match[0]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := PRIVATE_JARGON.search(line))
    ]
    assert found == []


def public_functions() -> Iterator[tuple[Path, str]]:
    """Yield the functions and methods that a module offers to others; properties and class members included."""
    for path in python_files(PACKAGE):
        tree = parsed(path)
        for node in [*tree.body, *(member for item in tree.body for member in getattr(item, "body", []))]:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
                yield path, node.name


def test_public_functions_are_used_outside_tests():
    words: Counter[str] = Counter()
    for path in python_files(PACKAGE, *OTHER_CODE):
        words.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    definitions = Counter(name for _, name in public_functions())
    unused = {
        f"{relative(path)}: {name}"
        for path, name in public_functions()
        if words[name] <= definitions[name] and name not in CALLED_BY_OTHERS
    }
    assert unused == set(), "delete them with their tests, or make them private"


def test_the_exceptions_are_still_needed():
    assert set(CALLED_BY_OTHERS) <= {name for _, name in public_functions()} | {
        node.name
        for path in python_files(*OTHER_CODE)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
    }


def test_only_the_assembly_chooses_an_engine_by_name():
    """Elsewhere the configuration's properties say what follows from the engine (design.md, layers)."""
    allowed = ("megatron_prime/cli/assemble.py", "megatron_prime/config/")
    comparisons = [
        f"{relative(path)}:{number}"
        for path in python_files(PACKAGE)
        if not relative(path).startswith(allowed)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\.engine\s*(==|!=|in|not in)\s", line)
    ]
    assert comparisons == []


@pytest.mark.parametrize("folder", ["tests", "tools", "benchmarks", "examples"])
def test_no_code_changes_where_modules_are_found(folder: str):
    changes = [
        f"{relative(path)}:{number}"
        for path in python_files(ROOT / folder)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.match(r"\s*sys\.path(\.insert|\.append|\[)", line)
        and path.name not in (Path(__file__).name, "command_server.py")  # which does what an interpreter does
    ]
    assert changes == []


UNPICKLERS = (
    *("megatron_prime/data/code_tests.py", "megatron_prime/models/stored_pickles.py"),
    "megatron_prime/training/checkpoint/fork_results.py",
)
"""The only modules that may unpickle: they allow only classes that they name, or read what their own fork wrote."""


def test_no_file_is_loaded_in_a_way_that_could_execute_code():
    unsafe = []
    for path in python_files(PACKAGE, *OTHER_CODE):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(parsed(path)):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            options = {}
            if isinstance(node, ast.Call):
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if (
                (name == "torch.load" and options.get("weights_only") != "True")
                or options.get("weights_only") == "False"
                or options.get("allow_pickle") == "True"
                or (
                    re.fullmatch(r"(pickle|dill|cloudpickle|joblib|marshal|shelve)\.(load|loads|open)", name)
                    and relative(path) not in UNPICKLERS
                )
                or (
                    name.endswith(("dist_checkpointing.load", "load_sharded_metadata"))
                    and "refuse_code" not in text
                )
                or name.endswith((".read_metadata", "FileSystemReader", "load_common_state_dict"))
            ):
                unsafe.append(f"{relative(path)}:{node.lineno}: {name}")
        if "Unpickler(" in text and relative(path) not in UNPICKLERS:
            unsafe.append(f"{relative(path)}: an unpickler of its own")
    assert unsafe == []
