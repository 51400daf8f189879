"""Tests of vocabulary-parallel log-probs against float64 torch.log_softmax over the whole vocabulary."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_prime.logprobs import output_layer as vocab_logprobs
from megatron_prime.logprobs.output_layer import select_kernel
from tests.parallel.parallel_cases import CASES, NUM_REAL, TENSOR_SIZES

TOLERANCES = {"bf16": 2e-2, "large logits": 2e-3, "cold": 1e-5}


def oracle(case):
    """Return the expected values and gradients, by float64 autograd over the whole vocabulary."""
    hidden_RH = case["hidden_RH"].double().requires_grad_()
    weight_VH = case["weight_VH"][:NUM_REAL].double().requires_grad_()
    full_RV = torch.log_softmax(hidden_RH @ weight_VH.T / case["temperature"], dim=1)
    logprobs_R = full_RV.gather(1, case["labels_R"][:, None])[:, 0]
    entropy_R = -(full_RV.exp() * full_RV).sum(dim=1)
    (case["upstream_2R"] * torch.stack([logprobs_R, entropy_R])).sum().backward()
    return {
        "logprobs": logprobs_R.detach(),
        "entropy": entropy_R.detach(),
        "grad_hidden": hidden_RH.grad,
        "grad_weight": weight_VH.grad,
    }


@pytest.fixture(scope="module")
def results(four_processes):
    return [report["scores"] for report in four_processes]


@pytest.mark.parametrize("tensor", TENSOR_SIZES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_log_softmax(name, tensor, results):
    case, expected = CASES[name], oracle(CASES[name])
    # With a gather before the layer, the backward of the gather sums the hidden gradients, so here they are partial.
    replica = [by_case[tensor, name] for by_case in results[:tensor]]
    tolerance = TOLERANCES.get(name, 2e-6)

    def check(value, reference):
        scale = max(1.0, reference.abs().max().item() if reference.numel() else 1.0)
        torch.testing.assert_close(value.double(), reference, rtol=0, atol=tolerance * scale)

    for of_rank in replica:
        assert of_rank["logprobs"].dtype == of_rank["entropy"].dtype == torch.float32
        assert of_rank["grad_hidden"].dtype == of_rank["grad_weight"].dtype == case["hidden_RH"].dtype
        check(of_rank["logprobs"], expected["logprobs"])
        check(of_rank["entropy"], expected["entropy"])
        if not case["gathered"]:
            check(of_rank["grad_hidden"], expected["grad_hidden"])
        first, stop = of_rank["first_row"], of_rank["first_row"] + of_rank["num_rows"]
        check(of_rank["grad_weight"][: of_rank["num_rows"]], expected["grad_weight"][first:stop])
        assert not of_rank["grad_weight"][of_rank["num_rows"] :].any(), "padding rows get no gradient"
    if case["gathered"]:
        check(sum(of_rank["grad_hidden"].double() for of_rank in replica), expected["grad_hidden"])


@pytest.mark.parametrize("tensor", TENSOR_SIZES)
def test_every_rank_gets_the_same_bits(tensor, results):
    for name in CASES:
        for by_case in results:
            for key in ("logprobs", "entropy"):
                assert torch.equal(by_case[tensor, name][key], results[0][tensor, name][key])


@pytest.mark.parametrize("tensor", TENSOR_SIZES)
def test_results_do_not_depend_on_the_tile_size(tensor, results):
    whole = results[0][tensor, "one tile"]
    for name in (
        "chunks of 1",
        "chunks of 4",
        "one chunk exactly",
        "tiles of one column",
        "chunk larger than R",
    ):
        for key in ("logprobs", "entropy", "grad_hidden"):
            torch.testing.assert_close(results[0][tensor, name][key], whole[key], rtol=0, atol=2e-6)


def test_the_cases_cover_empty_shards_and_large_logits(results):
    assert [by_case[4, "one token"]["num_rows"] for by_case in results] == [16, 16, 5, 0]
    assert CASES["large logits"]["weight_VH"][:NUM_REAL].abs().max() > 100


@pytest.mark.parametrize(
    ("wanted", "is_cuda", "has_triton", "taken"),
    [
        ("auto", False, True, "torch"),
        ("auto", True, False, "torch"),
        ("auto", True, True, "triton"),
        ("torch", True, True, "torch"),
        ("triton", True, True, "triton"),
    ],
)
def test_triton_is_selected_on_a_gpu_where_it_is_installed(wanted, is_cuda, has_triton, taken, monkeypatch):
    monkeypatch.setattr(vocab_logprobs, "_has_triton", lambda: has_triton)
    assert select_kernel(wanted, is_cuda) == taken


@pytest.mark.parametrize(("is_cuda", "message"), [(False, "this run is on CPUs"), (True, "not installed")])
def test_a_kernel_that_cannot_run_is_rejected(is_cuda, message, monkeypatch):
    monkeypatch.setattr(vocab_logprobs, "_has_triton", lambda: False)
    with pytest.raises(ValueError, match=message):
        select_kernel("triton", is_cuda)


def test_a_cpu_run_needs_no_triton():
    script = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch, torch.distributed as dist
from megatron_prime.logprobs.output_layer import VocabShard, output_logprobs
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
weight = torch.zeros(8, 4)
shard = VocabShard(dist.group.WORLD, 0, 8, False)
logprobs, entropy = output_logprobs(torch.ones(3, 4), weight, torch.arange(3), shard)
assert torch.allclose(-logprobs, torch.tensor(8.0).log()) and torch.allclose(entropy, -logprobs)
print("scored")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "scored", done.stderr
