"""The page of every key of the configuration: type, range, default and documentation, from the tables themselves."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.section import Section

INTRODUCTION = """# Configuration

Every key of a configuration, table by table. All but `run_dir`, `model.path` and `trainer.num_steps` have defaults.
In a file, a key belongs below the header of its table; on a command line it is written with the table's name, as in
`policy.lr=1e-6`, and `none` unsets an optional one. Paths are relative to the working directory. `megatron-prime check`
reports unknown keys and wrong values, with the closest name.
"""


def configuration_page() -> str:
    """Return the page as Markdown."""
    schema = PrimeConfig.model_json_schema()
    sections = []
    for name, table in tables(PrimeConfig):
        definition = schema if table is PrimeConfig else schema["$defs"][table.__name__]
        sections.append(_section(name, table, definition, schema["$defs"]))
    keys = set(re.findall(r"\{ #(\S+) \}", "\n".join(sections)))
    return "\n\n".join([INTRODUCTION, *(_with_links(section, keys) for section in sections)]) + "\n"


def tables(table: type[Section], name: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield a table and those inside it, depth first, each with its dotted name."""
    yield name, table
    for key, field in table.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from tables(kind, f"{name}.{key}" if name else key)


def _section(name: str, table: type[Section], definition: dict[str, Any], others: dict[str, Any]) -> str:
    """Return the section of one table; the tables inside it have sections of their own."""
    heading = f"## \\[{name}\\] {{ #{name} }}" if name else "## Keys before the first table { #top-level }"
    paragraphs = [heading, prose((table.__doc__ or "").strip())] if name else [heading]
    texts = table.documentation()
    required = definition.get("required", ())
    for key, field in table.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        path = f"{name}.{key}" if name else key
        value = definition["properties"][key]
        default = "required" if key in required else f"default `{_toml(value.get('default'))}`"
        paragraphs += [
            f"#### `{path}` {{ #{path} }}",
            f"{kind_of(value, others)} · {default}\n{{ .key-type }}",
            prose(texts.get(key, "")),
        ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def kind_of(value: dict[str, Any], others: dict[str, Any]) -> str:
    """Return the type and range of a key in words, from its JSON schema."""
    if "$ref" in value:
        return kind_of(others[value["$ref"].rpartition("/")[2]], others)
    if "enum" in value or "const" in value:
        return " or ".join(f"`{_toml(choice)}`" for choice in value.get("enum", [value.get("const")]))
    if "anyOf" in value:
        kinds = [kind_of(choice, others) for choice in value["anyOf"] if choice.get("type") != "null"]
        optional = len(kinds) < len(value["anyOf"])
        return " or ".join(dict.fromkeys(kinds)) + (", or none" if optional else "")
    if value.get("type") == "array":
        items = value.get("items") or {}
        return f"list of {_plural(kind_of(items, others))}" if items else "list"
    if value.get("type") == "object":
        inner = value.get("additionalProperties")
        return f"table of {_plural(kind_of(inner, others))}" if isinstance(inner, dict) else "table"
    words = {"integer": "integer", "number": "number", "boolean": "true or false"}
    word = words.get(value["type"], "path" if value.get("format") == "path" else "string")
    return word + _range(value)


def _range(value: dict[str, Any]) -> str:
    parts = [
        f"{sign} {value[bound]:g}"
        for bound, sign in (
            ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"),
        )
        if bound in value
    ]  # fmt: skip
    return f" {' and '.join(parts)}" if parts else ""


def _plural(kind: str) -> str:
    return re.sub(r"^(integer|number|string|path)\b", r"\1s", kind)


def _toml(value: object) -> str:
    """Return a default as one writes it in a TOML file, or none."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
            if value
            else "{}"
        )
    return json.dumps(value, ensure_ascii=False)


def prose(text: str) -> str:
    """Return plain text as Markdown that shows exactly this text; what stands between backticks is code."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([*_\[\]|])", r"\\\1", html.escape(piece, quote=False))
        for piece in pieces
    )


def _with_links(section: str, keys: set[str]) -> str:
    """Link every key that a documentation names to its own entry; code between backticks stays as it is."""

    def linked(match: re.Match[str]) -> str:
        key = match[1] and match[1].replace("\\", "")
        return f"[`{key}`](#{key})" if key in keys else match[0]

    pattern = re.compile(r"`[^`]*`|(?<![\w./])((?:\w|\\_)+(?:\.(?:\w|\\_)+)+)")
    lines = section.split("\n")
    return "\n".join(line if line.startswith("#") else pattern.sub(linked, line) for line in lines)
