"""The command prints tables, writes JSON, and its exit code says whether the run would work."""

import json
import subprocess
import sys

from tests.support.forked_commands import FORKED
from tests.support.rehearsed_runs import small_run

RUN = """
run_dir = "run"
[model]
path = "."
[platform]
device = "cuda"
dtype = "bf16"
[parallel]
tensor = 2
sequence_parallel = true
num_processes = 4
[rollout]
max_prompt_tokens = 32
max_response_tokens = 96
[trainer]
num_steps = 1
prompts_per_step = 4
max_tokens_per_microbatch = 256
"""


def rehearse(folder, *arguments):
    return subprocess.run(
        [sys.executable, *FORKED, "-m", "megatron_prime", "rehearse", "run.toml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_exit_codes_and_json(tmp_path):
    small_run(tmp_path)
    (tmp_path / "run.toml").write_text(RUN)
    done = rehearse(tmp_path, "--ranks", "0,1", "--jobs", "1", "--json", "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no fault in 2 ranks" in done.stdout
    assert [rank["rank"] for rank in json.loads((tmp_path / "out.json").read_text())["ranks"]] == [0, 1]
    large = rehearse(tmp_path, "--ranks", "1", "--gpu-set", "memory_gib=3")
    assert large.returncode == 3
    assert "rank 1, phase " in large.stdout
    wrong = rehearse(tmp_path, "--ranks", "4")
    assert wrong.returncode == 2
    assert "ranks 0 to 3" in wrong.stderr
