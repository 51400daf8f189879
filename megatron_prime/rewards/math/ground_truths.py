"""Reads ground truths: alternatives of which one is enough, and texts that no response can match."""

import json
import re

from megatron_prime.rewards.math.boxed import unwrap_boxed
from megatron_prime.rewards.math.notation import normalise


def alternatives(answer: str) -> list[str]:
    """Return the ground truths of which one is enough: the items of a JSON list with texts, else the text itself.

    A list of numbers alone is an interval or a vector.

    Raises:
        ValueError: If the ground truth or an alternative is blank, or if it is JSON of another form.
    """
    items: list[str] = [answer]
    value = _json_value(answer)
    if isinstance(value, dict) and value:
        raise ValueError("the ground truth is a JSON object; tests need reward.verifier = 'auto'")
    if isinstance(value, list) and not _is_of_numbers(value):
        if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in value):
            raise ValueError(
                f"the ground truth {answer[:100]!r} is a JSON list of something else than texts: list alternatives as "
                'in ["5", "five"]'
            )
        items = [str(item) for item in value]
    if not items or not all(item.strip() for item in items):
        raise ValueError(f"the ground truth {answer[:100]!r} is blank or has a blank alternative")
    return items


def _json_value(text: str) -> object:
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None  # an interval, a set or a group in braces


def _is_of_numbers(value: list[object]) -> bool:
    """Return True for a vector or matrix of numbers, which is mathematics as it stands."""
    return bool(value) and all(
        _is_of_numbers(item)
        if isinstance(item, list)
        else isinstance(item, int | float) and not isinstance(item, bool)
        for item in value
    )


def check_ground_truth(answer: str) -> None:
    """Raise ValueError for a ground truth that no response can match: blank, empty mathematics or no answer's form."""
    for item in alternatives(answer):
        if not normalise(unwrap_boxed(item)):
            raise ValueError(f"the ground truth {item[:100]!r} is empty but for its notation")
        if item.strip() in ("proof", "notfound"):  # as in NuminaMath-1.5
            raise ValueError(f"the ground truth {item!r} marks a problem without an answer")
    if re.match(r"\s*\[\s*'", answer) and _json_value(answer.replace("'", '"')) is not None:
        raise ValueError(
            f"the ground truth {answer[:100]!r} is a list as Python prints it: write it as JSON, as in "
            '["5", "five"]'
        )
