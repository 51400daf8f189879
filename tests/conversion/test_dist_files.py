"""Chunks are read back as written, and damaged files are reported."""

import pytest
import torch
import torch.distributed.checkpoint

from megatron_prime.conversion.dist_files import DistReader, append_chunk, append_empty_state, write_metadata


@pytest.fixture
def folder(tmp_path):
    values = torch.arange(24, dtype=torch.bfloat16).reshape(2, 4, 3)
    with (tmp_path / "__0_0.distcp").open("wb") as file:
        chunks = [append_chunk(file, "layers.weight", (layer, 0, 0), values[layer], 1) for layer in (0, 1)]
        chunks.append(append_empty_state(file, "layers._extra_state/shard_0_1"))
    write_metadata(tmp_path, chunks, {"layers.weight": ((2, 4, 3), torch.bfloat16)}, {"iteration": 7})
    return tmp_path


def test_written_chunks_are_read_back(folder):
    reader = DistReader(folder)
    assert reader.keys == ("layers.weight",)
    assert reader.shape_of("layers.weight") == (2, 4, 3)
    assert reader.dtype_of("layers.weight") == torch.bfloat16
    (chunk,) = reader.chunks("layers.weight", (1,))
    assert reader.load(chunk).tolist() == [torch.arange(12, 24).reshape(4, 3).tolist()]
    assert len(reader.chunks("layers.weight", ())) == 2
    assert not reader.chunks("layers.weight", (2,))


def test_torch_loads_the_written_folder(folder):
    state = {"layers.weight": torch.empty(2, 4, 3, dtype=torch.bfloat16)}
    torch.distributed.checkpoint.load(state, checkpoint_id=folder, no_dist=True)
    assert torch.equal(state["layers.weight"].flatten(), torch.arange(24, dtype=torch.bfloat16))


def test_a_truncated_file_is_reported(folder):
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:100])
    reader = DistReader(folder)
    with pytest.raises(ValueError, match=r"__0_0.distcp is damaged at layers.weight"):
        reader.load(reader.chunks("layers.weight", (1,))[0])


def test_a_folder_that_is_not_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"it has no .metadata"):
        DistReader(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.metadata cannot be read: EOFError"):
        DistReader(tmp_path)
