"""Reads times of day, which look like ratios but are not: 12:00 and 1:00 are two times."""

import re

_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?:\s*:\s*(?P<minute>\d\d)(?:\s*:\s*(?P<second>\d\d))?)?"
    r"\s*(?P<half>[ap]\.?\s?m\.?|noon|midnight)?\s*(?P<whole>o'?clock)?",
    flags=re.IGNORECASE,
)
_NAMED = {"noon": "12:00 noon", "midnight": "12:00 midnight"}


def times_equal(gold: str, given: str) -> bool | None:
    """Return whether two times of day are equal; None if the ground truth is no time of day.

    A time without a.m. or p.m. may stand for either where the ground truth leaves it open, not the other way round.
    """
    time = _parsed(gold)
    if time is None:
        return None
    other = _parsed(given)
    if other is None:
        # 3:10 may also be a ratio, of which the same two terms are a fraction.
        ratio = re.fullmatch(r"(\d+):(\d+)", re.sub(r"\s", "", gold))
        if ratio is None:
            return False
        words = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", given).split()
        return words == [ratio[1], "to", ratio[2]] or (
            re.sub(r"\s", "", given) == rf"\frac{{{ratio[1]}}}{{{ratio[2]}}}"
        )
    (hour, rest, half), (other_hour, other_rest, other_half) = time, other
    if rest != other_rest:
        return False
    if half is None and other_half is None:
        return hour == other_hour
    if half is None:
        # "3:30" may be 3:30 p.m., and 15:30 is.
        return hour in (other_hour, _in_24_hours(other_hour, other_half))
    return _in_24_hours(hour, half) == _in_24_hours(other_hour, other_half)


def _in_24_hours(hour: int, half: str | None) -> int:
    return hour if half is None else hour % 12 + (12 if half == "p" else 0)


def _parsed(text: str) -> tuple[int, tuple[int, int], str | None] | None:
    """Return hour, minute and second, and "a" or "p" for the half of the day if it is named."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1", text).strip()
    match = _TIME.fullmatch(_NAMED.get(plain.lower(), plain))
    if match is None or (match["minute"] or match["half"] or match["whole"]) is None:
        return None
    hour, minute, second = (int(match[name] or 0) for name in ("hour", "minute", "second"))
    if hour > 24 or minute > 59 or second > 59:
        return None
    half = (match["half"] or "")[:1].lower() or None
    half = {"n": "p", "m": "a"}.get(half or "", half)
    return (hour, (minute, second), half) if half is None or 1 <= hour <= 12 else None
