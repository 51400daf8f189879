"""Extraction of the final answer from a worked solution, in the notations of common data sets."""

import re

_GSM8K_MARK = "####"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")
_LEADING_ZEROS = re.compile(r"0+(\d+)")


def gsm8k_answer(solution: str) -> str | None:
    """Return the text after the last `####`, or None if there is none.

    Thousands separators, a leading dollar sign and a final period are removed.
    """
    _, mark, answer = solution.rpartition(_GSM8K_MARK)
    answer = answer.strip().removeprefix("$").removesuffix(".").replace(",", "").strip()
    return answer if mark and answer else None


def last_boxed(solution: str) -> str | None:
    r"""Return the contents of the last `\boxed{...}` or `\fbox{...}` with balanced braces, or None if none or empty."""
    answer = None
    for box in _BOX.finditer(solution):
        depth, index = 1, box.end()
        while index < len(solution) and depth:
            character = solution[index]
            if character == "\\":
                index += 1  # skip the next character: \{ and \} are not grouping braces
            elif character in "{}":
                depth += 1 if character == "{" else -1
            index += 1
        if depth == 0:
            answer = solution[box.end() : index - 1].strip()
    return answer or None


def plain_number(answer: str) -> str:
    """Return a whole number in its usual notation; any other answer is returned unchanged.

    A column of floats yields `27.0` for 27, and AIME answer sheets have `073` for 73.
    """
    whole = _WHOLE_FLOAT.fullmatch(answer)
    if whole:
        return whole[1]
    padded = _LEADING_ZEROS.fullmatch(answer)
    return padded[1] if padded else answer


def without_dollars(answer: str) -> str:
    """Return the answer without the dollar signs that surround it."""
    stripped = answer.strip()
    while len(stripped) > 2 and stripped[0] == stripped[-1] == "$":
        stripped = stripped[1:-1].strip()
    return stripped
