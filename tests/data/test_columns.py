import pytest

from megatron_prime.data.columns import CategoryColumn, TextColumn, TokensColumn


@pytest.mark.parametrize(
    ("column", "rows"),
    [
        (TokensColumn, [(1, 2, 3), (), (151_999,)]),
        (TextColumn, ["", "x = ½", "two\nlines", "\ud83d alone"]),
        (CategoryColumn, ["math", "", "code", "math"]),
    ],
)
def test_a_column_returns_the_rows_that_were_appended(column, rows):
    filled = column()
    for row in rows:
        filled.append(row)
    assert len(filled) == len(rows)
    assert [filled[place] for place in range(len(rows))] == rows
    assert filled.__sizeof__() >= 4 * len(rows)


def test_a_token_takes_four_bytes():
    column = TokensColumn()
    for _ in range(100):
        column.append(range(1000, 2000))
    assert column.__sizeof__() == 100 * 1000 * 4 + 101 * 8
