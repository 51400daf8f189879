"""The tables are well formed: the assumptions of the code that reads them hold for every row of every family."""

import pytest

from megatron_prime.hf.families import FAMILIES
from megatron_prime.hf.families.table import LAYER_PLACEMENTS, Placement, TensorLayout
from tests.support.hf_shapes import VARIANTS, make_shape

ROWS = [(family, row) for family in FAMILIES for row in FAMILIES[family].rows]


def test_every_family_is_found_under_its_model_type_and_has_a_table():
    assert {"llama", "mixtral", "qwen2", "qwen3", "qwen3_moe"} <= set(FAMILIES)
    assert all(family.model_type == name and family.rows for name, family in FAMILIES.items())


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
def test_only_rows_of_layers_contain_a_layer_index(family, row):
    is_layer, is_expert = row.placement in LAYER_PLACEMENTS, row.placement is Placement.EXPERT
    for name in (row.megatron_name, *(tensor.name for tensor in row.tensors)):
        assert ("{layer}" in name) == is_layer
        assert ("{expert}" in name) == is_expert
    assert (row.grouped_name is not None) == is_expert


@pytest.mark.parametrize(("family", "row"), ROWS)
def test_the_layout_fits_its_tensors(family, row):
    parallel = [tensor.parallel_dim for tensor in row.tensors]
    if row.layout is TensorLayout.REPLICATED:
        assert parallel == [None]
    elif row.layout is TensorLayout.QKV_GROUPS:
        assert parallel == [0, 0, 0]
    else:
        assert None not in parallel and len(set(parallel)) == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("absent", [Placement.DENSE_LAYER, Placement.MOE_LAYER])
def test_megatron_names_are_unique(variant, absent):
    """A layer is either dense or has experts, so the norms of both kinds may have the same name."""
    shape = make_shape(variant)
    rows = [row for row in FAMILIES[shape.family].rows if row.when is None or getattr(shape, row.when)]
    names = [row.megatron_name for row in rows if row.placement is not absent]
    assert len(names) == len(set(names))


def test_linear_layers_are_those_that_engines_quantize():
    linear = {tensor.name.split(".")[-2] for _, row in ROWS for tensor in row.tensors if tensor.is_linear}
    assert linear == {
        *(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")),
        "w1",
        "w2",
        "w3",
    }
