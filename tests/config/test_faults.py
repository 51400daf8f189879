import pytest
from pydantic import ValidationError, model_validator

from megatron_prime.config.faults import describe_faults, dotted_keys, section_of
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.section import Section


class Inner(Section):
    size: int
    """How big."""
    name: str = "x"

    @model_validator(mode="after")
    def _check(self):
        if self.size == 13:
            raise ValueError("first trouble\nsecond trouble")
        return self


class Outer(Section):
    inner: Inner
    flag: bool = False


def faults_of(data: dict) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data, strict=True)
    return describe_faults(caught.value, Outer)


def test_a_missing_table_names_the_keys_that_it_needs():
    assert faults_of({}) == ["inner.size is missing: How big."]


def test_a_validator_may_report_several_faults_a_line_each():
    assert faults_of({"inner": {"size": 13}}) == ["inner: first trouble", "inner: second trouble"]


def test_long_values_are_cut():
    (fault,) = faults_of({"inner": {"size": "y" * 500}})
    assert len(fault) < 130
    assert fault.endswith("...: must be a whole number")


def test_an_unset_value_is_shown_as_none():
    assert faults_of({"inner": {"size": None}}) == ["inner.size = none: must be a whole number"]


def test_dotted_keys_lists_every_leaf_once():
    assert list(dotted_keys(Outer)) == ["inner.size", "inner.name", "flag"]
    keys = list(dotted_keys(PrimeConfig))
    assert len(keys) == len(set(keys))
    assert {"seed", "policy.lr", "parallel.tensor"} <= set(keys)


def test_section_of_distinguishes_tables_from_values():
    assert section_of(Inner) is Inner
    assert section_of(int | None) is None
