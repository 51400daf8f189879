import pytest

from megatron_prime.data.columns import NamesColumn, TextColumn, TokensColumn


@pytest.mark.parametrize(
    ("column", "rows"),
    [
        (TokensColumn, [(1, 2, 3), (), (151_999,)]),
        (TextColumn, ["", "x = ½", "two\nlines", "\ud83d alone"]),
        (NamesColumn, ["math", "", "code", "math"]),
    ],
)
def test_rows_come_back_as_they_were_put_in(column, rows):
    filled = column()
    for row in rows:
        filled.append(row)
    assert len(filled) == len(rows)
    assert [filled[place] for place in range(len(rows))] == rows
    assert filled.num_bytes >= 4 * len(rows)


def test_a_token_takes_four_bytes():
    column = TokensColumn()
    for _ in range(100):
        column.append(range(1000, 2000))
    assert column.num_bytes == 100 * 1000 * 4 + 101 * 8
