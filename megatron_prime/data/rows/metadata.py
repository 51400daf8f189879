"""Metadata of a row: its columns besides those of the problem, as JSON text.

NaN and infinite numbers become null, as JSON has no others, dates text in ISO 8601, and decimals text with all their
digits. A value that is no JSON otherwise, such as the bytes of an image, or that is longer than MAX_VALUE_CHARS, is
left out, and the reader counts it.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

from megatron_prime.data.rows.row import DataRow

MAX_VALUE_CHARS = 1 << 16
"""Characters of the longest value: prompts hold their metadata in memory, and requests to servers send them."""


class MetadataReader:
    """Reads the metadata of rows, and counts the values that it leaves out.

    Args:
        columns: columns of the problem, which are no metadata; a path of names separated by dots is a part of one.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._left_out: Counter[str] = Counter()

    def text(self, row: DataRow) -> str:
        """Return the metadata of a row as a JSON object."""
        fields: Mapping[str, Any] = row.fields
        for column in self._columns:
            fields = _without(fields, [column] if column in row.fields else column.split("."))
        texts = []
        for name, value in fields.items():
            text = _json_of(value)
            if text is None or len(text) > MAX_VALUE_CHARS:
                self._left_out[name] += 1
            else:
                texts.append(f"{json.dumps(name)}: {text}")
        return f"{{{', '.join(texts)}}}"

    def log_lines(self) -> list[str]:
        """Return a log line for each column of which values were left out."""
        return [
            f"metadata: the column {name!r} is left out of {count} rows: it has no JSON value, or one of more than "
            f"{MAX_VALUE_CHARS:,} characters"
            for name, count in self._left_out.items()
        ]


def _without(fields: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """Return an object without the value at a path of names, if it has one."""
    name, *rest = path
    if name not in fields:
        return fields
    if not rest:
        return {key: value for key, value in fields.items() if key != name}
    inner = fields[name]
    return {**fields, name: _without(inner, rest)} if isinstance(inner, Mapping) else fields


def _json_of(value: object) -> str | None:
    """Return a value as JSON text; None if it has none."""
    try:
        # Not escaped, as most scripts take half the memory then; the columns hold lone surrogates too.
        return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return str(value)
    return value.isoformat() if isinstance(value, date | time) else value
