"""Prompts that came before, found by a digest of their text."""

import hashlib
import re
import unicodedata
from typing import Literal

DIGEST_BYTES = 16
"""Half a million prompts collide with a chance below 1e-27."""
_WHITE_SPACE = re.compile(r"\s+")


class DuplicateFinder:
    """Remembers the prompts of one data set, over its files."""

    def __init__(self, mode: Literal["none", "exact", "normalized"]) -> None:
        """`mode` is data.dedup; none finds nothing and remembers nothing."""
        self._mode = mode
        self._answer_of: dict[bytes, bytes] = {}
        self.num_duplicates = 0
        self.num_conflicts = 0
        """Duplicates whose answer is another than that of the prompt kept: one of the two is wrong."""

    def is_duplicate(self, text: str, answer: str) -> bool:
        """True for a prompt whose text was seen before; counts it."""
        if self._mode == "none":
            return False
        key = _digest(normalized(text) if self._mode == "normalized" else text)
        answer_digest = _digest(answer)
        first = self._answer_of.setdefault(key, answer_digest)
        if first is answer_digest:
            return False
        self.num_duplicates += 1
        self.num_conflicts += first != answer_digest
        return True

    def lines(self) -> list[str]:
        """What to log: nothing without duplicates."""
        if not self.num_duplicates:
            return []
        conflicts = f"; {self.num_conflicts} of them have another answer" if self.num_conflicts else ""
        return [f"{self.num_duplicates} duplicates are left out{conflicts}"]


def normalized(text: str) -> str:
    """The text without what does not change a problem: Unicode compatibility forms, case, runs of white space."""
    return _WHITE_SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
