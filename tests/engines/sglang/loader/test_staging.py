"""The layout of a half of a staging buffer; tests/engines/sglang/weights/test_shared_buffer.py tests its mapping."""

import pytest

from megatron_prime.engines.sglang.loader.staging import cuda_check, staging_offsets


@pytest.mark.parametrize(
    ("sizes", "offsets"),
    [([], [0, 0]), ([1], [0, 16, 32]), ([16, 2, 33], [0, 16, 32, 80, 128])],
)
def test_slices_are_aligned_for_every_dtype_and_checksums_follow(sizes, offsets):
    assert staging_offsets(sizes) == offsets


def test_a_code_of_cuda_is_an_error_that_names_the_call():
    cuda_check(0, "cudaMalloc")
    with pytest.raises(RuntimeError, match="cudaMalloc failed with CUDA error 2"):
        cuda_check(2, "cudaMalloc")
