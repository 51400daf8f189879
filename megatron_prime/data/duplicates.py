"""Detection of repeated prompts by a digest of their text."""

import hashlib
import re
import unicodedata
from typing import Literal

DIGEST_BYTES = 16
"""Size of a digest. At 128 bits, half a million prompts collide with a probability below 1e-27."""
_WHITE_SPACE = re.compile(r"\s+")


class DuplicateFinder:
    """Remembers the prompts of one data set, across its files."""

    def __init__(self, mode: Literal["none", "exact", "normalized"]) -> None:
        """Start empty; `mode` is data.dedup, and "none" finds no duplicates and stores nothing."""
        self._mode = mode
        self._answer_of: dict[bytes, bytes] = {}
        self.num_duplicates = 0
        self.num_conflicts = 0
        """Number of duplicates whose answer differs from that of the prompt that was kept: one of the two is wrong."""

    def is_duplicate(self, text: str, answer: str) -> bool:
        """Return True, and count it, if a prompt with this text was seen before."""
        if self._mode == "none":
            return False
        # Digests instead of texts bound the memory per prompt, however long it is.
        key = _digest(normalized(text) if self._mode == "normalized" else text)
        answer_digest = _digest(answer)
        # setdefault returns this very object only when the key is new: equality would not tell a repeated answer.
        first = self._answer_of.setdefault(key, answer_digest)
        if first is answer_digest:
            return False
        self.num_duplicates += 1
        self.num_conflicts += first != answer_digest
        return True

    def log_lines(self) -> list[str]:
        """Return a summary for the log; empty when there were no duplicates."""
        if not self.num_duplicates:
            return []
        conflicts = f"; {self.num_conflicts} of them have a different answer" if self.num_conflicts else ""
        return [f"{self.num_duplicates} duplicates were dropped{conflicts}"]


def normalized(text: str) -> str:
    """Return the text without differences that do not change a problem.

    Those are Unicode compatibility forms, case, and runs of white space.
    """
    return _WHITE_SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
