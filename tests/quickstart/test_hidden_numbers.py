"""The tool knows a digit for every key, and no rule helps to guess it."""

from collections import Counter

from megatron_prime.quickstart.hidden_numbers import hidden_digit, lookup


def test_keys_are_read_with_and_without_blanks():
    assert lookup(" 3 8 1 ") == lookup("381") == hidden_digit("381")
    assert [lookup(key) for key in ("", "12", "1 2 3 4", "a b c")] == ["error"] * 4


def test_all_digits_are_about_equally_frequent_whatever_the_key_begins_or_ends_with():
    digits = {key: hidden_digit(key) for key in (f"{number:03}" for number in range(1000))}
    assert set(digits.values()) == set("0123456789")
    for place in range(3):
        for own in "0123456789":
            counts = Counter(digit for key, digit in digits.items() if key[place] == own)
            assert max(counts.values()) < 25, (place, own)
