"""The plan command runs without torch, and reports errors in one line with an exit code."""

import json
import subprocess
import sys

import pytest

from megatron_prime.config.loading import load_config
from megatron_prime.planning.gpus import KNOWN
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.planned_run import read_planned_run
from megatron_prime.planning.search import best_layouts
from megatron_prime.planning.splits import best_splits
from megatron_prime.planning.times import plan_times
from tests.support.planned_runs import write_model
from tests.support.toy_runs import ROOT

RUN = """
run_dir = "run"
[model]
path = "model"
[platform]
device = "cuda"
dtype = "bf16"
[parallel]
tensor = 4
sequence_parallel = true
num_processes = 16
[rollout]
engine = "sglang"
[rollout.sglang]
num_servers = 4
tensor = 4
mem_fraction = 0.5
[trainer]
num_steps = 1
[memory]
offload_prm = true
offload_policy_optimizer = true
offload_reference = true
[memory.recompute]
granularity = "full"
"""


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "model", "Qwen2.5-7B")
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path


def plan(folder, *arguments):
    code = (
        "import sys; from megatron_prime.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'megatron' not in sys.modules; sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "plan", "run.toml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_plan_that_fits_exits_with_code_0(folder):
    done = plan(folder, "--json", "plan.json", "--response-tokens", "2000")
    assert done.returncode == 0, done.stderr
    assert "fits: " in done.stdout and "2000 per response" in done.stdout
    found = json.loads((folder / "plan.json").read_text())
    assert found["fits"] and found["assumptions"]["response_tokens"] == 2000
    assert found["recommended"]


def test_a_plan_that_does_not_fit_exits_with_code_3(folder):
    done = plan(folder, "parallel.num_processes=8", "--gpu-set", "memory_gib=20")
    assert done.returncode == 3
    assert "does not fit: in the " in done.stdout
    assert "no layout fits on 8 x H100-80G; " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--gpu", "TPU"], "unknown GPU 'TPU'"),
        (["--gpu-set", "memory_gib=much"], "--gpu-set memory_gib=much: the form is FIGURE=NUMBER"),
        (["--gpus", "6"], "6 processes are not a multiple of the 4"),
        (["model.path=nowhere"], "nowhere: no such folder"),
        (["--json", "nowhere/plan.json"], "cannot be written"),
    ],
)
def test_an_invalid_argument_is_reported_in_one_line(arguments, fault, folder):
    done = plan(folder, *arguments)
    assert done.returncode == 2
    assert fault in done.stderr and "Traceback" not in done.stderr


CONFIGURED = {
    "as in the file": [],
    "one GPU a model, nothing saved": [
        *("parallel.tensor=1", "parallel.sequence_parallel=false", "memory.recompute.granularity=none"),
        *("memory.offload_prm=false", "memory.offload_policy_optimizer=false", "policy.num_minibatches=8"),
    ],
    "pipeline, blocks recomputed": [
        *("parallel.pipeline=4", "parallel.virtual_pipeline=7", "memory.recompute.method=block"),
        *("memory.recompute.num_layers=7", "prm.enabled=false", "memory.offload_prm=false"),
        "memory.offload_reference=false",
    ],
    "modules recomputed": [
        "memory.recompute.granularity=selective",
        "memory.recompute.modules=['layernorm']",
    ],
}


@pytest.mark.parametrize("configured", CONFIGURED)
def test_the_overrides_of_a_row_plan_exactly_that_row(configured, folder, monkeypatch):
    monkeypatch.chdir(folder)

    def planned(*overrides):
        config = load_config(folder / "run.toml", [*CONFIGURED[configured], *overrides])
        return read_planned_run(config, config.parallel.num_processes, KNOWN["H200"])

    best = best_layouts(planned())
    assert best
    for candidate in best:
        run = planned(*candidate.overrides())
        assert (plan_memory(run), plan_times(run)) == (candidate.memory, candidate.times)
    assert len({tuple(candidate.overrides()) for candidate in best}) == len(best)
    seconds = [candidate.times.seconds for candidate in best]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("prime_7b", "Qwen2.5-7B"),
        ("prime_32b", "Qwen2.5-32B"),
        ("prime_70b", "Llama-3-70B"),
        ("prime_70b_overlap", "Llama-3-70B"),
        ("prime_moe", "Qwen3-30B-A3B"),
    ],
)
def test_the_example_configurations_fit_their_gpus(name, model, tmp_path):
    folder = write_model(tmp_path / "model", model)
    config = load_config(ROOT / "examples" / f"{name}.toml", [f"model.path={folder}"])
    memory = plan_memory(read_planned_run(config, config.parallel.num_processes, KNOWN["H100-80G"]))
    assert memory.fits, memory.phases
    assert (config.policy.lr, config.prm.lr, config.prm.beta) == (5e-7, 1e-6, 0.05)


@pytest.mark.slow
def test_the_example_with_servers_of_its_own_is_the_recommended_split_and_faster_than_in_turn(tmp_path):
    folder = write_model(tmp_path / "model", "Llama-3-70B")
    overlapped, in_turn = (
        read_planned_run(config, config.parallel.num_processes, KNOWN["H100-80G"])
        for name in ("prime_70b_overlap", "prime_70b")
        for config in [load_config(ROOT / "examples" / f"{name}.toml", [f"model.path={folder}"])]
    )
    assert overlapped.num_gpus == in_turn.num_gpus == 128
    best, *_ = best_splits(overlapped)
    assert best.candidate.run.num_processes == overlapped.num_processes
    assert best.candidate.run.num_servers == overlapped.num_servers
    # The example offloads what it does not use, which takes 1 % of a step.
    assert plan_times(overlapped).seconds < 1.02 * best.candidate.times.seconds
    assert plan_times(overlapped).seconds < 0.8 * plan_times(in_turn).seconds
