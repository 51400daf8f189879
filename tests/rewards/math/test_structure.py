import pytest

from megatron_prime.rewards.math.structure import (
    matrix_vector,
    split_bracketed,
    split_items,
    unit_vector_parts,
)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1, 2; 3", ["1", "2", "3"]),
        (r"1 \text{ or } 2", ["1", "2"]),
        ("1, 2, and 3", ["1", "2", "3"]),
        ("(1,2), (3,4)", ["(1,2)", "(3,4)"]),
        (r"\pm 2", ["2", "- 2"]),
        (r"1\pm\sqrt{2}", [r"1+\sqrt{2}", r"1-\sqrt{2}"]),
        (r"\frac{1,2}{3}", [r"\frac{1,2}{3}"]),
        ("5", ["5"]),
    ],
)
def test_items_are_split(text, items):
    assert split_items(text) == items


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("(1, 2)", ("(", ["1", "2"], ")")),
        ("[1,2)", ("[", ["1", "2"], ")")),
        (r"\{1,2,3\}", (r"\{", ["1", "2", "3"], r"\}")),
        ("(1,2)+(3,4)", None),
        (r"(1,2\}", None),
        ("1,2", None),
    ],
)
def test_bracketed_parts_are_split(text, parts):
    assert split_bracketed(text) == parts


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (r"\begin{pmatrix}1\\2\end{pmatrix}", ["1", "2"]),
        (r"\begin{bmatrix}1&2\end{bmatrix}", ["1", "2"]),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", None),
        ("(1,2)", None),
    ],
)
def test_matrices_of_one_row_or_column_are_vectors(text, entries):
    assert matrix_vector(text) == entries


def test_sums_of_unit_vectors_have_components():
    assert unit_vector_parts(r"2\mathsf{i}-\mathsf{j}") == ["2(1)-(0)", "2(0)-(1)"]
    assert len(unit_vector_parts(r"\mathsf{i}+\mathsf{k}") or ()) == 3
    assert unit_vector_parts("i+j") is None
