"""Names and shapes of the cells equal those of checkpoints saved by Megatron."""

import pickle

import pytest

from megatron_prime.conversion.cells import cells_of, extra_states
from megatron_prime.hf.shape import read_shape
from tests.conversion.conversion_worker import DENSE, MOE


@pytest.mark.parametrize("name", DENSE + MOE)
def test_cells_and_extra_states_equal_those_of_a_checkpoint_saved_by_megatron(name, hf_models, megatron):
    shape = read_shape(hf_models[0] / name)
    metadata = pickle.loads((megatron[0] / name / ".metadata").read_bytes())
    found = {
        key: tuple(entry.size)
        for key, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    whole = {cell.key: cell.whole_shape for cell in cells_of(shape)}
    vocab = {cell.key for cell in cells_of(shape) if cell.is_vocab}
    assert vocab and {key: found[key] for key in found.keys() - vocab} == {
        key: whole[key] for key in whole.keys() - vocab
    }
    assert whole.keys() == found.keys()
    # The vocabulary is padded to 128 times the tensor-parallel size that wrote it.
    assert {found[key] for key in vocab} <= {(384, 32), (512, 32)}
    assert set(extra_states(shape)) == metadata.state_dict_metadata.keys() - found.keys()


@pytest.mark.parametrize("name", DENSE + MOE)
def test_the_cells_of_a_tensor_cover_it(name, hf_models):
    by_key = {}
    for cell in cells_of(read_shape(hf_models[0] / name)):
        by_key.setdefault(cell.key, []).append(cell)
    for cells in by_key.values():
        indices = {cell.index for cell in cells}
        assert len(indices) == len(cells)
        sizes = cells[0].leading
        assert len(indices) == (1 if not sizes else sizes[0] * (sizes[1] if len(sizes) > 1 else 1))
