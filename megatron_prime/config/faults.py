"""Turn validation errors into messages that a user can act on: the option, the value given, the values allowed."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from megatron_prime.config.other_names import not_needed, our_names
from megatron_prime.config.redaction import redact
from megatron_prime.config.section import Section

_ALLOWED = {
    "string_type": "a string",
    "path_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": 'a list, such as ["first", "second"]',
    "model_type": "a table",
}
"""The values that a field allows, by pydantic's error type; every other message comes from pydantic."""


def describe_faults(error: ValidationError, root: type[Section]) -> list[str]:
    """Return one or more lines for each error, in the order of the schema, unknown keys last in their table."""
    known = set(dotted_keys(root))
    return [line for fault in error.errors(include_url=False) for line in _describe(fault, root, known)]


def section_of(annotation: object) -> type[Section] | None:
    """Return the section class of a field that holds a whole table, else None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def dotted_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield every key that a configuration may set, such as `policy.lr`."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner:
            yield from dotted_keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _describe(fault: Mapping[str, Any], root: type[Section], known: set[str]) -> list[str]:
    location = fault["loc"]
    key = _dotted(location)
    kind = fault["type"]
    if kind == "extra_forbidden":
        return _describe_unknown(key, fault["input"], known)
    if kind == "missing":
        return _describe_missing(location, root)
    if kind == "value_error":
        # Our own validators raise one line per fault, already worded for the user.
        return [f"{key}: {line}" if key else line for line in str(fault["ctx"]["error"]).splitlines()]
    allowed = _ALLOWED.get(kind) or fault["msg"].removeprefix("Input should be ")
    return [f"{key} = {_shown(fault['input'])}: must be {allowed}"]


def _describe_missing(location: tuple[str | int, ...], root: type[Section]) -> list[str]:
    """Return a line for each missing key with its documentation; for a missing table, for each required key in it."""
    section = root
    for name in location[:-1]:
        # The names in a table such as [evaluation.benchmarks] are free, not fields, and all values have one type.
        field = section.model_fields.get(str(name))
        section = section_of(_value_type(field.annotation)) or section if field else section
    field = section.model_fields[str(location[-1])]
    inner = section_of(field.annotation)
    if inner is None:
        texts = section.documentation()
        return [f"{_dotted(location)} is missing: {texts.get(str(location[-1]), 'it has no default')}"]
    required = [name for name, member in inner.model_fields.items() if member.is_required()]
    return [line for name in required for line in _describe_missing((*location, name), root)]


def _value_type(annotation: object) -> object:
    """Return the type of a dictionary's values; any other type is returned unchanged."""
    return get_args(annotation)[1] if get_origin(annotation) is dict else annotation


def _describe_unknown(key: str, value: object, known: set[str]) -> list[str]:
    """Return a line for an unknown key, or for each key of an unknown table that another system gives that name."""
    reason = not_needed(key)
    if reason:
        return [f"unknown key {key}: {reason}"]
    inner = [path for path in _leaves(key, value) if path != key and our_names(path)]
    if inner and not _near_sibling(key, known, cutoff=0.8):
        return [f"unknown key {path}{_did_you_mean(our_names(path))}" for path in inner]
    return [f"unknown key {key}{_did_you_mean(_similar(key, known))}"]


def _leaves(key: str, value: object) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, member in value.items():
            yield from _leaves(f"{key}.{name}", member)
    else:
        yield key


def _did_you_mean(keys: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(keys)}?" if keys else ""


def key_suggestions(key: str) -> Sequence[str]:
    """Return the keys that a user may have meant: the key itself if it exists, else similar or translated ones."""
    from megatron_prime.config.run import PrimeConfig  # it imports tables that import this module's package

    known = set(dotted_keys(PrimeConfig))
    return [key] if key in known else _similar(key, known)


def _similar(key: str, known: set[str]) -> Sequence[str]:
    """Return the most similar key: in the same table, else another system's name, else the same name elsewhere."""
    # A typing error within the right table is more likely than a key in the wrong table.
    near = _near_sibling(key, known)
    if near:
        return near
    name = key.rpartition(".")[2]
    elsewhere = sorted(path for path in known if path.rpartition(".")[2] == name)
    # Whole keys are similar if they share their table alone, so their names are compared too.
    similar = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.7)
    named = [
        path for path in similar if difflib.SequenceMatcher(None, path.rpartition(".")[2], name).ratio() > 0.6
    ]
    return _in_same_table(key, our_names(key), known) or elsewhere or named


def _in_same_table(key: str, translated: Sequence[str], known: set[str]) -> Sequence[str]:
    """Return the translations, or those that exist in the table of `key`: `sft.learning_rate` is `sft.lr`."""
    table = key.rpartition(".")[0]
    inside = sorted({f"{table}.{path.rpartition('.')[2]}" for path in translated} & known)
    return inside or translated


def _near_sibling(key: str, known: set[str], cutoff: float = 0.6) -> list[str]:
    table, _, name = key.rpartition(".")
    prefix = f"{table}." if table else ""
    siblings = {path.removeprefix(prefix).partition(".")[0] for path in known if _in_table(path, table)}
    # Another system's exact name is no typing error of a similar one of ours.
    cutoff = max(cutoff, 0.8 if our_names(key) else 0.0)
    return [prefix + match for match in difflib.get_close_matches(name, sorted(siblings), n=1, cutoff=cutoff)]


def _in_table(path: str, table: str) -> bool:
    return not table or path.startswith(f"{table}.")


def _dotted(location: tuple[str | int, ...]) -> str:
    """Return a location such as `("data", "train", 1)` as `data.train[1]`."""
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _shown(value: object) -> str:
    """Return the value approximately as TOML writes it, shortened to a readable length."""
    if value is None:
        return "none"
    # Redacted before it is cut: half of a URL does not show which part is a secret.
    text = str(value).lower() if isinstance(value, bool) else redact(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
