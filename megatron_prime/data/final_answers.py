"""The final answer inside a worked solution, as data sets write them down."""

import re

_GSM8K_MARK = "####"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")
_LEADING_ZEROS = re.compile(r"0+(\d+)")


def gsm8k_answer(solution: str) -> str | None:
    """What follows the last `####`, without thousands separators, dollar sign and final point; None without one."""
    _, mark, answer = solution.rpartition(_GSM8K_MARK)
    answer = answer.strip().removeprefix("$").removesuffix(".").replace(",", "").strip()
    return answer if mark and answer else None


def last_boxed(solution: str) -> str | None:
    r"""Contents of the last `\boxed{...}` (or fbox) whose braces close; None without one, or when it is empty."""
    answer = None
    for box in _BOX.finditer(solution):
        depth, place = 1, box.end()
        while place < len(solution) and depth:
            character = solution[place]
            if character == "\\":
                place += 1  # the next character is escaped, a brace too
            elif character in "{}":
                depth += 1 if character == "{" else -1
            place += 1
        if depth == 0:
            answer = solution[box.end() : place - 1].strip()
    return answer or None


def plain_number(answer: str) -> str:
    """Whole numbers as people write them: `27.0` (a column of floats) as 27, `073` (an AIME answer sheet) as 73."""
    whole = _WHOLE_FLOAT.fullmatch(answer)
    if whole:
        return whole[1]
    padded = _LEADING_ZEROS.fullmatch(answer)
    return padded[1] if padded else answer


def without_dollars(answer: str) -> str:
    """The answer without the dollar signs around it."""
    stripped = answer.strip()
    while len(stripped) > 2 and stripped[0] == stripped[-1] == "$":
        stripped = stripped[1:-1].strip()
    return stripped
