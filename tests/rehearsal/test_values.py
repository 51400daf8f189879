"""Values follow data of the host, and are forgotten where they are overwritten."""

import pytest
import torch

from megatron_prime.rehearsal.values import (
    UnknownValueError,
    constant,
    forget,
    known,
    numbers_from,
    set_twin,
    tensors_in,
    twin_of,
)


def device_tensor(values):
    tensor = torch.empty(values.shape, dtype=values.dtype, device="meta")
    set_twin(tensor, values)
    return tensor


def test_known_arguments_are_replaced():
    tensor = device_tensor(torch.arange(3))
    found = known(([tensor], torch.device("meta"), 5))
    assert found[0][0].tolist() == [0, 1, 2]
    assert found[1:] == (torch.device("cpu"), 5)


def test_a_forgotten_tensor_and_its_views_are_unknown():
    tensor = device_tensor(torch.arange(4))
    view = tensor[1:]
    set_twin(view, twin_of(tensor)[1:])
    forget(view)
    assert twin_of(tensor) is None
    with pytest.raises(UnknownValueError):
        known([tensor])


def test_a_large_constant_takes_one_element():
    tensor = torch.empty(1 << 30, device="meta")
    constant(tensor, 1)
    assert twin_of(tensor).untyped_storage().nbytes() == 4
    assert twin_of(tensor).shape == tensor.shape
    small = torch.empty(8, device="meta")
    constant(small, 1, most_reals=0)
    assert twin_of(small).untyped_storage().nbytes() == 4


def test_lists_of_tensors_become_numbers():
    assert numbers_from([[torch.tensor(2.0)], 3]) == [[2.0], 3]
    tensor = torch.zeros(1)
    assert tensors_in([[tensor], {"k": 1}.values(), tensor]) == [tensor, tensor]
