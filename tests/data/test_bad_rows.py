import pytest

from megatron_prime.data.bad_rows import NUM_EXAMPLES, BadRows


def test_stop_raises_with_the_way_out():
    with pytest.raises(ValueError, match=r"a\.jsonl, row 3: odd; data\.on_bad_row = 'skip'"):
        BadRows("stop").refuse(ValueError("a.jsonl, row 3: odd"))


def test_skip_counts_all_and_shows_the_first():
    rows = BadRows("skip")
    assert rows.lines() == []
    for number in range(NUM_EXAMPLES + 2):
        rows.refuse(ValueError(f"row {number}"))
    assert rows.lines() == [
        "7 rows do not fit and are left out, the first 5:",
        *(f"row {number}" for number in range(NUM_EXAMPLES)),
    ]
