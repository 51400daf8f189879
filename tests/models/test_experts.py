"""Replayed routing equals an HF model whose routers are patched to choose the same experts."""

import pytest
import torch
import torch.nn.functional as F

from megatron_prime.models.experts import PartialReplay, RouterReplay
from tests.models import parity_worker
from tests.support.distributed_runner import run_distributed
from tests.support.layout_worker import layouts_of, whole_tensors
from tests.support.tiny_models import as_in_checkpoint, ragged_sequences, save_tiny_model
from tests.support.training_batches import score_with_hf

SEQUENCES = ragged_sequences()
NUM_COLUMNS = max(len(response) for _, response in SEQUENCES)
NUM_LAYERS, NUM_EXPERTS, NUM_CHOSEN = 4, 4, 2
LAYOUTS = ("one", "tp2+sp ep2", "cp2 ep2", "pp2 vpp2")
NAMES = ("qwen3 moe", "qwen3 moe mixed")
ROUTER_CHOOSES = 3
"""Index of the row without experts to replay."""


def patch_routers(model, experts_NLK):
    """Make HF's routers take these experts for the first tokens; they choose freely for the others."""

    def forward_of(router, experts_NK):
        def forward(hidden):
            logits = F.linear(hidden.reshape(-1, router.hidden_dim), router.weight)
            probs = logits.softmax(dim=-1)
            taken = probs.topk(NUM_CHOSEN, dim=-1).indices
            taken[: len(experts_NK)] = experts_NK
            weights = probs.gather(1, taken)
            if router.norm_topk_prob:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            return logits, weights, taken

        return forward

    for index, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.forward = forward_of(layer.mlp.gate, experts_NLK[:, index].long())


@pytest.fixture(scope="module")
def routing():
    generator = torch.Generator().manual_seed(3)
    return [
        None
        if row == ROUTER_CHOOSES
        else torch.rand(len(prompt) + len(response) - 1, NUM_LAYERS, NUM_EXPERTS, generator=generator)
        .topk(NUM_CHOSEN, dim=-1)
        .indices.to(torch.uint8)
        for row, (prompt, response) in enumerate(SEQUENCES)
    ]


@pytest.fixture(scope="module")
def weights_BT():
    weights_BT = torch.randn(len(SEQUENCES), NUM_COLUMNS, generator=torch.Generator().manual_seed(4))
    return weights_BT * (
        torch.arange(NUM_COLUMNS) < torch.tensor([[len(response)] for _, response in SEQUENCES])
    )


@pytest.fixture(scope="module")
def oracle(tmp_path_factory, routing, weights_BT):
    """Return {name: (folder, log-probs with free routing, log-probs and gradients with the replayed experts)}."""
    expected = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp("experts") / name
        model = save_tiny_model(name, folder)
        free_BT = score_with_hf(model, SEQUENCES, NUM_COLUMNS)[0].detach()
        rows = []
        for sequence, experts in zip(SEQUENCES, routing, strict=True):
            none = torch.empty(0, NUM_LAYERS, NUM_CHOSEN)
            patch_routers(model, none if experts is None else experts)
            rows.append(score_with_hf(model, [sequence], NUM_COLUMNS))
        logprobs_BT, entropy_BT = (torch.cat(of_rows) for of_rows in zip(*rows, strict=True))
        (weights_BT * (logprobs_BT + entropy_BT / 10)).sum().backward()
        gradients = as_in_checkpoint(model, {key: p.grad for key, p in model.named_parameters()})
        expected[name] = (folder, free_BT, logprobs_BT.detach(), gradients)
    return expected


@pytest.fixture(scope="module")
def replayed(oracle, routing, weights_BT):
    folders = {name: folder for name, (folder, *_) in oracle.items()}
    reports = {}
    for num_processes, layouts in layouts_of(LAYOUTS).items():
        by_rank = run_distributed(
            parity_worker.replay, num_processes, layouts, folders, SEQUENCES, weights_BT, 30, routing
        )
        reports |= {key: [of_rank[key] for of_rank in by_rank] for key in by_rank[0]}
    return reports


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_log_probs_follow_the_replayed_experts(name, layout, replayed, oracle):
    _, free_BT, expected_BT, _ = oracle[name]
    changed = (expected_BT - free_BT).abs().amax(dim=1) > 1e-3
    assert changed.tolist() == [row != ROUTER_CHOOSES for row in range(len(SEQUENCES))]
    for report in replayed[layout, name]:
        for key in ("logprobs", "logprobs_in_backward"):
            torch.testing.assert_close(report[key], expected_BT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_routers_and_the_replayed_experts(name, layout, replayed, oracle):
    expected = oracle[name][3]
    assembled = whole_tensors([report["gradients"] for report in replayed[layout, name]], expected)
    for key, tensor in expected.items():
        assert (assembled[key] - tensor).abs().max() < 1e-5 * tensor.abs().max(), key


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_without_experts_to_replay_routes_freely(name, replayed, oracle):
    for report in replayed["one", name]:
        torch.testing.assert_close(report["free"], oracle[name][1], rtol=0, atol=1e-5)


def test_experts_of_the_wrong_shape_are_refused(replayed):
    (report,) = replayed["one", NAMES[0]]
    assert "row 1: experts to replay have shape (8, 4, 1), (8, 4, 2) is needed" in report["refused"]


def test_megatrons_list_of_replays_does_not_grow():
    before = list(RouterReplay.global_router_replay_instances)
    PartialReplay()
    assert before == RouterReplay.global_router_replay_instances
