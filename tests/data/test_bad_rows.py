import pytest

from megatron_prime.data.bad_rows import NUM_EXAMPLES, BadRows


def test_stop_raises_and_names_the_option():
    with pytest.raises(ValueError, match=r"a\.jsonl, row 3: odd; data\.on_bad_row = 'skip'"):
        BadRows("stop").reject(ValueError("a.jsonl, row 3: odd"))


def test_skip_counts_all_rows_and_keeps_the_first_reasons():
    rows = BadRows("skip")
    assert rows.log_lines() == []
    for number in range(NUM_EXAMPLES + 2):
        rows.reject(ValueError(f"row {number}"))
    assert rows.log_lines() == [
        "7 invalid rows were dropped, the first 5:",
        *(f"row {number}" for number in range(NUM_EXAMPLES)),
    ]
