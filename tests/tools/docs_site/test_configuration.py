"""The page of the configuration has every key, with its range, default and documentation."""

import re

import pytest

from megatron_prime.config.faults import dotted_keys
from megatron_prime.config.run import PrimeConfig
from tools.docs_site.configuration import configuration_page, kind_of, prose, tables

PAGE = configuration_page()


def entry(key: str) -> list[str]:
    """Return the lines of a key's entry without empty ones."""
    text = PAGE.partition(f"{{ #{key} }}\n")[2]
    return [line for line in re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0].splitlines() if line]


def test_every_key_and_every_table_has_an_entry():
    anchors = re.findall(r"\{ #(\S+) \}$", PAGE, flags=re.MULTILINE)
    names = [name for name, _ in tables(PrimeConfig)]
    assert sorted(anchors) == sorted({*dotted_keys(PrimeConfig), *names, "top-level"} - {""})


def test_every_key_is_documented():
    assert [
        key for key in re.findall(r"^#### .*\{ #(\S+) \}$", PAGE, re.MULTILINE) if len(entry(key)) < 3
    ] == []


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("run_dir", "path · required"),
        ("prm.lr", "number ≥ 0 · default `1e-06`"),
        ("rollout.top_p", "number > 0 and ≤ 1 · default `1.0`"),
        ("prm.path", "path, or none · default `none`"),
        ("prm.enabled", "true or false · default `true`"),
        ("prm.granularity", '`"token"` or `"step"` or `"turn"` or `"whole"` · default `"token"`'),
        ("data.train", "list of paths · default `[]`"),
        ("reward.routes", 'table of strings · default `{ math = "math", code = "code" }`'),
    ],
)
def test_an_entry_has_type_range_and_default(key: str, line: str):
    assert entry(key)[0] == line


def test_keys_that_a_documentation_names_are_links():
    assert "[`reward.routes`](#reward.routes)" in "\n".join(entry("data.source_field"))
    linked = re.findall(r"\]\(#(\S+?)\)", PAGE)
    assert linked
    assert all(f"{{ #{key} }}" in PAGE for key in linked)


def test_a_table_within_a_list_is_a_table():
    assert (
        kind_of({"type": "array", "items": {"$ref": "#/$defs/A"}}, {"A": {"type": "object"}})
        == "list of table"
    )


def test_prose_shows_what_was_written():
    assert prose("a_b * <c> [d] `e_f <g>`") == r"a\_b \* &lt;c&gt; \[d\] `e_f <g>`"
