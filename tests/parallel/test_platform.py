"""Tests of the platform, in two real processes and in this one."""

import sys
from importlib.util import find_spec

import pytest
import torch

from megatron_prime.parallel.platform import (
    Platform,
    move_together,
    own_gpu,
    select_platform,
    transformer_engine_fault,
    unrounded_sizes,
)
from tests.parallel import parallel_worker
from tests.support.distributed_runner import run_distributed


@pytest.fixture(scope="module")
def reports():
    return run_distributed(parallel_worker.use_platform, 2)


def test_joins_the_job_that_the_environment_describes(reports):
    assert [report["job"] for report in reports] == [(0, 2, "gloo"), (1, 2, "gloo")]


def test_a_collective_that_a_rank_misses_times_out(reports):
    seconds, message = reports[0]["missed"]
    assert 5 < seconds < 8.9, message


def test_a_lone_process_is_a_job_of_one(reports):
    assert [report["alone"] for report in reports] == [(0, 1)] * 2


def test_an_incomplete_environment_is_rejected(reports):
    for report in reports:
        assert "RANK only" in report["half"]
        assert "torchrun" in report["half"]


def test_describes_the_cpu(reports):
    assert reports[0]["bf16"] == ("cpu", "gloo", torch.bfloat16, False, 60.0)
    assert reports[0]["threads"] == 1


def test_peak_memory_grows_with_allocations(reports):
    before, after = reports[0]["memory"]
    assert before > 100 << 20, "torch alone takes more"
    assert 150 << 20 < after - before < 400 << 20


@pytest.mark.parametrize(
    ("local_rank", "num_visible", "index"),
    [
        pytest.param("5", 8, 5, id="all GPUs of the node"),
        pytest.param("5", 1, 0, id="one GPU per task"),
        pytest.param("3", 2, 1, id="two GPUs per task"),
        pytest.param(None, 8, 0, id="no launcher"),
    ],
)
def test_a_rank_takes_a_gpu_that_it_sees(monkeypatch, local_rank, num_visible, index):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert own_gpu() == torch.device("cuda", index) and chosen == [index]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_that_move_together_keep_shape_and_type(device, monkeypatch):
    """tests/gpu/pretend_faults.py does the same with a pretended GPU."""
    # Only a machine with an accelerator has pinned memory.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    tensors = [
        torch.arange(6).view(2, 3),
        torch.tensor([7], dtype=torch.int32),
        torch.empty(0, dtype=torch.int64),
    ]
    moved = move_together(tensors, device)
    assert [(m.device.type, m.dtype, m.shape) for m in moved] == [(device, t.dtype, t.shape) for t in tensors]
    assert device == "meta" or all(map(torch.equal, moved, tensors))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_is_rejected_without_a_gpu():
    with pytest.raises(ValueError, match=r"platform\.device = 'cuda'"):
        select_platform("cuda")


def test_copies_on_a_cpu_are_finished_on_return():
    platform = Platform(torch.device("cpu"), "gloo", torch.float32, None)
    device, (host,) = torch.arange(5, dtype=torch.uint8), platform.host_buffers(5)
    assert platform.copy_to_host([(host, device)]) is None
    device.zero_()
    assert platform.copy_to_device([(device, host)]) is None
    assert device.tolist() == host.tolist() == [0, 1, 2, 3, 4]
    platform.release_cached_memory()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_transformer_engine_is_rejected_on_a_cpu():
    with pytest.raises(ValueError, match="needs a GPU, and this run is on a CPU"):
        select_platform("cpu", layers="transformer_engine")


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="Transformer Engine is installed")
def test_reports_that_transformer_engine_is_not_installed():
    fault = transformer_engine_fault()
    assert fault is not None and "not installed" in fault


def test_reports_why_transformer_engine_does_not_import(tmp_path, monkeypatch):
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pytorch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
        monkeypatch.delitem(sys.modules, name)
    fault = transformer_engine_fault()
    assert fault == "it does not import (OSError: libcudart.so.12: cannot open shared object file)"
    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
        del sys.modules[name]
    sys.path_importer_cache.pop(str(tmp_path), None)


@pytest.mark.parametrize("num_bytes", [0, 1, 999, 1 << 20, (1 << 20) + 1, 52 * 10**9 + 7, (1 << 36) - 1])
def test_sizes_of_pinned_memory_are_not_rounded_up(num_bytes):
    sizes = unrounded_sizes(num_bytes)
    assert sum(sizes) == num_bytes and sizes == sorted(sizes, reverse=True) and len(sizes) < 20
    taken = sum(1 << max(0, size - 1).bit_length() for size in sizes)
    assert taken - num_bytes <= 1 << 20, "what torch's allocator takes for them"
