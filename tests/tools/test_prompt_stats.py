import csv
import importlib.util
import math
import sys
from pathlib import Path

from megatron_prime.observability.rollout_log import FileInfo, step_path, write_rollouts
from megatron_prime.rollout.prompt_history import PromptHistory
from tests.support.logged_rollouts import logged_response

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("prompt_stats", ROOT / "tools" / "prompt_stats.py")
prompt_stats = importlib.util.module_from_spec(SPEC)
sys.modules["prompt_stats"] = prompt_stats
SPEC.loader.exec_module(prompt_stats)


def test_tables_and_csv(tmp_path, capsys):
    history = PromptHistory(tmp_path / "prompts.jsonl")
    history.log(1, [(0, 0.0, "x"), (1, 1.0, "x"), (2, 0.25, "kept"), (3, math.nan, "x")])
    history.log(2, [(0, 0.0, "x"), (2, 0.35, "kept")])
    output = tmp_path / "prompts.csv"
    assert prompt_stats.main([str(tmp_path), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "1 prompts sampled more than once were never solved: 0 (2 times)" in printed
    rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in printed.splitlines() if "│" in line]
    assert rows == [
        ["0", "1", "25.0%", "2.00"],
        ["to 0.2", "0", "0.0%", "0.00"],
        ["to 0.4", "1", "25.0%", "2.00"],
        ["to 0.6", "0", "0.0%", "0.00"],
        ["to 0.8", "0", "0.0%", "0.00"],
        ["to 1.0", "0", "0.0%", "0.00"],
        ["1", "1", "25.0%", "1.00"],
        ["verifier errors only", "1", "25.0%", "1.00"],
    ]
    with output.open() as file:
        lines = list(csv.reader(file))
    assert lines[1:] == [
        ["0", "2", "0.0", "2"],
        ["1", "1", "1.0", "1"],
        ["2", "2", "0.3", "2"],
        ["3", "1", "", "1"],
    ]


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert prompt_stats.main([str(tmp_path)]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_rollout_log_is_read_without_a_history(tmp_path, capsys):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    rows = [logged_response(group, sample) for group in range(2) for sample in range(2)]
    rows[3]["outcome_reward"] = None
    for step in (1, 2):
        write_rollouts(step_path(folder, step), FileInfo(step), rows)
    output = tmp_path / "prompts.csv"
    for source in (tmp_path, folder):
        assert prompt_stats.main([str(source), "--output", str(output)]) == 0
        with output.open() as file:
            assert list(csv.reader(file))[1:] == [["7", "2", "0.5", "2"], ["8", "2", "", "2"]]
