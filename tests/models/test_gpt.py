"""The complete next-token distribution equals HF's in every layout: every vocabulary id is scored at each position."""

import pytest
import torch

from tests.models import models_worker
from tests.support.distributed_runner import run_distributed
from tests.support.tiny_models import SIZES, save_tiny_model

NAMES = ("qwen2 tied", "qwen3", "llama rope")
LAYOUTS = ("dp2", "tp2", "tp2+sp", "pp2")
TEMPERATURES = (1.0, 0.6)
TOKEN_IDS = [17, 3, 299, 0, 42, 128, 127, 8]
POSITIONS = [5, 0, 7]
"""Positions to score: unordered, with the first and the last."""
VOCAB_SIZE = SIZES["vocab_size"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: (root / name, save_tiny_model(name, root / name)) for name in NAMES}


@pytest.fixture(scope="module")
def results(models):
    folders = {name: folder for name, (folder, _) in models.items()}
    return run_distributed(
        models_worker.score_every_token, 2, LAYOUTS, folders, TOKEN_IDS, POSITIONS, TEMPERATURES, VOCAB_SIZE
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_distribution_equals_hf(name, layout, temperature, results, models):
    with torch.no_grad():
        logits_PV = models[name][1](torch.tensor([TOKEN_IDS])).logits[0, POSITIONS].double()
    full_PV = torch.log_softmax(logits_PV / temperature, dim=-1)
    entropy_P = -(full_PV.exp() * full_PV).sum(-1)
    num_checked = 0
    for of_rank in results:
        scores_2PV = of_rank[layout, name, temperature]
        if scores_2PV is None:
            continue
        num_checked += 1
        torch.testing.assert_close(scores_2PV[0].double(), full_PV, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            scores_2PV[1].double(), entropy_P[:, None].expand(-1, VOCAB_SIZE), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            scores_2PV[0].double().exp().sum(1), torch.ones(3).double(), rtol=0, atol=1e-5
        )
    assert num_checked == (1 if layout == "pp2" else 2)


@pytest.mark.parametrize("name", NAMES)
def test_shards_cover_the_real_vocabulary_once(name, results):
    # 300 tokens are padded to 384 on one rank, and to 512 on two ranks, of which the second has 44 real rows.
    assert [of_rank["dp2", name, "rows"] for of_rank in results] == [(0, 300)] * 2
    for layout in ("tp2", "tp2+sp"):
        assert [of_rank[layout, name, "rows"] for of_rank in results] == [(0, 256), (256, 44)]
