"""A checkpoint written by transformers equals the views of the model that it was written from."""

import pytest
import torch
from safetensors.torch import load_file

from megatron_prime.engines.local.expert_views import checkpoint_views
from tests.support.tiny_models import BUILDERS, MOE_BUILDERS, save_tiny_model


@pytest.mark.parametrize("name", BUILDERS)
def test_names_and_values_are_those_of_the_checkpoint(name, tmp_path):
    model = save_tiny_model(name, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    views = checkpoint_views(model.state_dict(keep_vars=True), model.config.model_type)
    assert set(views) - set(written) <= {"lm_head.weight"}, "a tied output layer is not written"
    for key, tensor in written.items():
        assert torch.equal(views[key], tensor), key


@pytest.mark.parametrize("name", MOE_BUILDERS)
@torch.no_grad()
def test_writing_to_a_view_changes_the_model_and_nothing_else(name, tmp_path):
    model = save_tiny_model(name, tmp_path)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    views = checkpoint_views(model.state_dict(keep_vars=True), model.config.model_type)
    key = next(key for key in views if ".experts.2." in key)
    views[key].zero_()
    state = model.state_dict()
    changed = {other: tensor for other, tensor in state.items() if not torch.equal(tensor, before[other])}
    ((fused_name, fused),) = changed.items()
    differs = (fused != before[fused_name]).flatten(1).any(dim=1)
    assert differs.tolist() == [False, False, True, False]
    assert (fused[2] != before[fused_name][2]).sum() == views[key].numel()
