r"""The `exact_match` verifier: the end of the response is, character by character, the answer.

Contract. Both texts are normalised: Unicode NFKC, runs of white space become one space, ends stripped; case counts.
The response is right when its normalised text ends with the normalised answer and the answer begins a word there: an
answer of one word is compared with the last white-space-separated token, one of n words with the last n. An empty
response is wrong.

    answer "7":      "3 5 7" -> 1,   "3 5 17" -> 0,   "7 3" -> 0,   "7." -> 0
    answer "x = 7":  "so\nx  =  7\n" -> 1
"""

import unicodedata


class ExactMatch:
    """See the module's contract. Linear in the length of the text, so it runs in the calling process."""

    in_process = True

    def verify(self, response_text: str, answer: str) -> float:
        """1.0 when the response ends with the answer, else 0.0.

        Raises:
            ValueError: the answer is blank, which every response would match.
        """
        expected = words_of(answer)
        if not expected:
            raise ValueError("the ground truth is blank")
        return float(words_of(response_text)[-len(expected) :] == expected)


def words_of(text: str) -> list[str]:
    """White-space-separated tokens of the NFKC form."""
    return unicodedata.normalize("NFKC", text).split()
