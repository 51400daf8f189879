"""A row of a data file, its fields, and the errors that concern it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prime.data.rows.json_text import parse_json

OnBadRow = Callable[[ValueError], None]
"""Called with the error of a line that holds no record; an exception that it raises ends the reading."""
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
_WITHOUT_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
"""Characters that Unicode does not count as white space although they show nothing."""
_MISSING_AS_TEXT = ("nan", "-nan", "nat", "<na>", "#n/a", "null")


class MissingFieldError(ValueError):
    """A row lacks a field that the layout asks for. If the first row of a file does, the layout is probably wrong."""


class RenderingError(ValueError):
    """The chat template makes no usable prompt of a row. If it does not of the first row, another one is needed."""


class SettingsError(ValueError):
    """A row cannot be used because of the settings, so that leaving out rows would be no cure."""


@dataclass(frozen=True, slots=True)
class DataRow:
    """One record and its position in a file."""

    fields: Mapping[str, Any]
    path: Path
    number: int
    """Position from 1: the line number in a jsonl file, the record number in any other file."""

    def error(self, reason: str, kind: type[ValueError] = ValueError) -> ValueError:
        """Return an error that names the file and the row."""
        return kind(f"{self.path}, row {self.number}: {reason}")

    def field(self, dotted: str) -> Any:  # noqa: ANN401 - JSON values
        """Return the value at a path of names separated by dots.

        Text on the way is parsed as JSON. A column whose own name contains the dots takes precedence.

        Raises:
            MissingFieldError: If there is no such field; the error lists the fields that exist.
            ValueError: If there can be none, because a value on the way is no object.
        """
        if dotted in self.fields:
            return self.fields[dotted]
        value: Any = self.fields
        walked: list[str] = []
        for name in dotted.split("."):
            value = self._as_mapping(value, walked, dotted)
            if name not in value:
                where = f" in {'.'.join(walked)!r}" if walked else ""
                raise self.error(
                    f"no field {name!r}{where} (looking for {dotted!r}); the fields are {sorted(value)}",
                    MissingFieldError,
                )
            value = value[name]
            walked.append(name)
        return value

    def check_text(self, name: str, text: str) -> None:
        """Raise ValueError, which calls the text by `name`, if it has what is no character: it must be damaged."""
        found = None if text.isascii() and "\0" not in text else _NO_CHARACTER.search(text)
        if found is not None:
            raise self.error(
                f"the {name} has a NUL character: was the file written in another encoding?"
                if found[0] == "\0"
                else f"the {name} has half of a character (a lone surrogate), which no tokenizer takes"
            )

    def _as_mapping(self, value: object, walked: list[str], dotted: str) -> Mapping[str, Any]:
        if isinstance(value, str):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise self.error(
                    f"{'.'.join(walked)!r} is text that is not JSON ({error}), so {dotted!r} cannot be found in it"
                ) from error
        if not isinstance(value, Mapping):
            raise self.error(
                f"{'.'.join(walked)!r} is a {type(value).__name__}: {dotted!r} cannot be found in it"
            )
        return value


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing."""
    # The common case is decided without a copy of the text.
    return not text.strip() or (not text.isascii() and not text.translate(_WITHOUT_INVISIBLE).strip())


def is_missing_text(text: str) -> bool:
    """Return whether a text is what tables have for a missing value, as pandas writes and reads it.

    The word None is not among them: it may be an answer.
    """
    return len(text) < 16 and text.strip().casefold() in _MISSING_AS_TEXT
