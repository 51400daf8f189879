"""Records in a few flat buffers: half a million prompts cost what their tokens and answers take, not an object each.

A tuple of token ids takes 8 to 36 bytes a token, a buffer of 32-bit integers 4.
"""

from array import array
from collections.abc import Iterable


class TokensColumn:
    """Sequences of token ids, by row."""

    def __init__(self) -> None:
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

    @property
    def num_bytes(self) -> int:
        """Size of the buffers in use."""
        return len(self._values) * self._values.itemsize + len(self._ends) * self._ends.itemsize


class TextColumn:
    """Texts, by row, as UTF-8; lone surrogates, which JSON can write, survive."""

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

    @property
    def num_bytes(self) -> int:
        """Size of the buffers in use."""
        return len(self._bytes) + len(self._ends) * self._ends.itemsize


class NamesColumn:
    """Names out of a few, by row."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}
        self._names: list[str] = []

    def append(self, name: str) -> None:
        """Add a row."""
        code = self._code_of.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        self._codes.append(code)

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, row: int) -> str:
        return self._names[self._codes[row]]

    @property
    def num_bytes(self) -> int:
        """Size of the buffer in use, names aside."""
        return len(self._codes) * self._codes.itemsize
