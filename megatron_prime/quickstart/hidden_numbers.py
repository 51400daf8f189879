"""A tool that knows what the policy cannot: the digit behind a key."""

import hashlib


def lookup(key: str) -> str:
    """Look up the digit that belongs to a key.

    Args:
        key: Three digits, such as "3 8 1".
    """
    digits = "".join(key.split())
    if len(digits) != 3 or not digits.isdecimal():
        return "error"
    return hidden_digit(digits)


def hidden_digit(digits: str) -> str:
    """Return the digit behind a key of three digits. No rule leads from one to the other, so it must be looked up."""
    return str(hashlib.sha256(f"hidden {digits}".encode()).digest()[0] % 10)
