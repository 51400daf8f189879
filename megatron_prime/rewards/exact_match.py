r"""The `exact_match` verifier: a response is right if it ends with exactly the answer.

Both texts are normalized: Unicode NFKC, runs of white space become one space, and the ends are stripped; case is
significant. An answer of n words is compared with the last n words of the response. An empty response is wrong.

    answer "7":      "3 5 7" -> 1,   "3 5 17" -> 0,   "7 3" -> 0,   "7." -> 0
    answer "x = 7":  "so\nx  =  7\n" -> 1
"""

import unicodedata


class ExactMatch:
    """Verifier by exact comparison; see the module's docstring.

    Its time is linear in the length of the text, so that it runs in the calling process.
    """

    in_process = True

    def verify(self, response_text: str, answer: str) -> float:
        """Return 1.0 if the response ends with the answer, else 0.0.

        Raises:
            ValueError: If the answer is blank, which every response would match.
        """
        return self.explain(response_text, answer)[0]

    def explain(self, response_text: str, answer: str) -> tuple[float, str]:
        """Return the reward as `verify` does, and the words that were compared."""
        expected = words_of_answer(answer)
        # Whole words are compared, so that "17" does not end with the answer "7".
        last = _last_words(response_text, expected)
        return float(
            last == expected
        ), f"it ends with {' '.join(last)[:80]!r}, the answer is {' '.join(expected)[:80]!r}"


def words_of_answer(answer: str) -> list[str]:
    """Return the words of a ground truth. Raises ValueError if it is blank, which every response would match."""
    words = words_of(answer)
    if not words:
        raise ValueError("the ground truth is blank")
    return words


def _last_words(text: str, expected: list[str]) -> list[str]:
    """Return the last words of a text, as many as are expected, in time linear in its length."""
    # Normalizing a run of combining characters takes quadratic time, for which a response must not hold up the run. No
    # form has less than a quarter of the characters, so that of a longer word the end is enough to see that it differs.
    longest = 4 * sum(map(len, expected)) + 64
    ends = [word[-longest:] for word in text.split()[-len(expected) :]]
    return words_of(" ".join(ends))[-len(expected) :]


def words_of(text: str) -> list[str]:
    """Return the words of the NFKC form, split at white space."""
    return unicodedata.normalize("NFKC", text).split()
