"""Read the fields of megatron-core's configuration classes from its source, without importing it.

Importing them takes seconds and imports torch; checking a configuration needs only their names and types.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path

CLASSES = {
    "transformer": (
        ("transformer/transformer_config.py", "TransformerConfig"),
        ("model_parallel_config.py", "ModelParallelConfig"),
    ),
    "optimizer": (("optimizer/optimizer_config.py", "OptimizerConfig"),),
    "ddp": (("distributed/distributed_data_parallel_config.py", "DistributedDataParallelConfig"),),
}
"""Table of `[megatron]` -> files below megatron/core and classes, each base class after the class that inherits it."""

PLAIN = {"bool": bool, "int": int, "float": float, "str": str}


@cache
def megatron_fields(table: str) -> dict[str, ast.expr]:
    """Return the public fields of the class behind a table of CLASSES, with their annotations.

    Raises ValueError when megatron-core is not installed, or its source is not where version 0.16 has it.
    """
    fields: dict[str, ast.expr] = {}
    for file, name in CLASSES[table]:
        path = _core() / file
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"megatron-core has no {path}: install the version in constraints.txt") from None
        (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        for statement in found.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                # The inheriting class comes first, so its annotation takes precedence over that of the base class.
                fields.setdefault(statement.target.id, statement.annotation)
    return {name: annotation for name, annotation in fields.items() if not name.startswith("_")}


def accepts(annotation: ast.expr, value: object) -> bool:
    """Return whether a TOML value has the annotated type; False for every type that TOML cannot express."""
    if isinstance(annotation, ast.Name) and annotation.id in PLAIN:
        wanted = PLAIN[annotation.id]
        # bool is a subclass of int, so isinstance would accept true for a number.
        return type(value) is wanted or (wanted is float and type(value) is int)
    if not isinstance(annotation, ast.Subscript):
        return False
    outer, inner = ast.unparse(annotation.value), annotation.slice
    members = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
    if outer in ("Optional", "Union"):
        return any(accepts(member, value) for member in members)
    if outer == "Literal":
        return any(isinstance(member, ast.Constant) and member.value == value for member in members)
    if not isinstance(value, list | tuple):
        return False
    if outer in ("List", "list"):
        return all(accepts(members[0], item) for item in value)
    return outer in ("Tuple", "tuple") and len(value) == len(members) and all(map(accepts, members, value))


def in_words(annotation: ast.expr) -> str:
    """Return the type of a field as text for a message."""
    return ast.unparse(annotation).replace("Optional[", "[").replace("'", '"')


def is_settable(annotation: ast.expr) -> bool:
    """Return whether TOML can express values of the type."""
    words = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    return bool(words & {*PLAIN, "Literal"})


def _core() -> Path:
    spec = importlib.util.find_spec("megatron")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        if (Path(folder) / "core").is_dir():
            return Path(folder) / "core"
    raise ValueError("megatron-core is not installed: pip install -e .")
