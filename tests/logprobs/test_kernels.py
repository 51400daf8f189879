"""Tests of the Triton kernels against float64: interpreted on a CPU, compiled for an H100, and run on a GPU."""

import os
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_prime.logprobs.output_layer import TILE_ELEMENTS, VocabShard, output_logprobs
from tests.logprobs.kernel_cases import EPS, LAYER_CASES, LOGIT_CASES, check_not_finite, check_walk
from tests.support import deadlines

# An installation of the development tools without triton skips this file.
triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
NUM_RANKS = 2


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Return the results of each rank of kernel_worker.py."""
    folder = tmp_path_factory.mktemp("kernels")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.logprobs.kernel_worker", str(folder)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(NUM_RANKS)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        errors = [rank.communicate(timeout=deadlines.seconds(240))[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * NUM_RANKS, "\n".join(errors)
    return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(NUM_RANKS)]


@pytest.mark.parametrize("name", LOGIT_CASES)
def test_statistics_and_gradients_of_tiles_follow_the_definition(name, reports):
    check_walk(LOGIT_CASES[name], reports[0]["logits"][name])


def test_results_do_not_depend_on_the_tiles(reports):
    logits = reports[0]["logits"]
    for key in ("label_logits", "logsumexp", "entropy", "grad"):
        torch.testing.assert_close(logits["+-1e4"][key], logits["+-1e4 in tiles"][key])


def test_labels_of_other_shards_add_nothing(reports):
    found = reports[0]["logits"]["labels of other shards"]
    assert not found["label_logits"].any()


def test_a_non_finite_logit_makes_the_entropy_nan(reports):
    check_not_finite(reports[0]["logits"]["not finite"])


@pytest.mark.parametrize("size", [1, NUM_RANKS])
@pytest.mark.parametrize("name", LAYER_CASES)
def test_a_whole_output_layer_equals_the_torch_implementation(name, size, reports):
    case = LAYER_CASES[name]
    for report in reports[:size]:
        ours, plain = report["layers"][name, "triton", size], report["layers"][name, "torch", size]
        for key, expected in plain.items():
            eps = EPS[case["hidden_RH"].dtype] if key.startswith("grad") else EPS[torch.float32]
            largest = expected.abs().max().item() if expected.numel() else 0.0
            # Sums of large logits have a larger rounding error; the torch path has its own test against float64.
            tolerance = eps * max(1.0, largest) * (100 if name == "large logits" else 8)
            assert ours[key].dtype == expected.dtype
            torch.testing.assert_close(ours[key], expected, rtol=0, atol=tolerance, equal_nan=False)
        assert not plain["grad_weight"][37:].any(), "rows that pad the vocabulary get no gradient"


def test_both_ranks_get_the_same_bits(reports):
    for name in LAYER_CASES:
        for key in ("logprobs", "entropy"):
            first, second = (report["layers"][name, "triton", NUM_RANKS][key] for report in reports)
            assert torch.equal(first, second)


class AbsentH100:
    """A triton driver with the methods that compilation needs, for a device that this machine does not have."""

    def get_current_device(self):
        return 99

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@dataclass
class Compiled:
    """A kernel that is compiled when it is called, and not launched."""

    kernel: Any
    binaries: list = field(default_factory=list)

    def __getitem__(self, grid):
        return lambda *args, **options: self.binaries.append(self.kernel.warmup(*args, grid=grid, **options))


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Replace both kernels by ones that are only compiled, for an H100, and return them."""
    from megatron_prime.logprobs import kernels as logprob_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = {
        name: Compiled(getattr(logprob_kernels, name)) for name in ("accumulate_kernel", "gradient_kernel")
    }
    for name, kernel in found.items():
        monkeypatch.setattr(logprob_kernels, name, kernel)
    monkeypatch.setattr(triton.runtime.driver, "_active", AbsentH100())
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_compiles_once_for_an_h100_without_spilling_and_loads_16_bytes_at_a_time(
    dtype, compiled, tmp_path
):
    from megatron_prime.logprobs.kernels import COLUMNS_PER_BLOCK, LAUNCH_OPTIONS, TritonTileMath

    work = TritonTileMath(8, 5000, torch.empty(0, dtype=dtype), 1.0)
    labels_R, maximum_R, sums_3R, per_token_4R = (
        torch.zeros(*shape, 20, dtype=kind)
        for shape, kind in (
            ((), torch.int64),
            ((), torch.float32),
            ((3,), torch.float32),
            ((4,), torch.float32),
        )
    )
    for num_columns, first_column, chunk in (
        (5000, 0, slice(0, 8)),
        (37, 5000, slice(8, 15)),
        (1, 5037, slice(15, 16)),
    ):
        product_CW = work.product_buffer(chunk.stop - chunk.start, num_columns)
        work.accumulate(product_CW, labels_R[chunk], first_column, maximum_R[chunk], sums_3R[:, chunk])
        work.gradient(product_CW, labels_R[chunk], first_column, per_token_4R[:, chunk])
    threads = 32 * LAUNCH_OPTIONS["num_warps"]
    for name, kernel in compiled.items():
        assert len(kernel.binaries) == 3
        assert len({id(binary) for binary in kernel.binaries}) == 1, "one binary serves tiles of any size"
        assembly = kernel.binaries[0].asm
        assert len(assembly["cubin"]) > 1000
        wide = COLUMNS_PER_BLOCK // threads * dtype.itemsize // 16
        assert len(re.findall(r"ld\.global\.v4", assembly["ptx"])) == wide
        assert len(re.findall(r"st\.global\.v4", assembly["ptx"])) == (
            wide if name == "gradient_kernel" else 0
        )
        report = _assemble(assembly["ptx"], tmp_path)
        assert "0 bytes spill stores, 0 bytes spill loads" in report
        registers = re.search(r"Used (\d+) registers", report)
        assert registers is not None
        # Eight programs must fit on an SM: the 1,024 rows of a tile are spread over 132 SMs.
        assert int(registers[1]) * threads * 8 <= 65536


def _assemble(ptx, folder):
    """Return the report on registers and spills of the assembler that triton includes."""
    (folder / "kernel.ptx").write_text(ptx)
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    command = [assembler, "-v", "--gpu-name=sm_90a", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


@pytest.fixture
def alone():
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group([0])
    if started:
        dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("kernel", ["triton", "torch"])
@pytest.mark.parametrize(("dtype", "temperature"), [("bf16", 1.0), ("bf16", 0.7), ("fp32", 1.0)])
def test_on_a_gpu_it_is_as_exact_as_the_product_and_holds_one_tile(kernel, dtype, temperature, alone):
    num_tokens, vocab, padded, hidden = 4096, 151_936, 152_064, 512
    wide = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    hidden_RH = random(num_tokens, hidden).to(wide).requires_grad_()
    weight_VH = (random(padded, hidden) * 2 * hidden**-0.5).to(wide)
    weight_VH[vocab:] = torch.nan
    weight_VH.requires_grad_()
    labels_R = torch.randint(0, vocab, (num_tokens,), generator=generator, device="cuda")
    upstream_2R = random(2, num_tokens)
    shard = VocabShard(alone, 0, vocab, hidden_is_gathered=False)

    def scored():
        both_2R = torch.stack(
            output_logprobs(hidden_RH, weight_VH, labels_R, shard, temperature, 1024, kernel)
        )
        (upstream_2R * both_2R).sum().backward()
        return both_2R.detach()

    scored()  # compiles the kernels and lets cuBLAS allocate its workspace
    hidden_RH.grad = weight_VH.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both_2R = scored()
    used = torch.cuda.max_memory_allocated() - before
    gradients = (num_tokens + padded) * hidden * (4 + wide.itemsize)
    tile = TILE_ELEMENTS["cuda"] * (wide.itemsize if kernel == "triton" else 8 + wide.itemsize % 4)
    # In addition, the product that is added to the gradient of the weights, and a few values per token.
    added = TILE_ELEMENTS["cuda"] // 1024 * hidden * wide.itemsize
    assert used <= 1.02 * (gradients + tile + added) + 64 * 4 * num_tokens

    rows = torch.arange(0, num_tokens, 64, device="cuda")
    expected = _by_definition_on_gpu(hidden_RH, weight_VH[:vocab], labels_R, upstream_2R, temperature, rows)
    # bf16 rounds logits, here up to 2^3, to 8 bits; the error of a log-prob is that of its label's logit.
    value = 2e-5 if dtype == "fp32" else 2.0**-5 / temperature
    gradient = 1e-4 if dtype == "fp32" else 3e-2
    torch.testing.assert_close(both_2R[:, rows].double(), expected["values"], rtol=0, atol=value)
    exact = expected["grad_hidden"]
    scale = exact.abs().max().item()
    torch.testing.assert_close(hidden_RH.grad[rows].double(), exact, rtol=0, atol=gradient * scale)
    assert not weight_VH.grad[vocab:].any()


def _by_definition_on_gpu(hidden_RH, weight_VH, labels_R, upstream_2R, temperature, rows):
    """Return the values and hidden gradients of some rows, by autograd through a float64 log_softmax."""
    hidden_RH = hidden_RH.detach()[rows].double().requires_grad_()
    full_RV = torch.log_softmax(hidden_RH @ weight_VH.detach().double().T / temperature, dim=1)
    values_2R = torch.stack(
        [full_RV.gather(1, labels_R[rows, None])[:, 0], -(full_RV.exp() * full_RV).sum(dim=1)]
    )
    (upstream_2R[:, rows] * values_2R).sum().backward()
    return {"values": values_2R.detach(), "grad_hidden": hidden_RH.grad}
