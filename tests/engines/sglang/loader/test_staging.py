"""How a half of a staging buffer is laid out. Mapping it: tests/engines/sglang/weights/test_shared_buffer.py."""

import pytest

from megatron_prime.engines.sglang.loader.staging import cuda_check, staging_offsets


@pytest.mark.parametrize(
    ("sizes", "offsets"),
    [([], [0, 0]), ([1], [0, 16, 32]), ([16, 2, 33], [0, 16, 32, 80, 128])],
)
def test_slices_begin_where_every_dtype_may_and_checksums_follow(sizes, offsets):
    assert staging_offsets(sizes) == offsets


def test_a_code_of_cuda_is_an_error_that_names_the_call():
    cuda_check(0, "cudaMalloc")
    with pytest.raises(RuntimeError, match="cudaMalloc failed with CUDA error 2"):
        cuda_check(2, "cudaMalloc")
