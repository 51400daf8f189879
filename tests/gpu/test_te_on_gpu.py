"""Transformer Engine layers against plain torch layers on a GPU, FP8 against bf16, and checkpoints between them."""

import importlib.util

import pytest
import torch

from megatron_prime.models.te_layers import fp8_fault
from tests.gpu import gpu_worker
from tests.support.distributed_runner import run_distributed

HAS_TE = importlib.util.find_spec("transformer_engine") is not None
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.skipif(not HAS_TE, reason="Transformer Engine is not installed"),
]
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
MODELS = tuple(gpu_worker.BUILDERS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    gpu_worker.save_models(folder)
    return folder


def on_gpu(function, *arguments):
    (found,) = run_distributed(function, 1, "cuda", *arguments, timeout_s=600)
    return found


@pytest.fixture(scope="module")
def layers(models, tmp_path_factory):
    return on_gpu(gpu_worker.compare_layers, models, tmp_path_factory.mktemp("layers"))


@pytest.fixture(scope="module")
def recipes(models, tmp_path_factory):
    return on_gpu(gpu_worker.try_recipes, models, tmp_path_factory.mktemp("recipes"), RECIPES)


@pytest.fixture(scope="module")
def refused():
    """Return {recipe: why this GPU cannot run it, or None}."""
    where = on_gpu(gpu_worker.capability)
    return {recipe: fp8_fault(recipe, *where) for recipe in RECIPES}


def relative(found, exact):
    """Return the relative error (L2 norm) of a tensor, or of all tensors of a dict together."""
    if isinstance(found, dict):
        assert found.keys() == exact.keys()
        found, exact = (torch.cat([part[key].flatten() for key in exact]) for part in (found, exact))
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("model", MODELS)
def test_te_layers_are_as_close_to_fp32_as_torch_layers(layers, model):
    exact, plain, fused = layers[model]
    assert [found["layers"] for found in layers[model]] == ["torch", "torch", "transformer_engine"]
    for what in ("logprobs", "entropy", "gradients"):
        of_torch, of_te = (relative(found[what], exact[what]) for found in (plain, fused))
        assert 0 < of_te <= 2 * of_torch, f"{what}: {of_te} beside torch's {of_torch}"


@pytest.mark.parametrize("model", MODELS)
def test_every_single_gradient_is_correct(layers, model):
    exact, plain, fused = layers[model]
    for key, gradient in exact["gradients"].items():
        of_torch = relative(plain["gradients"][key], gradient)
        assert relative(fused["gradients"][key], gradient) <= 3 * of_torch + 0.02, key


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_is_close_to_bf16_or_refused_by_name(recipes, refused, layers, recipe):
    found = recipes[recipe]
    if refused[recipe] is not None:
        assert isinstance(found, str) and recipe in found and refused[recipe] in found
        return
    exact, _, fused = layers["dense"]
    assert not torch.equal(found["logprobs"], fused["logprobs"]), "FP8 must change something"
    assert relative(found["logprobs"], exact["logprobs"]) < 0.05
    assert relative(found["gradients"], exact["gradients"]) < 0.3


def test_mxfp8_is_refused_on_hopper(refused):
    capability, _ = on_gpu(gpu_worker.capability)
    if capability[0] != 9:
        pytest.skip(f"compute capability {capability}")
    assert "on Hopper take 'blockwise' or 'tensorwise'" in refused["mxfp8"]


def test_process_rewards_are_0_before_an_update(models, refused, tmp_path):
    settings = [gpu_worker.TORCH, gpu_worker.TE]
    settings += [
        (*gpu_worker.TE, f"fp8.prm={recipe}")
        for recipe, fault in refused.items()
        if recipe != "delayed" and fault is None
    ]
    found = on_gpu(gpu_worker.first_process_rewards, models, tmp_path, settings)
    assert len(found) == len(MODELS) * len(settings)
    for what, (before, in_update, after) in found.items():
        assert before == in_update == 0.0, what
        assert after > 0.0, what


@pytest.mark.parametrize("direction", ["from te", "from torch"])
def test_a_checkpoint_of_either_kind_of_layers_loads_into_the_other(models, tmp_path, direction):
    there, other = (gpu_worker.TE, gpu_worker.TORCH)
    if direction == "from torch":
        there, other = other, there
    found = on_gpu(gpu_worker.checkpoints_across_layers, models, tmp_path, there, other)
    for model, weights in found.items():
        for name in ("in other", "back"):
            assert weights[name].keys() == weights["written"].keys()
            for key, tensor in weights["written"].items():
                assert torch.equal(weights[name][key], tensor), (model, name, key)
        # Master weights and moments too: the next update equals that of an uninterrupted run.
        assert relative(weights["resumed"], weights["unbroken"]) < 1e-4, model
        moved = relative(weights["unbroken"], weights["written"])
        assert moved > 1e-3, "an update must be seen in the comparison"
