"""Tests that CUDA requests are redirected to the CPU, and that nothing else changes."""

import pytest
import torch

from megatron_prime.parallel.cpu_shim import CpuRNGStatesTracker, cpu_replacements
from tests.parallel import parallel_worker
from tests.support.distributed_runner import run_distributed


@pytest.fixture
def on_cpu(monkeypatch):
    for owner, name, replacement in cpu_replacements():
        monkeypatch.setattr(owner, name, replacement)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, device="cuda"),
        lambda: torch.empty(3, device="cuda:1", pin_memory=True).zero_(),
        lambda: torch.tensor([0.0] * 3, device=torch.device("cuda", 0)),
        lambda: torch.zeros(3).cuda(),
        lambda: torch.zeros(3).to("cuda"),
        lambda: torch.zeros(3).to(device="cuda"),
        lambda: torch.zeros(3).to(torch.device("cuda"), torch.float32, non_blocking=True),
        lambda: torch.zeros(3).pin_memory(),
        lambda: torch.zeros_like(torch.ones(3), device="cuda"),
        lambda: torch.ones(1).new_zeros(3, device="cuda"),
        lambda: torch.nn.Linear(3, 3).to("cuda").bias.data.zero_(),
        lambda: torch.nn.Parameter(torch.zeros(3)).cuda().detach(),
    ],
)
def test_cuda_tensors_are_made_on_the_cpu(make):
    tensor = make()
    assert tensor.device.type == "cpu"
    assert torch.equal(tensor, torch.zeros(3))


@pytest.mark.usefixtures("on_cpu")
def test_conversions_without_a_device_are_unchanged():
    tensor = torch.ones(2)
    assert tensor.to(torch.float64).dtype == torch.float64
    assert tensor.to("meta").device.type == "meta"
    assert tensor.to(torch.ones(1, dtype=torch.int8)).dtype == torch.int8
    assert tensor.type(torch.float64).dtype == torch.float64
    assert torch.zeros(2, device="meta").device.type == "meta"


@pytest.mark.usefixtures("on_cpu")
def test_type_names_are_the_ones_that_megatron_compares():
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(1, dtype=torch.float16).type() == "torch.cuda.HalfTensor"
    assert torch.zeros(1, dtype=torch.int64).type() == "torch.LongTensor"


def test_streams_are_independent_of_each_other_and_of_the_default_generator():
    tracker = CpuRNGStatesTracker()
    assert not tracker.is_initialized()
    torch.manual_seed(3)
    expected_default = torch.rand(4)
    torch.manual_seed(3)
    tracker.add("model-parallel-rng", 11)
    tracker.add("other", 12)
    with tracker.fork():
        first = torch.rand(2)
    with tracker.fork("other"):
        other = torch.rand(2)
    with tracker.fork():
        second = torch.rand(2)
    assert torch.equal(torch.rand(4), expected_default), "the default generator was not touched"
    assert torch.equal(torch.cat([first, second]), torch.rand(4, generator=torch.Generator().manual_seed(11)))
    assert torch.equal(other, torch.rand(2, generator=torch.Generator().manual_seed(12)))


def test_a_stream_continues_after_an_error_and_after_restoring_states():
    tracker = CpuRNGStatesTracker()
    tracker.add("model-parallel-rng", 5)
    saved = tracker.get_states()
    default = torch.get_rng_state()
    with pytest.raises(KeyError), tracker.fork():
        first = torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), default)
    with tracker.fork():
        assert not torch.equal(torch.rand(1), first)
    tracker.set_states(saved)
    with tracker.fork():
        assert torch.equal(torch.rand(1), first)


def test_a_stream_cannot_be_added_twice():
    tracker = CpuRNGStatesTracker()
    tracker.add("a", 1)
    with pytest.raises(AssertionError, match="already exists"):
        tracker.add("a", 2)
    tracker.reset()
    tracker.add("a", 2)


def test_install_redirects_megatron_for_the_rest_of_the_process():
    (report,) = run_distributed(parallel_worker.use_shim, 1)
    assert report["type"] == ("torch.FloatTensor", "torch.cuda.FloatTensor")
    assert report["device"] == torch.device("cpu")
    assert report["new"] == report["cuda"] == "cpu"
    assert report["meta"] == "meta"
    assert report["adam"]
    assert report["tracker"]


def test_ranks_with_different_numbers_of_tokens_gather_and_scatter_them(four_processes):
    for report in four_processes:
        assert report["uneven"] == {"gathered": True, "gradient": True, "scattered": True}
