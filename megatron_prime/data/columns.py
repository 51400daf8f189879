"""Columnar tables: half a million prompts stored in a few flat buffers instead of one Python object each.

A tuple of token ids takes 8 to 36 bytes per token, a buffer of 32-bit integers 4 bytes per token.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeVar, overload

Record = TypeVar("Record")


class TokensColumn:
    """A column of token id sequences."""

    def __init__(self) -> None:
        # Row r is values[ends[r] : ends[r + 1]], which is why `ends` starts with 0.
        self._values = array("i")
        self._ends = array("q", [0])

    def append(self, token_ids: Iterable[int]) -> None:
        """Add a row."""
        self._values.extend(token_ids)
        self._ends.append(len(self._values))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> tuple[int, ...]:
        return tuple(self._values[self._ends[row] : self._ends[row + 1]])

    def __sizeof__(self) -> int:
        """Return the bytes of the buffers that are in use."""
        return len(self._values) * self._values.itemsize + len(self._ends) * self._ends.itemsize


class TextColumn:
    """A column of texts, stored as UTF-8.

    Lone surrogates, which JSON can express and UTF-8 cannot, are preserved.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        """Add a row."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogatepass")

    def __sizeof__(self) -> int:
        """Return the bytes of the buffers that are in use."""
        return len(self._bytes) + len(self._ends) * self._ends.itemsize


class CategoryColumn:
    """A column of strings with few distinct values, stored as integer codes."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}
        self._names: list[str] = []

    def append(self, name: str) -> None:
        """Add a row."""
        # A new name gets the next code, which is then equal to the number of names.
        code = self._code_of.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        self._codes.append(code)

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, row: int) -> str:
        return self._names[self._codes[row]]

    def __sizeof__(self) -> int:
        """Return the bytes of the codes; the few distinct names are not counted."""
        return len(self._codes) * self._codes.itemsize


class ColumnTable(Sequence[Record], ABC):
    """A sequence of records that are built from columns when they are accessed."""

    def __init__(self) -> None:
        self.groups = CategoryColumn()
        """The key of `data.weights` that each row belongs to."""

    @abstractmethod
    def _record(self, row: int) -> Record:
        """Build the record of a row, `0 <= row < len(self)`."""

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, row: int) -> Record: ...

    @overload
    def __getitem__(self, row: slice) -> list[Record]: ...

    def __getitem__(self, row: int | slice) -> Record | list[Record]:
        rows = range(len(self))[row]  # resolves negative rows and raises IndexError, as a list does
        return self._record(rows) if isinstance(rows, int) else [self._record(index) for index in rows]
