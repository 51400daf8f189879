"""Weights are aligned like those of another model, which lie in one buffer, and keep their values."""

import torch

from megatron_prime.training.same_alignment import BYTES, align_like

PADDING = 64
"""Elements to a multiple of which Megatron's buffer pads the start of a parameter."""


def model(sizes, dtype=torch.bfloat16):
    torch.manual_seed(0)
    return torch.nn.ParameterDict(
        {f"w{size}": torch.nn.Parameter(torch.randn(size).to(dtype)) for size in sizes}
    )


def put_into_one_buffer(module):
    """Move the parameters into a flat buffer as Megatron's data-parallel wrapper does."""
    starts, end = [], 0
    for parameter in module.parameters():
        starts.append(-(-end // PADDING) * PADDING)
        end = starts[-1] + parameter.numel()
    buffer = torch.zeros(end, dtype=torch.bfloat16)
    for parameter, start in zip(module.parameters(), starts, strict=True):
        parameter.data = buffer[start : start + parameter.numel()].view(parameter.shape).copy_(parameter.data)


def starts(module):
    return [p.storage_offset() * p.element_size() % BYTES for p in module.parameters()]


def test_odd_sizes_get_the_alignment_of_the_trained_model():
    sizes = [64, 128, 192, 64, 7, 300, 128]
    trained, frozen = model(sizes), model(sizes)
    put_into_one_buffer(trained)
    assert len({*starts(trained)}) > 1 and {*starts(frozen)} == {0}
    before = {name: parameter.detach().clone() for name, parameter in frozen.named_parameters()}
    align_like(frozen, trained)
    assert starts(frozen) == starts(trained)
    assert all(torch.equal(parameter, before[name]) for name, parameter in frozen.named_parameters())
    assert all(
        p.untyped_storage().nbytes() < p.numel() * p.element_size() + BYTES for p in frozen.parameters()
    )


def test_models_of_common_sizes_and_other_models_are_left_alone():
    for sizes, others, dtype in (([128, 256], [128, 256], torch.bfloat16), ([64, 65], [66], torch.bfloat16)):
        trained, frozen = model(others), model(sizes, dtype)
        put_into_one_buffer(trained)
        pointers = [parameter.data_ptr() for parameter in frozen.parameters()]
        align_like(frozen, trained)
        assert [parameter.data_ptr() for parameter in frozen.parameters()] == pointers
