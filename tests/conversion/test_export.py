"""An export from any layout equals the HF checkpoint bit by bit, and an I/O error is raised on every rank."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.distributed_runner import run_distributed
from tests.support.tiny_models import as_in_checkpoint, save_tiny_model
from tests.training import training_worker

NAMES = ("qwen2 tied", "qwen3")
LAYOUTS = ("tp2", "pp2", "pp2 vpp2", "dp2")
CASES = [
    *((layout, name) for layout in LAYOUTS for name in NAMES),
    *((layout, name) for layout in ("ep2", "pp2 vpp2") for name in ("qwen3 moe", "mixtral")),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    models = {name: save_tiny_model(name, root / name) for name in dict.fromkeys(name for _, name in CASES)}
    models["qwen3 other"] = save_tiny_model("qwen3", root / "qwen3 other", seed=1)
    folders = {name: root / name for name in models}
    reports = run_distributed(training_worker.export, 2, LAYOUTS, CASES, folders, root)
    return root, models, reports


@pytest.mark.parametrize(("dtype_name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_the_export_is_bit_equal_and_loads_in_transformers(name, layout, dtype_name, dtype, exported):
    root, models, _ = exported
    state = as_in_checkpoint(models[name], models[name].state_dict())
    expected = {key: tensor.to(dtype) for key, tensor in state.items()}
    folder = root / f"{layout} {name} {dtype_name}"
    tensors = load_file(folder / "model.safetensors")
    tied = {"lm_head.weight"} if "tied" in name else set()
    assert set(tensors) == set(expected) - tied
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == dtype
    for key, tensor in as_in_checkpoint(loaded, loaded.state_dict()).items():
        assert torch.equal(tensor, expected[key]), key
        assert key in tied or torch.equal(tensors[key], expected[key]), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_existing_destination_is_refused_and_kept(layout, exported):
    for report in exported[2]:
        kind, message = report[layout]["exists"]
        assert kind == "ValueError"
        assert "exists already" in message
        assert report[layout]["replaced"], "the destination was kept until replace was given"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replace_writes_the_new_weights(layout, exported):
    root, models, _ = exported
    for key, tensor in load_file(root / f"{layout} again" / "model.safetensors").items():
        assert torch.equal(tensor, models["qwen3 other"].state_dict()[key])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_error_of_the_file_system_is_raised_on_every_rank(layout, exported):
    for report in exported[2]:
        assert report[layout]["under a file"][0] in ("FileExistsError", "NotADirectoryError")
        assert "no config.json" in report[layout]["no companions"][1]
    assert exported[2][0][layout]["under a file"] == exported[2][1][layout]["under a file"]


def test_no_partial_folder_remains(exported):
    root = exported[0]
    assert not [path for path in root.iterdir() if "partial" in path.name or "lost" in path.name]
