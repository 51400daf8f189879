from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import toy_worker
from tests.support.distributed_runner import run_distributed
from tests.support.toy_runs import Toy, finish, weights


@pytest.fixture(scope="module")
def converted(toy: Toy, layout_runs: dict[str, Path]) -> Path:
    """Return a folder with the roles of the tensor=2 run's checkpoints, converted by one process."""
    (outcomes,) = run_distributed(toy_worker.convert_roles, 1, str(toy.folder), "tensor=2")
    code, output = outcomes.pop("damaged")
    assert code == 1
    assert "damaged is damaged: policy/__" in output and "bytes instead of" in output
    for name, (code, output) in outcomes.items():
        assert code == 0, output
        assert f"converted/{name}" in output
    return toy.folder / "converted"


def test_the_converted_policy_equals_the_export_of_the_run_bit_for_bit(converted, layout_runs):
    assert weights(converted / "policy") == weights(layout_runs["tensor=2"] / "hf")


def test_the_prm_and_an_older_policy_have_different_weights(converted):
    states = {
        name: AutoModelForCausalLM.from_pretrained(converted / name).state_dict()
        for name in ("policy", "prm", "older")
    }
    for name in ("prm", "older"):
        assert states[name].keys() == states["policy"].keys()
        assert any((states[name][key] != states["policy"][key]).any() for key in states[name])
    AutoTokenizer.from_pretrained(converted / "prm")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run_dir=tensor=2", "--output", "task"], "--output task exists already"),
        (["run_dir=nowhere", "--output", "new"], "nowhere/checkpoints holds no complete checkpoint"),
        (
            ["run_dir=tensor=2", "--checkpoint", "task", "--output", "new"],
            "task is not a complete checkpoint",
        ),
        (
            ["model.path=nowhere", "run_dir=tensor=2", "--output", "new"],
            "model.path = nowhere: no such folder",
        ),
    ],
)
def test_invalid_arguments_are_refused_before_any_work(toy: Toy, layout_runs, arguments, error):
    finished = finish(toy.folder, "convert", "run.toml", *arguments)
    assert finished.returncode == 2
    assert error in finished.stderr
    assert not (toy.folder / "new").exists()
