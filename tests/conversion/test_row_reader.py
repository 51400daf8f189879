"""Rows read into existing memory equal those that safetensors loads."""

import pytest
import torch
from safetensors.torch import load_file

from megatron_prime.conversion.row_reader import RowReader, read_exactly


def test_rows_equal_those_loaded_by_safetensors(hf_models):
    folder = hf_models[0] / "qwen3"
    reader = RowReader(folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert (reader.shape_of(name), reader.dtype_of(name)) == (tuple(tensor.shape), tensor.dtype)
        num_rows = max(1, len(tensor) // 3)
        target = torch.empty_like(tensor[:num_rows])
        reader.read_rows(name, len(tensor) - num_rows, target)
        assert torch.equal(target, tensor[len(tensor) - num_rows :])


def test_a_file_that_is_too_short_is_reported(tmp_path):
    (tmp_path / "short").write_bytes(bytes(10))
    with (tmp_path / "short").open("rb") as file, pytest.raises(ValueError, match="ends 6 bytes too early"):
        read_exactly(file.fileno(), 0, torch.empty(4))
