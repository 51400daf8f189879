"""All checks together: what passes, that every fault is reported at once, and that no framework is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prime.config import ConfigError, load_config
from megatron_prime.preflight.checks import check_convert, command_of
from tests.preflight.workspace import check, faults_of


def test_a_run_that_can_start_gives_its_arithmetic_and_writes_nothing(workspace):
    before = sorted(workspace.rglob("*"))
    arithmetic = check("parallel.tensor=2", processes=4)
    assert (arithmetic.data, arithmetic.responses_per_step) == (2, 16)
    assert sorted(workspace.rglob("*")) == before


def test_an_unknown_verifier_is_refused_where_one_is_used(workspace):
    (fault,) = faults_of("reward.verifier=maths")
    assert fault.startswith(
        "reward.verifier = 'maths': known are code, exact_match, judge, math; a function is "
    )
    check("sft.data=['train.jsonl']", "reward.verifier=maths", command="sft")


def test_all_faults_come_together(workspace):
    faults = faults_of("model.path=x", "data.train=[]", "parallel.tensor=2", "reward.verifier=y")
    assert len(faults) == 4


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        ([], "train"),
        (["sft.data=['a.jsonl']"], "train"),
        (["data.train=[]", "sft.data=['a.jsonl']", "data.evaluation=['a.jsonl']"], "sft"),
        (["data.train=[]", "data.evaluation=['a.jsonl']"], "evaluate"),
        (["data.train=[]", "evaluation.benchmarks.aime24.path=a.jsonl"], "evaluate"),
        (["data.train=[]"], "train"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_the_data_say_which_command_a_configuration_is_for(overrides, command):
    assert command_of(load_config(Path("run.toml"), overrides)) == command


def test_a_conversion_needs_a_checkpoint_a_model_and_a_new_folder(workspace):
    def faults(*overrides: str, role: str = "policy", checkpoint: Path | None = None, output: str = "new"):
        with pytest.raises(ConfigError) as caught:
            check_convert(load_config(Path("run.toml"), overrides), role, checkpoint, Path(output))
        return caught.value.faults

    assert faults()[0].startswith("runs/a/checkpoints holds no complete checkpoint")
    checkpoint = workspace / "runs/a/checkpoints/step_00000001"
    checkpoint.mkdir(parents=True)
    assert len(faults()) == 1
    (checkpoint / "run.json").write_text("{}")
    check_convert(load_config(Path("run.toml")), "policy", None, Path("new"))
    check_convert(load_config(Path("run.toml")), "policy", checkpoint, Path("new"))
    assert "has no run.json" in faults(checkpoint=workspace / "model")[0]
    assert faults(output="model")[0].startswith("--output model exists already")
    assert faults("prm.path=nowhere", role="prm")[0].startswith("prm.path = nowhere: no such folder")
    check_convert(load_config(Path("run.toml"), ["prm.path=nowhere"]), "policy", None, Path("new"))


def test_the_checks_import_no_framework():
    code = (
        "import megatron_prime.preflight.checks, sys;"
        "print(sorted({'torch', 'numpy', 'megatron', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
