"""Errors of the user are reported in one line each, with exit code 2, before any framework is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prime import __version__
from megatron_prime.cli import main
from tests.support import deadlines
from tests.support.toy_runs import CONFIG, environment

SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 48,
    "head_dim": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
FRAMEWORKS = ("torch", "megatron", "transformers", "numpy")
PROGRAM = (
    "import sys; from megatron_prime.cli import main; code = main(); "
    f"loaded = [name for name in {FRAMEWORKS} if name in sys.modules]; "
    "assert not loaded, loaded; sys.exit(code)"
)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """Enter a folder in which every command passes its checks."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for folder in ("sft", "task"):
        Path(folder).mkdir()
    Path("sft/config.json").write_text(json.dumps(SHAPE))
    Path("sft/model.safetensors").write_bytes(b"weights")
    Path("sft/tokenizer.json").write_text("{}")
    for name in ("train", "heldout", "sft", "benchmark"):
        Path(f"task/{name}.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    Path("run.toml").write_text(CONFIG)
    return tmp_path


def torch_free(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that fails if a framework is imported."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=deadlines.seconds(60),
        check=False,
    )


FAULTS = {
    "unknown key": (["policy.lrr=1"], "unknown key policy.lrr; did you mean policy.lr?"),
    "unknown table": (["polcy.lr=1"], "unknown key polcy; did you mean policy?"),
    "key of another table": (["policy.group_size=4"], "did you mean rollout.group_size?"),
    "wrong type": (["trainer.num_steps=many"], "trainer.num_steps = 'many': must be a whole number"),
    "out of range": (["filter.accuracy_max=1.5"], "filter.accuracy_max = 1.5"),
    "tensor against heads": (
        ["parallel.tensor=4"],
        "parallel.tensor = 4 does not divide num_attention_heads = 6",
    ),
    "pipeline against layers": (
        ["parallel.pipeline=2"],
        "parallel.pipeline = 2 does not divide num_hidden_layers = 3",
    ),
    "processes": (["parallel.tensor=2", "parallel.num_processes=3"], "num_processes = 3 is not a multiple"),
    "batch": (["policy.num_minibatches=5"], "policy.num_minibatches = 5 does not divide the batch"),
    "batch against ranks": (
        ["policy.num_minibatches=32", "parallel.num_processes=2"],
        "leaves 1 responses a minibatch for 2 data-parallel ranks",
    ),
    "verifier": (["reward.verifier=maths"], "reward.verifier = 'maths': known are code, exact_match, math;"),
    "missing data": (['data.train=["absent.jsonl"]'], "data.train: absent.jsonl does not exist"),
    "missing model": (["model.path=absent"], "model.path = absent: no such folder"),
    "run_dir below a file": (["run_dir=run.toml/x"], "run.toml is not a folder"),
    "positions": (["rollout.max_response_tokens=200"], "exceeds max_position_embeddings = 64"),
    "warm-up": (
        ["policy.lr_warmup_steps=4"],
        "policy.lr_warmup_steps = 4 must be less than trainer.num_steps = 4",
    ),
    "temperatures": (["policy.kl_coef=0.1", "rollout.temperature=0.7"], "policy.kl_coef = 0.1 compares"),
    "no override": (["nonsense"], "override 'nonsense' is not of the form section.key=value"),
}


@pytest.mark.parametrize(("overrides", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_an_error_is_one_line_with_code_2_before_torch_is_imported(workspace, overrides, fault):
    before = sorted(workspace.rglob("*"))
    finished = torch_free("train", "run.toml", *overrides)
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    _, *faults = finished.stderr.splitlines()
    assert [fault in line for line in faults].count(True) == 1, finished.stderr
    assert all(line.startswith("  - ") for line in faults)
    # Heads, KV heads and FFN are one error each; every other case has one error.
    assert len(faults) == (2 if "parallel.tensor=4" in overrides else 1), finished.stderr
    assert sorted(workspace.rglob("*")) == before


def test_all_errors_are_reported_at_once(workspace):
    finished = torch_free("train", "run.toml", "parallel.pipeline=2", "reward.verifier=x", "data.train=[]")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 4


def test_a_missing_file_and_invalid_usage_have_code_2(workspace):
    assert torch_free("train", "absent.toml").returncode == 2
    assert torch_free("trian", "run.toml").returncode == 2
    assert torch_free("train").returncode == 2
    assert __version__ in torch_free("--version").stdout


def test_check_prints_the_arithmetic_and_imports_no_framework(workspace):
    finished = torch_free("check", "run.toml", "parallel.tensor=3", "parallel.num_processes=6")
    assert finished.returncode == 0, finished.stderr
    assert "processes   6 = tensor 3 x pipeline 1 x " in finished.stdout
    assert "8 prompts x 4 responses = 32 responses per step" in finished.stdout
    assert finished.stdout.endswith("the configuration is sound\n")


@pytest.mark.parametrize(("command", "key"), [("eval", "data.evaluation"), ("sft", "sft.data")])
def test_each_command_checks_the_data_that_it_reads(workspace, command, key):
    finished = torch_free(command, "run.toml", f'{key}=["absent.jsonl"]', "sft.output=new")
    assert finished.returncode == 2
    assert f"{key}: absent.jsonl does not exist" in finished.stderr


def test_world_size_overrides_the_configured_number_of_processes(workspace):
    ranked = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}
    finished = torch_free("train", "run.toml", "parallel.tensor=2", **ranked)
    assert finished.returncode == 2
    assert "3 processes are not a multiple of" in finished.stderr


def test_only_local_rank_0_reports_configuration_errors(workspace):
    finished = torch_free("train", "run.toml", "policy.lrr=1", RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    assert (finished.returncode, finished.stderr) == (2, "")


def test_main_can_be_called_from_python(workspace, capsys):
    assert main(["check", "run.toml"]) == 0
    assert "the configuration is sound" in capsys.readouterr().out


def test_quiet_prints_no_arithmetic_but_faults(workspace):
    assert torch_free("check", "--quiet", "run.toml").stdout == ""
    assert "unknown key policy.lrr" in torch_free("check", "-q", "run.toml", "policy.lrr=1").stderr


def test_help_imports_no_configuration():
    code = (
        "import sys\nfrom megatron_prime.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\nassert 'pydantic' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", code], check=False, env=environment(), timeout=60)
    assert finished.returncode == 0


def test_keys_are_completed(workspace):
    code = "import sys; sys.argv[0] = 'megatron-prime'; from megatron_prime.cli import main; main()"
    variables = environment(
        _MEGATRON_PRIME_COMPLETE="bash_complete", COMP_WORDS="megatron-prime check policy.l", COMP_CWORD="2"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], check=False, env=variables, timeout=60, capture_output=True, text=True
    )
    assert "plain,policy.lr=" in finished.stdout.splitlines()
