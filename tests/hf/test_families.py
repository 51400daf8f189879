"""The tables are well formed: what the walkers take for granted holds for every row of every family."""

import pytest

from megatron_prime.hf.config_json import FAMILY_TRAITS
from megatron_prime.hf.families import FAMILIES, LAYER_PLACES, Layout, Place
from tests.support.hf_shapes import VARIANTS, make_shape

ROWS = [(family, row) for family, rows in FAMILIES.items() for row in rows]


def test_every_family_that_is_read_has_a_table():
    assert set(FAMILIES) == set(FAMILY_TRAITS)


@pytest.mark.parametrize(("family", "row"), ROWS)
def test_rows_name_attributes_of_the_shape(family, row):
    shape = make_shape(family)
    for tensor in row.tensors:
        assert all(isinstance(getattr(shape, dim), int) for dim in tensor.dims)
        assert tensor.unit is None or isinstance(getattr(shape, tensor.unit), int)
        assert tensor.parallel_dim is None or tensor.parallel_dim < len(tensor.dims)
    if row.when is not None:
        assert isinstance(getattr(shape, row.when), bool)


@pytest.mark.parametrize(("family", "row"), ROWS)
def test_layer_rows_and_only_they_name_a_layer(family, row):
    is_layer, is_expert = row.place in LAYER_PLACES, row.place is Place.EXPERT
    for name in (row.megatron_name, *(tensor.name for tensor in row.tensors)):
        assert ("{layer}" in name) == is_layer
        assert ("{expert}" in name) == is_expert
    assert (row.grouped_name is not None) == is_expert


@pytest.mark.parametrize(("family", "row"), ROWS)
def test_the_layout_fits_its_tensors(family, row):
    parallel = [tensor.parallel_dim for tensor in row.tensors]
    if row.layout is Layout.REPLICATED:
        assert parallel == [None]
    elif row.layout is Layout.QKV_GROUPS:
        assert parallel == [0, 0, 0]
    else:
        assert None not in parallel and len(set(parallel)) == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("absent", [Place.DENSE_LAYER, Place.MOE_LAYER])
def test_no_megatron_parameter_is_made_twice(variant, absent):
    """A layer is dense or has experts: both name their norm alike."""
    shape = make_shape(variant)
    rows = [row for row in FAMILIES[shape.family] if row.when is None or getattr(shape, row.when)]
    names = [row.megatron_name for row in rows if row.place is not absent]
    assert len(names) == len(set(names))


def test_what_engines_quantize():
    linear = {tensor.name.split(".")[-2] for _, row in ROWS for tensor in row.tensors if tensor.is_linear}
    assert linear == {
        *(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")),
        "w1",
        "w2",
        "w3",
    }
