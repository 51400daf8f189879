from pathlib import Path

import pytest
from pydantic import ValidationError

from megatron_prime.config.section import Positive, Section, UserPath


class Example(Section):
    """A table for the tests."""

    count: Positive = 1
    """How many."""
    folder: UserPath = Path("~/data")
    """Where."""


def test_a_section_is_frozen_refuses_unknown_keys_and_documents_its_fields():
    example = Example(folder=Path("~/x"))
    assert example.folder == Path.home() / "x"
    assert Example.documentation() == {"count": "How many.", "folder": "Where."}
    with pytest.raises(ValidationError, match="frozen"):
        example.count = 2
    with pytest.raises(ValidationError, match="extra"):
        Example(cuont=2)
    with pytest.raises(ValidationError, match="greater than 0"):
        Example(count=0)
