"""Read Megatron-LM's arguments from a command line, a shell script or a YAML file of an existing setup.

Scripts are read, not run: variables that the script sets to plain values are substituted, and the last occurrence of an
argument counts, as in argparse, whatever conditions surround it.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ASSIGNMENT = re.compile(
    r"^\s*(?:export\s+|local\s+)?([A-Za-z_]\w*)=(\"[^\"]*\"|'[^']*'|[^\s;#()\"']+)\s*(?:;.*)?$"
)
ASSIGNED = re.compile(r"^\s*(?:export\s+|local\s+)?([A-Za-z_]\w*)\+?=\(?")
VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?-([^{}]*))?\})")
COMMENT = re.compile(r"(^|\s)#.*$")
END = re.compile(r"^[;&|<>]|^\)?$|\.py$|^\$\{\w+\[[@*]\]\}$|^\$[@*]$")
"""Words that end the values of an argument: operators, programs, arrays."""


def read_arguments(source: str) -> dict[str, list[str]]:
    """Return the arguments of a command line or a shell script, as name without dashes -> values.

    A value that is known only when the script runs is returned as it is written, with its $ or `.
    """
    lines = [COMMENT.sub("", line) for line in source.replace("\\\n", " ").splitlines()]
    variables = _variables(lines)
    lists = {match[1] for match in map(ASSIGNED.match, lines) if match is not None} - {*variables}
    arguments: dict[str, list[str]] = {}
    for line in lines:
        current: list[str] | None = None
        for word in _words(line):
            bare = VARIABLE.fullmatch(word)
            if word.startswith("--") and len(word) > 2:
                name, has_value, value = word[2:].partition("=")
                current = arguments[name] = [_expand(value, variables)] if has_value else []
            elif END.search(word) or (bare is not None and (bare[1] or bare[2]) in lists):
                current = None
            elif current is not None:
                current.append(_expand(word, variables))
    return arguments


def read_yaml(text: str) -> dict[str, list[str]]:
    """Return the arguments of a YAML file: all names with values at any depth, or only those below MODEL_ARGS.

    Arguments that are false or null are not set. Raises ValueError if the file is not valid YAML or holds no table.
    """
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("holds no table of arguments")
    return dict(_leaves(content.get("MODEL_ARGS", content)))


def read_file(path: Path) -> dict[str, list[str]]:
    """Return the arguments of a YAML file (.yaml, .yml) or a script. Raises ValueError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    return read_yaml(text) if path.suffix in (".yaml", ".yml") else read_arguments(text)


def _variables(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        match = ASSIGNMENT.match(line)
        if match is not None and "--" not in match[2]:
            found[match[1]] = _expand(match[2].strip("\"'"), found)
    return found


def _expand(text: str, variables: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        known = variables.get(match[1] or match[2])
        return known if known is not None else match[0] if match[3] is None else match[3]

    return VARIABLE.sub(value, text)


def _words(line: str) -> Iterator[str]:
    """Yield the words of a line without quotes, splitting quoted arguments; a closing bracket is a word of its own."""
    text = ASSIGNED.sub("", line).strip()
    try:
        words = shlex.split(text)
    except ValueError:  # a string over several lines
        words = text.replace('"', " ").replace("'", " ").split()
    for word in words:
        for part in word.split() if word.startswith("--") or " --" in word else [word]:
            is_closed = part.endswith(")") and "(" not in part
            yield from (part[:-1], ")") if is_closed else (part,)


def _leaves(table: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for key, value in table.items():
        name = str(key).lstrip("-").replace("_", "-")
        if isinstance(value, dict):
            yield from _leaves(value)
        elif isinstance(value, list):
            yield name, [str(item) for item in value]
        elif value is True:
            yield name, []
        elif value is not None and value is not False:
            yield name, [str(value)]
