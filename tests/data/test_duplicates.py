import pytest

from megatron_prime.data.duplicates import DuplicateFinder, normalized


@pytest.mark.parametrize(
    ("left", "right", "is_same"),
    [
        ("Find  x.\n", "find x.", True),
        ("x² + 1", "x2 + 1", True),  # compatibility forms, as docs/data.md says
        ("Straße", "STRASSE", True),
        ("x+1", "x-1", False),
        ("f(A)", "f(B)", False),
    ],
)
def test_normalization_ignores_form_case_and_white_space(left, right, is_same):
    assert (normalized(left) == normalized(right)) is is_same


def test_duplicates_and_conflicts_are_counted():
    finder = DuplicateFinder("normalized")
    calls = [("a b", "1"), ("A  b", "1"), ("a b", "2"), ("ab", "1"), ("AB", "1")]
    assert [finder.is_duplicate(*call) for call in calls] == [False, True, True, False, True]
    assert (finder.num_duplicates, finder.num_conflicts) == (3, 1)
    assert finder.log_lines() == ["3 duplicates were dropped; 1 of them have a different answer"]


def test_exact_mode_distinguishes_case_and_none_keeps_all():
    assert not any(DuplicateFinder("none").is_duplicate("a", "1") for _ in range(3))
    finder = DuplicateFinder("exact")
    assert [finder.is_duplicate(text, "1") for text in ("a", "A", "a")] == [False, False, True]
