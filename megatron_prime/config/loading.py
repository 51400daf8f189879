"""Read a TOML file and command-line overrides into a validated PrimeConfig.

Relative paths, in the file and in overrides, are relative to the working directory of the command; a leading ~ is the
home folder. The word `none` means "no value" for every field that may be unset, because TOML has no null.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError

from megatron_prime.config.faults import describe_faults, section_of
from megatron_prime.config.presets import with_preset
from megatron_prime.config.redaction import redact
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.section import Section


class ConfigError(ValueError):
    """A configuration that cannot run; `faults` contains one line for each thing to fix."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.faults = tuple(redact(fault) for fault in faults)
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {fault}" for fault in self.faults)]))


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> PrimeConfig:
    """Read `path` (None for an empty file), apply overrides such as `policy.lr=1e-6` in order, and validate the result.

    A preset that they name (`preset.name`) gives the values of keys that they leave out.

    The right side of an override is a TOML value (`true`, `3`, `["a", "b"]`). Text that is not valid TOML is taken as a
    string, and so is a number given for a field that holds text or a path.

    Raises:
        ConfigError: The configuration has faults, and the error lists all of them: unknown keys, wrong types, values
            out of range, options that contradict each other.
    """
    data = {} if path is None else _without_nones(_read_toml(path), PrimeConfig)
    source = "the overrides" if path is None else str(path)
    faults: list[str] = []
    for override in overrides:
        try:
            _apply_override(data, override)
        except ValueError as error:
            faults.append(str(error))
    data = with_preset(data)
    try:
        # Validation from JSON is strict, "5" is no number, but still converts strings to paths and lists to tuples.
        # TOML has dates, which JSON does not have: `default=str` passes them on as text.
        config = PrimeConfig.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(source, [*faults, *describe_faults(error, PrimeConfig)]) from None
    if faults:
        raise ConfigError(source, faults)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # Some editors begin a file with a byte order mark, which TOML does not have.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(str(path), [f"no such file (working directory: {Path.cwd()})"]) from None
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"is not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except RecursionError as error:
        raise ConfigError(str(path), ["is not valid TOML: it is nested too deeply"]) from error
    except tomllib.TOMLDecodeError as error:
        kind = "YAML" if path.suffix in (".yaml", ".yml") else "JSON" if path.suffix == ".json" else None
        hint = f"; it looks like {kind}, and a configuration is a TOML file (examples/)" if kind else ""
        raise ConfigError(str(path), [f"is not valid TOML: {error}{hint}"]) from error


def _apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key. Raises ValueError when the override lacks a key or a value, or its table is no table."""
    key, equals, text = override.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise ValueError(f"override {override!r} is not of the form section.key=value")
    plain = override.lstrip("+~")
    if plain != override:
        raise ValueError(f"override {override!r}: a key is written without + or ~: {plain}")
    table = data
    for depth, name in enumerate(names[:-1]):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"override {override!r}: {'.'.join(names[: depth + 1])} is a value, not a table")
    annotation = _annotation_at(names)
    if section_of(annotation) is not None:
        raise ValueError(f"override {override!r}: {key.strip()} is a table; set one of its keys")
    table[names[-1]] = _parse_value(text.strip(), annotation)


def _parse_value(text: str, annotation: object) -> object:
    if text == "none" and _allows_none(annotation):
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    holds_text = any(part in (str, Path) for part in _alternatives(annotation))
    # A text with a line break may parse as several TOML keys, of which only the first is the value.
    if len(parsed) > 1 or (holds_text and not isinstance(value, str)):
        return text
    return value


def _without_nones(table: dict[str, Any], section: type[Section]) -> dict[str, Any]:
    """Return the table with the word `none` replaced by None for every field that may be unset."""
    cleaned: dict[str, Any] = {}
    for name, value in table.items():
        field = section.model_fields.get(name)
        annotation = field.annotation if field else None
        inner = section_of(annotation)
        if inner is not None and isinstance(value, dict):
            cleaned[name] = _without_nones(value, inner)
        else:
            cleaned[name] = None if value == "none" and _allows_none(annotation) else value
    return cleaned


def _annotation_at(names: Sequence[str]) -> object:
    """Return the type of the field at a dotted path, or None for an unknown field, which validation reports."""
    section: type[Section] | None = PrimeConfig
    annotation: object = None
    for name in names:
        field = section.model_fields.get(name) if section else None
        if field is None:
            return None
        annotation = field.annotation
        section = section_of(annotation)
    return annotation


def _alternatives(annotation: object) -> set[object]:
    """Return the members of a union without Annotated; for any other type, the type itself."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    # Only a union has alternatives: the arguments of tuple[...] and Literal[...] have another meaning.
    if type(None) not in get_args(annotation):
        return {annotation}
    return set().union(*(_alternatives(member) for member in get_args(annotation)))


def _allows_none(annotation: object) -> bool:
    return type(None) in _alternatives(annotation)
