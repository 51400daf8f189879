"""Text of models and users as markdown that cannot break the page that shows it.

Every line is part of an indented code block, which no markup can end. Characters that would change what a reader sees
of the rest of the page (control characters, and marks that reorder text) are written as their code points.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prime.observability.loggers.protocol import Sample

MAX_CHARS = 2000
"""Number of characters of a text that are shown, half of them from its start and half from its end."""
_REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


def code_block(text: str) -> str:
    """Return a text of any origin as an indented code block."""
    lines = visible(text).split("\n")
    return "\n".join(f"    {line}" for line in lines)


def visible(text: str) -> str:
    r"""Return a text with "\n" as its only control character, and without marks that reorder it."""
    plain = text.replace("\r\n", "\n")
    return "".join(
        character if _is_harmless(character) else f"\\u{ord(character):04x}" for character in plain
    )


def shortened(text: str, max_chars: int = MAX_CHARS) -> str:
    """Return a text, or its start and its end where it is longer than `max_chars` characters."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def samples_text(samples: Sequence[Sample]) -> str:
    """Return prompts, responses and verdicts as one markdown text."""
    return "\n\n---\n\n".join(
        f"**Response {number}: {verdict(sample)}**\n\n"
        f"prompt\n\n{code_block(shortened(sample.prompt))}\n\n"
        f"response\n\n{code_block(shortened(sample.response))}"
        for number, sample in enumerate(samples, start=1)
    )


def verdict(sample: Sample) -> str:
    """Return the outcome of a response and its figures in one line of plain words."""
    outcome = "verifier error" if sample.outcome != sample.outcome else f"outcome {sample.outcome:g}"
    parts = [outcome, f"{sample.num_tokens} tokens", sample.finish_reason]
    if sample.process_reward is not None:
        parts.append(f"process reward {sample.process_reward:+.3g}")
    return ", ".join(part for part in parts if part)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return JSON values as a code block."""
    return code_block(json.dumps(settings, indent=1, ensure_ascii=False, default=str))


def _is_harmless(character: str) -> bool:
    if character in "\n\t":
        return True
    return (
        unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and ord(character) not in _REORDERING
    )
