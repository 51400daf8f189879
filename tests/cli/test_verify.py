import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_prime.cli.arguments import Options, parse
from megatron_prime.cli.commands import run_command
from tests.support import deadlines
from tests.support.minimal_config import MINIMAL

EXACT = ["reward.verifier=exact_match"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in a folder with a configuration; return its exit code and output."""
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(
        MINIMAL + '[reward]\nverifier = "exact_match"\n[data]\ntrain = ["train.jsonl"]\n'
    )

    def call(*words):
        options = parse(["verify", *words])
        assert isinstance(options, Options)
        code = run_command(options)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def write(name, *rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_one_response_needs_no_configuration(run):
    code, text = run(*EXACT, "--response", "so 7", "--answer", "7")
    assert (code, text.splitlines()[0]) == (0, "the response: 1       it ends with '7', the answer is '7'")
    assert re.search(r"judged 1: 1 with reward 1, 0 with reward 0, 0 between; [\d.e+-]+ ms each", text)
    assert run(*EXACT, "--response", "17", "--answer", "7")[1].startswith("the response: 0 ")


def test_rows_of_a_file_are_judged_and_compared_with_what_is_expected(run):
    write(
        "a.jsonl",
        {"response": "7", "answer": 7, "reward": 1},
        {"response": "8", "answer": "7", "reward": 1.0},
        {"response": "8", "answer": "7"},
        {"answer": "7", "responses": [{"text": "7", "outcome": outcome} for outcome in (1.0, None, 0)]},
    )
    code, text = run(*EXACT, "--file", "a.jsonl", "--json", "out.jsonl")
    lines = text.splitlines()
    starts = ["a.jsonl, row 1: 1 ", "a.jsonl, row 2: 0 ", "a.jsonl, row 3: 0 "]
    starts += [f"a.jsonl, row 4, response {number}: 1 " for number in (1, 2, 3)]
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=False)] == [True] * 6, text
    assert "expected 1; it ends with '8'" in lines[1] and "expected 0" in lines[5]
    assert "judged 6: 4 with reward 1, 2 with reward 0, 0 between, 2 other than expected" in lines[6]
    assert code == 3
    saved = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in saved] == [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    _, quiet = run(*EXACT, "--file", "a.jsonl", "-q")
    assert [line.partition(": ")[0] for line in quiet.splitlines()[:-1]] == [
        "a.jsonl, row 2", "a.jsonl, row 4, response 3",
    ]  # fmt: skip


def test_the_answers_of_the_runs_own_data_are_tried(run):
    write("train.jsonl", *({"prompt": "x", "answer": number} for number in range(150)))
    code, text = run("run.toml")
    assert code == 0 and "judged 100: 100 with reward 1" in text
    assert "judged 3: 3 with reward 1" in run("run.toml", "--rows", "3")[1]
    write(
        "b.csv",
    )
    Path("b.csv").write_text("prompt,answer\nq,7\n")
    assert "b.csv, row 1: 1 " in run(*EXACT, "--file", "b.csv")[1]


REFUSED = {
    # arguments after the overrides, rows -> what the message says
    "nothing": ([], [], "nothing to judge"),
    "half a pair": (["--answer", "1"], [], "name --response with --answer"),
    "both": (["--answer", "1", "--response", "1", "--file", "a.jsonl"], [], "or --file, or neither"),
    "no file": (["--file", "absent.jsonl"], [], "absent.jsonl"),
    "an empty file": (["--file", "a.jsonl"], [], "no rows"),
    "another type": (["--file", "a.txt"], [], "a.txt"),
    "no answer": (["--file", "a.jsonl"], [{"response": "1"}], "row 1: no field 'answer'"),
    "neither": (["--file", "a.jsonl"], [{"x": "1"}], "row 1: no field 'answer'"),
    "a number as response": (["--file", "a.jsonl"], [{"response": 1, "answer": "1"}], "row 1: the response is a int"),
    "no list": (["--file", "a.jsonl"], [{"responses": "x", "answer": "1"}], "row 1: 'responses' is not a list"),
    "text as reward": (["--file", "a.jsonl"], [{"response": "1", "answer": "1", "reward": "1"}], "expected reward '1'"),
    "a reward of 2": (["--file", "a.jsonl"], [{"response": "1", "answer": "1", "reward": 2}], "not a number in [0, 1]"),
    "no object": (["--file", "a.jsonl"], [[1]], "row 1: "),
    "no verifier": (["reward.verifier=exat"], [], "known are code, exact_match, judge, math"),
    "no such key": (["reward.verifer=math"], [], "verifer"),
    "no route": (
        ["reward.verifier=auto", "--response", "1", "--answer", "1", "--source", "x"], [],
        "the response: reward.verifier = 'auto', but reward.routes has neither the source 'x'",
    ),
    "no function": (["reward.verifier=no_such_module_x:f", "--response", "1", "--answer", "1"], [], "is no module"),
    "many": (["--file", "a.jsonl"], [{"x": "1"}] * 30, "and 20 more"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_its_place(case, run):
    words, rows, reason = REFUSED[case]
    write("a.jsonl", *rows)
    code, text = run(*EXACT, *words)
    assert code == 2
    assert reason in text, text
    assert "Traceback" not in text


def test_a_function_is_tried_in_workers_with_its_traceback_once(run, tmp_path, monkeypatch, caplog):
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("tried_rewards.py").write_text("def f(response_text, answer):\n    return float(response_text)\n")
    write("a.jsonl", *({"response": text, "answer": "1"} for text in ("0.25", "x", "1", "y", "z")))
    code, text = run("reward.verifier=tried_rewards:f", "reward.timeout_s=60.0", "--file", "a.jsonl")
    assert code == 3
    assert "a.jsonl, row 1: 0.25    as tried_rewards:f says" in text
    place = f"({tmp_path}/tried_rewards.py, line 2)"
    assert f"a.jsonl, row 2: error   ValueError: could not convert string to float: 'x' {place}" in text
    assert "judged 5: 1 with reward 1, 0 with reward 0, 1 between, 3 without a reward (error); " in text
    logged = [record.getMessage() for record in caplog.records]
    assert sum("Traceback" in line for line in logged) == 1
    assert any("2 more with error: ValueError" in line for line in logged)


def test_programs_are_judged_with_the_reason(run):
    truth = {"inputs": ["1 2"], "outputs": ["3"]}
    write(
        "a.jsonl",
        {"response": "```python\nprint(sum(map(int, input().split())))\n```", "answer": truth},
        {"response": "```python\n1 / 0\n```", "answer": truth},
        {"response": "3", "answer": "3"},
    )
    code, text = run(
        "reward.verifier=code", "reward.code.sandbox=none-i-accept-the-risk", "--file", "a.jsonl"
    )
    lines = text.splitlines()
    assert lines[0] == "a.jsonl, row 1: 1       1 of 1 tests passed"
    assert lines[1].endswith(
        "0 of 1 tests passed; test 1 ended with exit code 1: ZeroDivisionError: division by zero"
    )
    assert lines[2].startswith("a.jsonl, row 3: refused the verifier 'code' cannot use the answer: ")
    assert code == 3


def start(*words):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    # A runner in the background ignores SIGINT, which its children would inherit.
    restored = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    command = [sys.executable, "-m", "megatron_prime", "verify", *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=restored
    )


def test_ctrl_c_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("slow_reward.py").write_text(
        "import pathlib, time\ndef f(response, answer):\n    pathlib.Path('begun').touch()\n    time.sleep(0.5)\n"
    )
    write("file.jsonl", *[{"response": "x", "answer": "x"}] * 10_000)
    process = start("reward.verifier=slow_reward:f", "--file", "file.jsonl")
    deadline = time.monotonic() + deadlines.seconds(120)
    while not Path("begun").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=deadlines.seconds(60))
    assert (process.returncode, errors) == (128 + signal.SIGINT, b"")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("file.jsonl", *[{"response": "x", "answer": "x"}] * 10_000)
    process = start(*EXACT, "--file", "file.jsonl", "--json", "verdicts.jsonl")
    assert process.stdout.readline().startswith(b"file.jsonl, row 1: 1 ")
    process.stdout.close()
    assert (process.wait(deadlines.seconds(120)), process.stderr.read()) == (0, b"")
    process.stderr.close()
    assert len(Path("verdicts.jsonl").read_text().splitlines()) == 10_000


@pytest.mark.parametrize(("name", "reason"), [(".", "is a folder"), ("none/verdicts", "cannot be written")])
def test_an_output_that_cannot_be_written_is_a_fault(run, name, reason):
    code, text = run(*EXACT, "--response", "7", "--answer", "7", "--json", name)
    assert code == 2
    assert reason in text
