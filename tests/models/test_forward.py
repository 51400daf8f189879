"""Law 1: log-probs, entropies and gradients are HF's own, in every layout."""

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from megatron_prime.models.forward import padding_of
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from tests.models import parity_worker
from tests.support.distributed_runner import run_distributed
from tests.support.layout_worker import hf_weights, layouts_of, whole_tensors
from tests.support.tiny_models import as_in_checkpoint, ragged_sequences, save_tiny_model

ONE = Topology(
    platform=Platform(torch.device("cpu"), "gloo", torch.float32, timedelta(seconds=60)),
    rank=0,
    world_size=1,
    tensor_size=1,
    tensor_rank=0,
    pipeline_size=1,
    pipeline_rank=0,
    data_size=1,
    data_rank=0,
    sequence_parallel=False,
)
NAMES = list(dict.fromkeys(name for _, name in parity_worker.CASES))
SEQUENCES = ragged_sequences()
NUM_COLUMNS = max(len(response) for _, response in SEQUENCES)


@pytest.fixture(scope="module")
def weights_BT():
    weights_BT = torch.randn(len(SEQUENCES), NUM_COLUMNS, generator=torch.Generator().manual_seed(2))
    for row, (_, response) in enumerate(SEQUENCES):
        weights_BT[row, len(response) :] = 0
    return weights_BT


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: (root / name, save_tiny_model(name, root / name)) for name in NAMES}


@pytest.fixture(scope="module")
def oracle(models, weights_BT):
    """Return scores of HF's model, one sequence at a time, without padding or packing."""
    expected = {}
    for name, (_, model) in models.items():
        logprobs_BT = torch.zeros(len(SEQUENCES), NUM_COLUMNS)
        entropy_BT, values_BT = torch.zeros_like(logprobs_BT), torch.zeros_like(logprobs_BT)
        for row, (prompt, response) in enumerate(SEQUENCES):
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            full = torch.log_softmax(logits, dim=-1)
            logprobs_BT[row, : len(response)] = full[range(len(response)), response]
            entropy_BT[row, : len(response)] = -(full.exp() * full).sum(-1)
            values_BT[row, : len(response)] = logits[:, -1] - logits[:, -2]
        model.zero_grad()
        value = (weights_BT * (logprobs_BT + entropy_BT / 10)).sum()
        value.backward()
        gradients = as_in_checkpoint(model, {n: p.grad.clone() for n, p in model.named_parameters()})
        values_BT = values_BT.detach()
        expected[name] = (logprobs_BT.detach(), entropy_BT.detach(), value.item(), gradients, values_BT)
    return expected


@pytest.fixture(scope="module")
def results(models, weights_BT):
    """Return {(layout, model): report of each rank}. Layouts with the same number of processes share them."""
    folders = {name: str(folder) for name, (folder, _) in models.items()}
    reports = {}
    for num_processes, layouts in layouts_of(dict(parity_worker.CASES)).items():
        by_rank = run_distributed(
            parity_worker.score_and_differentiate, num_processes, layouts, folders, SEQUENCES, weights_BT, 30
        )
        reports |= {key: [of_rank[key] for of_rank in by_rank] for key in by_rank[0]}
    return reports


@pytest.mark.parametrize(("layout", "name"), parity_worker.CASES)
def test_scores_equal_hf(layout, name, results, oracle):
    logprobs_BT, entropy_BT, value, *_ = oracle[name]
    for of_rank in results[layout, name]:
        torch.testing.assert_close(of_rank["logprobs"], logprobs_BT, rtol=0, atol=1e-5)
        torch.testing.assert_close(of_rank["entropy"], entropy_BT, rtol=0, atol=1e-5)
        assert of_rank["value"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("layout", parity_worker.DENSE_LAYOUTS)
def test_padding_for_fp8_changes_no_result(layout, results, oracle):
    name = parity_worker.model_for(layout, parity_worker.PADDED)
    for of_rank in results[layout, name]:
        torch.testing.assert_close(of_rank["padded"], oracle[name][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", parity_worker.DENSE_LAYOUTS)
def test_the_values_of_a_critic_are_differences_of_two_logits_of_hf(layout, results, oracle):
    name = parity_worker.model_for(layout, parity_worker.PADDED)
    for of_rank in results[layout, name]:
        torch.testing.assert_close(of_rank["values"], oracle[name][4], rtol=0, atol=1e-5)
        torch.testing.assert_close(of_rank["entropy of values"], oracle[name][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "recipe", "tokens_of_a_rank"),
    [
        ({}, "tensorwise", 16),
        ({}, "blockwise", 128),
        ({"tensor_size": 4, "sequence_parallel": True}, "tensorwise", 16),
        ({"tensor_size": 4}, "delayed", 16),
        ({"tensor_size": 2, "sequence_parallel": True, "context_size": 2}, "mxfp8", 32),
    ],
)
def test_every_rank_has_whole_fp8_blocks_of_tokens(layout, recipe, tokens_of_a_rank):
    topology = replace(ONE, **layout)
    padding = padding_of(topology, SimpleNamespace(fp8="hybrid", fp8_recipe=recipe, tp_comm_overlap=False))
    share = topology.context_size * (topology.tensor_size if topology.sequence_parallel else 1)
    for length in (1, 100, 1000):
        num_tokens = padding.microbatch(length)
        assert num_tokens >= length and num_tokens % (share * tokens_of_a_rank) == 0


def test_overlapped_communication_needs_microbatches_of_one_length():
    topology = replace(ONE, tensor_size=2, sequence_parallel=True)
    config = SimpleNamespace(fp8=None, fp8_recipe="delayed", tp_comm_overlap=True)
    padding = padding_of(topology, config, max_tokens=1001)
    assert {padding.microbatch(length) for length in (1, 500, 1001)} == {1002}


@pytest.mark.parametrize(("layout", "name"), parity_worker.CASES)
def test_the_training_pass_scores_equal_those_of_the_scoring_pass(layout, name, results):
    """The process reward of step 0 is exactly 0 only if both passes agree to the last bit."""
    for of_rank in results[layout, name]:
        assert torch.equal(of_rank["logprobs_in_backward"], of_rank["logprobs"])


def test_stages_exchange_no_shapes(results):
    for key, by_rank in results.items():
        assert {of_rank["exchanged shapes"] for of_rank in by_rank} == {0}, key


@pytest.mark.parametrize(("layout", "name"), parity_worker.CASES)
def test_gradients_equal_hf(layout, name, results, oracle):
    gradients = oracle[name][3]
    assembled = whole_tensors([of_rank["gradients"] for of_rank in results[layout, name]], gradients)
    for parameter, expected in gradients.items():
        error = (assembled[parameter] - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, f"{parameter}: {error}"


@pytest.mark.parametrize(("layout", "name"), parity_worker.CASES)
def test_hf_to_megatron_to_hf_is_bit_equal(layout, name, results, models):
    weights = hf_weights(models[name][1])
    assembled = whole_tensors([of_rank["weights"] for of_rank in results[layout, name]], weights)
    for parameter, tensor in assembled.items():
        assert torch.equal(tensor, weights[parameter]), parameter
