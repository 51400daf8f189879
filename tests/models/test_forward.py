"""Law 1: log-probs, entropies and gradients are HF's own, in every layout."""

import parity_worker
import pytest
import torch
from distributed_runner import run_distributed
from layout_worker import hf_weights, layouts_of, whole_tensors
from tiny_models import BUILDERS, as_in_checkpoint, ragged_sequences, save_tiny_model

NAMES = list(BUILDERS)
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
    """HF's model, one sequence at a time, without padding or packing."""
    expected = {}
    for name, (_, model) in models.items():
        logprobs_BT = torch.zeros(len(SEQUENCES), NUM_COLUMNS)
        entropy_BT = torch.zeros_like(logprobs_BT)
        for row, (prompt, response) in enumerate(SEQUENCES):
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            full = torch.log_softmax(logits, dim=-1)
            logprobs_BT[row, : len(response)] = full[range(len(response)), response]
            entropy_BT[row, : len(response)] = -(full.exp() * full).sum(-1)
        model.zero_grad()
        value = (weights_BT * (logprobs_BT + entropy_BT / 10)).sum()
        value.backward()
        gradients = as_in_checkpoint(model, {n: p.grad.clone() for n, p in model.named_parameters()})
        expected[name] = (logprobs_BT.detach(), entropy_BT.detach(), value.item(), gradients)
    return expected


@pytest.fixture(scope="module")
def results(models, weights_BT):
    """(layout, model) -> what each rank reports; layouts of as many processes share them."""
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
    logprobs_BT, entropy_BT, value, _ = oracle[name]
    for of_rank in results[layout, name]:
        torch.testing.assert_close(of_rank["logprobs"], logprobs_BT, rtol=0, atol=1e-5)
        torch.testing.assert_close(of_rank["entropy"], entropy_BT, rtol=0, atol=1e-5)
        assert of_rank["value"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(("layout", "name"), parity_worker.CASES)
def test_backward_scores_what_score_scores(layout, name, results):
    """The process reward of step 0 is exactly 0 only if both passes agree to the last bit."""
    for of_rank in results[layout, name]:
        assert torch.equal(of_rank["logprobs_in_backward"], of_rank["logprobs"])


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
