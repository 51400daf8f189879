"""Formulas become SVG that takes the colour of the text, and is the same in every build."""

import re

import pytest

from tools.docs_site.maths import formula, with_formulas

TEX = r"r_t = \beta \log \dfrac{\pi(y_t)}{\pi_{ref}(y_t)}"


def test_a_formula_is_an_element_without_colours():
    svg = formula(TEX)
    assert svg.startswith('<svg fill="currentColor" ')
    assert svg.endswith("</svg>")
    assert not re.search(r"#[0-9a-f]{6}|stroke: |<metadata|\n", svg.replace("#pad", ""))


def test_a_formula_is_the_same_in_every_build():
    assert formula(TEX) == formula(TEX)


def test_a_formula_that_is_none_is_refused():
    with pytest.raises(ValueError, match="Unknown symbol"):
        formula(r"\nonsense")


def test_fences_of_formulas_are_replaced_and_others_stay():
    text = with_formulas(f"before\n\n```math\n{TEX}\n```\n\n```python\nx\n```\n")
    assert text.startswith('before\n\n<div class="formula" role="math" aria-label="r_t = ')
    assert text.endswith("</svg></div>\n\n```python\nx\n```\n")
