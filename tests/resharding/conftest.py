"""Fixtures that start the ranks once, for the tests of the transport and of the weight sync."""

import pytest
import torch

from tests.resharding import resharding_worker
from tests.resharding.resharding_worker import CASES
from tests.support.distributed_runner import run_distributed
from tests.support.layout_worker import layouts_of
from tests.support.tiny_models import save_tiny_model

PROMPTS = [[5, 17, 250], [9], [44, 2, 3, 4, 101], [7, 7], [299, 0, 12, 13]]
NUM_TOKENS = 6


@pytest.fixture(scope="session")
def resharded_models(tmp_path_factory):
    """Name -> two models of the same shape with different weights, each as (folder, HF model)."""
    root = tmp_path_factory.mktemp("resharding")
    return {
        name: [
            (root / f"{name}{seed}", save_tiny_model(name, root / f"{name}{seed}", seed)) for seed in range(2)
        ]
        for name in {name for _, name in CASES}
    }


@pytest.fixture(scope="session")
def resharded(resharded_models):
    """(layout, model name) -> report of each rank."""
    folders = {name: [folder for folder, _ in versions] for name, versions in resharded_models.items()}
    reports = {}
    for num_processes, layouts in layouts_of(layout for layout, _ in CASES).items():
        cases = [case for case in CASES if case[0] in layouts]
        by_rank = run_distributed(
            resharding_worker.reshard, num_processes, cases, folders, PROMPTS, NUM_TOKENS
        )
        reports |= {key: [report[key] for report in by_rank] for key in by_rank[0]}
    return reports


@pytest.fixture(scope="session")
def greedy_responses():
    """Function from an HF model to its greedy continuation of each prompt, with one forward pass per token."""
    cache = {}

    def respond(model):
        if id(model) not in cache:
            cache[id(model)] = [_greedy(model, prompt) for prompt in PROMPTS]
        return cache[id(model)]

    return respond


@torch.no_grad()
def _greedy(model, prompt):
    tokens = list(prompt)
    for _ in range(NUM_TOKENS):
        tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
    return tokens[len(prompt) :]
