"""Roles of checkpoints; tests/cli/test_convert.py converts those of a real run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.reference import ReferenceConfig
from megatron_prime.conversion.role import convert_role, role_folder
from megatron_prime.hf.prm_record import FILE
from megatron_prime.observability.progress import Progress
from megatron_prime.preflight.prm_training import other_scores, reference_faults


def config_of(tmp_path, model, **sections):
    return PrimeConfig.model_validate(
        {
            "run_dir": tmp_path / "run",
            "model": {"path": model},
            "rollout": {"max_prompt_tokens": 64, "max_response_tokens": 64},
            "trainer": {"num_steps": 1, "max_tokens_per_microbatch": 128},
            "prm": {"beta": 0.25},
        }
        | sections
    )


def test_the_newest_complete_checkpoint_is_the_default(tmp_path):
    config = config_of(tmp_path, tmp_path)
    checkpoints = tmp_path / "run" / "checkpoints"
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        role_folder(config, "policy", None)
    for step in (1, 2, 3):
        (checkpoints / f"step_{step:08d}").mkdir(parents=True)
    for step in (1, 2):
        (checkpoints / f"step_{step:08d}" / "run.json").write_text(json.dumps({"roles": ["policy"]}))
    assert role_folder(config, "policy", None) == checkpoints / "step_00000002" / "policy"
    first = checkpoints / "step_00000001"
    assert role_folder(config, "policy", first) == first / "policy"
    with pytest.raises(ValueError, match="has no prm; it has policy"):
        role_folder(config, "prm", None)


def test_a_prm_is_written_with_the_record_that_other_commands_read(hf_models, converted, tmp_path):
    model = hf_models[0] / "qwen3"
    source = shutil.copytree(converted / "qwen3" / "release", tmp_path / "checkpoint" / "prm")
    output = tmp_path / "prm"
    convert_role(config_of(tmp_path, model), source, output, "bf16", 1, Progress(enabled=False))
    config = config_of(tmp_path, model, prm={"beta": 0.25, "path": output})
    assert list(other_scores(config)) == []
    (fault,) = reference_faults(config, "train")  # Without reference.path it would be the PRM's own start.
    assert f"Set reference.path = '{model}'" in fault
    for command in ("train", "serve_prm"):
        with_reference = config.model_copy(update={"reference": ReferenceConfig(path=model)})
        assert list(reference_faults(with_reference, command)) == []
    for name, tensor in load_file(output / "model.safetensors").items():
        assert torch.equal(tensor, load_file(model / "model.safetensors")[name].bfloat16())


def test_no_reference_no_record(hf_models, converted, tmp_path):
    """A critic has none, one that followed the policy is in no folder, and one that is missing is found first."""
    model = hf_models[0] / "qwen3"
    source = shutil.copytree(converted / "qwen3" / "release", tmp_path / "checkpoint" / "prm")
    for name, sections in {"a": {"reference": {"mode": "policy"}}, "b": {"prm": {"loss": "value"}}}.items():
        without = config_of(tmp_path, model, **sections)
        convert_role(without, source, tmp_path / name, "keep", 1, Progress(enabled=False))
        assert not (tmp_path / name / FILE).exists()
    moved = config_of(tmp_path, model, reference={"path": tmp_path / "moved"})
    with pytest.raises(ValueError, match=r"moved does not exist, and implicit_prm\.json has hashes of it"):
        convert_role(moved, source, tmp_path / "c", "keep", 1, Progress(enabled=False))
    assert not (tmp_path / "c").exists()
