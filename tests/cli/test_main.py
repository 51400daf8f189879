"""Errors of the user are reported in one line each, with exit code 2, before any framework is imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_prime import __version__
from megatron_prime.cli import main
from megatron_prime.config.quiet import QUIET
from megatron_prime.workers.ports import free_port
from tests.support import deadlines
from tests.support.sparse_weights import write_weights
from tests.support.tokenizers import byte_tokenizer
from tests.support.toy_runs import CONFIG, environment
from tests.support.toy_worker import write_probe

SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 48,
    "head_dim": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
PROGRAM = """
import contextlib, io, json, sys
from megatron_prime.cli import main

results = {}
for name, arguments in json.load(sys.stdin).items():
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(arguments)
    loaded = sorted({"torch", "megatron", "transformers", "numpy", "httpx"} & set(sys.modules))
    results[name] = {"code": code, "out": output.getvalue(), "err": errors.getvalue(), "loaded": loaded}
json.dump(results, sys.stdout)
"""
"""Runs command lines, {name: arguments}, one after the other, and prints what each returned, wrote and imported."""


def write_workspace(folder: Path) -> None:
    """Write files with which every command passes its checks."""
    for name in ("sft", "task"):
        (folder / name).mkdir()
    (folder / "sft/config.json").write_text(json.dumps(SHAPE))
    write_weights(folder / "sft")
    byte_tokenizer().save_pretrained(folder / "sft")
    for name in ("train", "heldout", "sft"):
        (folder / f"task/{name}.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n' * 8)
    (folder / "task/benchmark.jsonl").write_text('{"problem": "1 + 1 =", "answer": "2"}\n')
    write_probe(folder / "task/probe.jsonl", [{"prompt": "1 + 1 - 1 ="}])
    (folder / "run.toml").write_text(CONFIG)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """Enter a folder in which every command passes its checks."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", QUIET):
        monkeypatch.delenv(name, raising=False)
    write_workspace(tmp_path)
    return tmp_path


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
        ["parallel.pipeline=4"],
        "parallel.pipeline = 4 exceeds num_hidden_layers = 3",
    ),
    "layers of stages": (
        ["parallel.pipeline=2", "parallel.stage_layers=[2,2]"],
        "parallel.stage_layers = [2, 2] adds up to 4 layers, but num_hidden_layers = 3",
    ),
    "number of stages": (
        ["parallel.pipeline=2", "parallel.stage_layers=[3]"],
        "stage_layers has 1 numbers: it needs pipeline * virtual_pipeline = 2 * 1",
    ),
    "stage without layers": (
        ["parallel.pipeline=2", "parallel.stage_layers=[3,0]"],
        'parallel.stage_layers: must be "auto" or a list of whole numbers from 1',
    ),
    "processes": (["parallel.tensor=2", "parallel.num_processes=3"], "num_processes = 3 is not a multiple"),
    "batch": (["policy.num_minibatches=5"], "policy.num_minibatches = 5 does not divide the batch"),
    "batch against ranks": (
        ["policy.num_minibatches=32", "parallel.num_processes=2"],
        "leaves 1 responses a minibatch for 2 data-parallel ranks",
    ),
    "verifier": (
        ["reward.verifier=maths"],
        "reward.verifier = 'maths': known are code, exact_match, judge, math;",
    ),
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Any]:
    """Run each faulty command line in one process that imports what each needs, and return the results."""
    folder = tmp_path_factory.mktemp("workspace")
    write_workspace(folder)
    before = sorted(folder.rglob("*"))
    lines = {name: ["train", "run.toml", *overrides] for name, (overrides, _) in FAULTS.items()}
    lines["--version"] = ["--version"]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=environment(),
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=deadlines.seconds(60),
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert sorted(folder.rglob("*")) == before
    return json.loads(process.stdout)


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_is_one_line_with_code_2_before_torch_is_imported(finished, name):
    result = finished[name]
    assert (result["code"], result["out"], result["loaded"]) == (2, "", [])
    _, *faults = result["err"].splitlines()
    overrides, fault = FAULTS[name]
    assert [fault in line for line in faults].count(True) == 1, faults
    assert all(line.startswith("  - ") for line in faults)
    # Heads, KV heads and FFN are one error each; every other case has one error.
    assert len(faults) == (2 if "parallel.tensor=4" in overrides else 1), faults


def test_the_version_is_printed(finished):
    assert finished["--version"]["code"] == 0
    assert __version__ in finished["--version"]["out"]


def test_all_errors_are_reported_at_once(workspace, capsys):
    assert main(["train", "run.toml", "parallel.pipeline=4", "reward.verifier=x", "data.train=[]"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize("arguments", ["train absent.toml", "trian run.toml", "train", ""])
def test_a_missing_file_and_invalid_usage_have_code_2(arguments, workspace, capsys):
    assert main(arguments.split()) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_check_prints_the_arithmetic(workspace, capsys):
    assert main(["check", "run.toml", "parallel.tensor=3", "parallel.num_processes=6"]) == 0
    output = capsys.readouterr().out
    assert "processes   6 = tensor 3 x pipeline 1 x " in output
    assert "8 prompts x 4 responses = 32 responses per step" in output
    assert output.endswith("the configuration is sound\n")


CHECKS = {
    # arguments of check, and the file without an answer -> exit code and text
    "for train": ([], None, 0, "the configuration is sound\n"),
    "for sft": (["--for", "sft", "sft.output=new"], None, 0, "the configuration is sound for sft\n"),
    "for eval": (["--for", "eval"], None, 0, "the configuration is sound for eval\n"),
    "by its data, sft": (["data.train=[]", "sft.output=new"], None, 0, "sound for sft\n"),
    "by its data, eval": (["data.train=[]", "sft.data=[]"], None, 0, "sound for eval\n"),
    "output exists": (["--for", "sft"], None, 2, "sft exists already"),
    "demonstrations": (
        ["--for", "sft", "sft.output=new"],
        "sft",
        2,
        "sft.data: task/sft.jsonl, row 9: no field",
    ),
    "held-out prompts": (
        ["--for", "eval"],
        "heldout",
        2,
        "data.evaluation: task/heldout.jsonl, row 9: no field",
    ),
    "other data": (["--for", "eval"], "sft", 0, "sound for eval\n"),
    "for eval-prm": (["--for", "eval-prm"], None, 2, "prm_evaluation is empty"),
    "for another": (["--for", "plan"], None, 2, "'plan' is not one of"),
}


@pytest.mark.parametrize("case", CHECKS)
def test_check_is_about_the_command_that_is_meant(case, workspace, capsys):
    arguments, damaged, code, text = CHECKS[case]
    sft = Path("task/sft.jsonl")
    sft.write_text(sft.read_text().replace("answer", "response"))
    if damaged:
        with Path(f"task/{damaged}.jsonl").open("a") as file:
            file.write('{"prompt": "1"}\n')
    assert main(["check", "run.toml", *arguments]) == code
    output = capsys.readouterr()
    assert text in output.out + output.err


@pytest.mark.parametrize(("command", "key"), [("eval", "data.evaluation"), ("sft", "sft.data")])
def test_each_command_checks_the_data_that_it_reads(workspace, command, key, capsys):
    assert main([command, "run.toml", f'{key}=["absent.jsonl"]', "sft.output=new"]) == 2
    assert f"{key}: absent.jsonl does not exist" in capsys.readouterr().err


def test_check_asks_attached_servers(workspace, capsys):
    url = f"http://127.0.0.1:{free_port()}"
    settings = ["rollout.engine=sglang", f"rollout.sglang.urls=['{url}']", "rollout.max_response_tokens=8"]
    assert main(["check", "run.toml", *settings]) == 0
    assert f"WARNING: rollout.sglang.urls: {url} gives no answer now" in capsys.readouterr().err
    for target in ("sft", "eval-prm"):
        main(["check", "run.toml", "--for", target, *settings])
        assert "gives no answer" not in capsys.readouterr().err


def test_world_size_overrides_the_configured_number_of_processes(workspace, monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["eval", "run.toml", "parallel.tensor=2"]) == 2
    assert "3 processes are not a multiple of" in capsys.readouterr().err


def test_only_local_rank_0_reports_configuration_errors(workspace, monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["eval", "run.toml", "policy.lrr=1"]) == 2
    assert capsys.readouterr().err == ""


def test_quiet_prints_faults_alone(workspace, monkeypatch, capsys):
    monkeypatch.setenv(QUIET, "0")  # restored after the test, which sets it
    assert main(["check", "--quiet", "run.toml"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["check", "-q", "run.toml", "policy.lrr=1"]) == 2
    assert "unknown key policy.lrr" in capsys.readouterr().err


def test_keys_are_completed(workspace, monkeypatch, capsys):
    variables = {"_MEGATRON_PRIME_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    for name, value in {**variables, "COMP_WORDS": "megatron-prime check policy.l"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert "plain,policy.lr=" in capsys.readouterr().out.splitlines()


URL = "http://user:SECRET@host/?token=SECRET"


@pytest.mark.parametrize(
    "override",
    [
        f"reward.verifier=ftp{URL.removeprefix('http')}",
        f'reward.verifier=["{URL}"]',
        f"reward.verifer={URL}",
        f"nonsense {URL}",
        f"model.path={URL}",
        f'data.train=["{URL}"]',
        f'rollout.sglang.urls=["{URL}"]',
        f'rollout.sglang.urls=["{URL.removeprefix("http://")}"]',
        f"policy.lr={URL}",
        f"rollout.engine={'x' * 40}{URL}",
        f"--nonsense={URL}",
        f"--{URL}",
    ],
)
def test_no_error_shows_the_secrets_of_an_address(workspace, capsys, override):
    assert main(["check", "run.toml", override]) == 2
    output = capsys.readouterr()
    assert output.err and "SECRET" not in output.out + output.err
