"""The command prints tables, writes JSON, and its exit code says whether the run would work."""

import json

from megatron_prime.cli.main import main
from tests.support.rehearsed_runs import MODEL

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
prompts_per_step = 2
max_tokens_per_microbatch = 1024
"""


def test_exit_codes_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {"num_hidden_layers": 1}))
    (tmp_path / "run.toml").write_text(RUN)
    code = main(["rehearse", "run.toml", "--ranks", "0", "--json", "out.json"])
    output = capsys.readouterr()
    assert code == 0, output
    assert "no fault in 1 ranks" in output.out
    assert [rank["rank"] for rank in json.loads((tmp_path / "out.json").read_text())["ranks"]] == [0]
    assert main(["rehearse", "run.toml", "--ranks", "1", "--gpu-set", "memory_gib=3"]) == 3
    assert "rank 1, phase " in capsys.readouterr().out
    assert main(["rehearse", "run.toml", "--ranks", "4"]) == 2
    assert "ranks 0 to 3" in capsys.readouterr().err
