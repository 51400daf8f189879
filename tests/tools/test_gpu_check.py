"""The checks run at toy size and report what they found, and an error in one of them does not affect the others."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from megatron_prime.hf.serving import num_parameters
from megatron_prime.hf.shape import ModelShape
from tests.gpu.gpu_worker import models_that_stay
from tests.support import deadlines
from tests.support.distributed_runner import run_distributed
from tools import gpu_check
from tools.gpu_checks import precision, ranks, results
from tools.gpu_checks.catalog import CHECKS, Check, chosen
from tools.gpu_checks.lines import Line, Outcome, Setting, judged
from tools.gpu_checks.precision import FOLLOWS_RULE, Sizes, ruled_sequences
from tools.gpu_checks.report import as_markdown
from tools.gpu_checks.roles import FP8_RECIPES, SHAPES, fp8_fault_here

RUN = (
    "environment",
    "sharing",
    "zero",
    "parity",
    "step-1.5b",
    "offload",
    "memory",
    "checkpoint",
    "ranks",
    "watchdog",
    "sglang",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu-check")


@pytest.fixture(scope="module")
def killed(folder):
    """Kill the tool in its second check; return the processes that it had started and that are still there."""
    process = subprocess.Popen(command_of(folder), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + deadlines.seconds(200)
    while not (folder / "sharing" / "log.txt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    return psutil.wait_procs(started, timeout=deadlines.seconds(60))[1]


@pytest.fixture(scope="module")
def ran(killed, folder):
    """Run most checks at toy size on this CPU, after a kill; return the process, the checks by name, the Markdown."""
    done = subprocess.run(
        command_of(folder), capture_output=True, text=True, check=False, timeout=deadlines.seconds(900)
    )
    report = json.loads((folder / "gpu-check.json").read_text())
    return done, {check["name"]: check for check in report["checks"]}, (folder / "results.md").read_text()


def command_of(folder):
    arguments = ["--device", "cpu", "--tiny", "--out", folder, "--markdown", folder / "results.md"]
    arguments += ["--sglang-python", folder / "nowhere", "--only", *RUN]
    return [sys.executable, "-m", "tools.gpu_check", *arguments]


def records_of(folder):
    return [json.loads(text)["outcome"] for text in (folder / "results.jsonl").read_text().splitlines()]


def lines_of(check, status):
    return {line["what"]: line for line in check["lines"] if line["status"] == status}


@pytest.mark.slow
def test_every_check_that_can_be_done_here_passes(ran):
    done, checks, _ = ran
    assert {name: check["fault"] for name, check in checks.items()} == dict.fromkeys(RUN, "")
    assert {name: check["status"] for name, check in checks.items()} == dict.fromkeys(RUN, "pass") | {
        "sglang": "skipped"
    }
    assert done.returncode == 0
    assert "no interpreter at" in checks["sglang"]["lines"][0]["note"]


@pytest.mark.slow
def test_a_kill_loses_no_finished_check_and_leaves_no_process(killed, ran, folder):
    assert killed == []
    records = records_of(folder)
    names = [record["name"] for record in records]
    assert names == ["environment", "sharing", *RUN[2:-1], "sharing"], (
        "what did not finish is tried again last"
    )
    assert [bool(record["fault"]) for record in records] == [False, True] + [False] * (len(records) - 2)
    assert records[1]["fault"] == results.INTERRUPTED


@pytest.mark.slow
def test_another_run_in_the_same_folder_has_nothing_left_to_do(ran, folder, capsys):
    before = (folder / "results.jsonl").read_text()
    arguments = ["--device", "cpu", "--tiny", "--out", str(folder), "--only", *RUN]
    assert gpu_check.main([*arguments, "--sglang-python", str(folder / "nowhere")]) == 0
    assert (folder / "results.jsonl").read_text() == before
    assert "bytes that another process reads" in capsys.readouterr().out, "the table shows what is known"


@pytest.mark.slow
def test_ranks_agree_with_one_rank_and_exchange_no_shapes(ran):
    _, checks, _ = ran
    passed, skipped = (lines_of(checks["ranks"], status) for status in ("pass", "skipped"))
    layouts = [name for name, (number, _) in ranks.LAYOUTS.items() if number == 2]
    assert len(passed) == 3 * len(layouts)
    assert {line["note"] for line in skipped.values()} == {"not run: needs 4 GPUs", "not run: needs 8 GPUs"}
    messages = {
        what.partition(":")[0]: line
        for what, line in lines_of(checks["ranks"], "info").items()
        if "messages" in what
    }
    assert all((line["value"] > 0) == ("pp" in name) for name, line in messages.items())
    assert {line["note"] for line in messages.values()} == {"0 exchanges of shapes"}


@pytest.mark.slow
def test_the_rank_that_does_not_arrive_is_named(ran):
    _, checks, _ = ran
    assert "rank 1 did not arrive" in lines_of(checks["watchdog"], "pass")["the rank is named"]["note"]


@pytest.mark.slow
def test_process_rewards_are_0_before_an_update_and_not_after(ran):
    _, checks, _ = ran
    passed = lines_of(checks["zero"], "pass")
    before = [line["value"] for what, line in passed.items() if "at step 0" in what]
    after = [line["value"] for what, line in passed.items() if "after an update" in what]
    assert len(before) == 2 * len(after) == 6
    assert set(before) == {0.0} and min(after) > 0


@pytest.mark.slow
def test_curves_have_a_value_per_step(ran):
    _, checks, _ = ran
    curves = {line["what"]: line["series"] for line in checks["parity"]["lines"] if line["series"]}
    assert len(curves) == 4 and {len(series) for series in curves.values()} == {6}
    for what, series in curves.items():
        assert series[0] == pytest.approx(math.log(2) if what.startswith("prm") else math.log(128), rel=0.02)


@pytest.mark.slow
def test_what_needs_a_gpu_is_skipped_and_says_so(ran):
    _, checks, _ = ran
    skipped = {what: line for name in RUN for what, line in lines_of(checks[name], "skipped").items()}
    for what in (
        "update, fp8 blockwise",
        "sft loss, fp8 tensorwise",
        "copies to and from pinned host memory",
    ):
        assert "no GPU" in skipped[what]["note"]
    assert all((line["note"] and line["value"] is None) or "toy" in line["note"] for line in skipped.values())


@pytest.mark.slow
def test_parts_come_back_bit_for_bit(ran):
    _, checks, _ = ran
    found = [what for what in lines_of(checks["offload"], "pass") if "bit for bit" in what]
    assert len(found) == 3


@pytest.mark.slow
def test_the_table_and_the_markdown_hold_every_line(ran):
    done, checks, markdown = ran
    for name, check in checks.items():
        assert f"## {name}: {check['status']}" in markdown
        for line in check["lines"]:
            assert line["what"].replace("|", "\\|") in markdown
    assert "largest process reward at step 0, fp32, scored" in done.stdout
    assert "Toy sizes" in markdown


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('first'); raise RuntimeError('out of memory')", "exit code 1: RuntimeError: out of memory"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL: no output"),
        ("import time; time.sleep(60)", "killed at its deadline of 1 s"),
    ],
)
def test_a_check_that_fails_is_explained(code, message, tmp_path):
    assert gpu_check._run([sys.executable, "-c", code], tmp_path / "log", 1.0) == message


def test_minutes_choose_what_fits_and_name_the_rest(tmp_path, capsys):
    arguments = ["--device", "cpu", "--tiny", "--minutes", "0.2", "--out", str(tmp_path)]
    assert gpu_check.main([*arguments, "--only", "environment", "kernels"]) == 0
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    notes = [line["note"] for check in report["checks"] for line in check["lines"]]
    assert [note.partition(" s, ")[0] for note in notes] == [
        f"not run: needs about {check.expected_s:.0f}" for check in CHECKS[:2]
    ]
    assert not (tmp_path / "results.jsonl").exists()


def test_a_check_ends_with_the_minutes(tmp_path):
    check = replace(next(check for check in CHECKS if check.name == "parity"), expected_s=0.0)
    results_file = results.ResultFile(tmp_path / "results.jsonl", {})
    (outcome,) = gpu_check._run_checks(
        [check], Setting("cpu", True, tmp_path), results_file, time.monotonic() + 0.3
    )
    assert outcome.fault == "killed at its deadline of 0 s" and records_of(tmp_path)[0]["fault"]


def test_half_a_line_spoils_neither_the_next_nor_the_earlier_ones(tmp_path):
    path = tmp_path / "results.jsonl"
    file, other = results.ResultFile(path, {"commit": "a"}), results.ResultFile(path, {"commit": "b"})
    first = Outcome("x", "", (Line("curve", "info", 1.0, series=(1.0, 2.0)),), 1.0)
    file.append(first)
    with path.open("a") as half:
        half.write('{"key": {"com')
    file.append(Outcome("y", "", (), 1.0, "killed"))
    assert file.latest() == {"x": first, "y": Outcome("y", "", (), 1.0, "killed")}
    assert other.latest() == {}
    assert results.to_run(["x", "y", "z"], file.latest()) == ["z", "y"]
    assert results.to_run(["x", "y", "z"], other.latest()) == ["x", "y", "z"]


def test_what_needs_more_gpus_says_so():
    check = next(check for check in CHECKS if check.name == "ranks")
    assert check.reason_to_skip(Setting("cuda", False, Path())) == "not run: needs 2 GPUs, this machine has 1"
    assert check.reason_to_skip(Setting("cuda", False, Path(), num_gpus=2)) is None


def test_one_fp8_recipe_is_measured_where_minutes_are_scarce():
    short, whole = (Setting("cpu", True, Path(), is_short=is_short) for is_short in (True, False))
    found = [fp8_fault_here(recipe, short) for recipe in FP8_RECIPES]
    assert sorted(found) == ["left out where minutes are scarce"] * (len(FP8_RECIPES) - 1) + ["no GPU"]
    assert {fp8_fault_here(recipe, whole) for recipe in FP8_RECIPES} == {"no GPU"}


def test_what_a_check_leaves_running_is_ended(tmp_path):
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid)"
    assert gpu_check._run([sys.executable, "-c", code], tmp_path / "log", 30.0) == ""
    status = Path(f"/proc/{(tmp_path / 'log').read_text().strip()}/status")
    deadline = time.monotonic() + deadlines.seconds(60)
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() < deadline, "the process is still running"
        time.sleep(0.02)


def test_a_broken_check_is_a_line_and_sets_the_exit_code(tmp_path, monkeypatch, capsys):
    broken = Check("broken", "nowhere:nothing", "is not there", 1, 60)
    monkeypatch.setattr(gpu_check, "chosen", lambda names: (broken, replace(broken, name="another")))
    assert gpu_check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [check["status"] for check in report["checks"]] == ["fail", "fail"], (
        "the next check ran nevertheless"
    )
    assert len(records_of(tmp_path)) == 2
    assert "unknown check broken" in report["checks"][0]["fault"]
    assert "did not finish" in capsys.readouterr().out
    assert "did not finish" in as_markdown(report)


def test_a_format_that_fails_is_a_line_and_the_others_run(tmp_path, monkeypatch, capsys):
    def curve(kind, form, model, setting):
        if form.name == "bf16":
            raise RuntimeError("CUDA out of memory\nmore words")
        return [7.0] * 6

    monkeypatch.setattr(precision, "_curve", curve)
    failed = [line for line in precision.parity(Setting("cpu", True, tmp_path)) if line.status == "fail"]
    assert [line.what for line in failed] == ["sft loss, bf16", "prm loss, bf16"]
    assert {line.note for line in failed} == {"RuntimeError: CUDA out of memory"}
    assert "Traceback" in capsys.readouterr().err


def test_an_outcome_is_its_worst_line():
    lines = [
        judged("a", 1.0, "", "", True),
        judged("b", 1.0, "", "", False),
        judged("c", 1.0, "", "", False, "", "no"),
    ]
    assert [line.status for line in lines] == ["pass", "fail", "skipped"]
    assert Outcome("x", "", tuple(lines), 0.0).status == "fail"
    assert Outcome("x", "", (lines[0], lines[2]), 0.0).status == "pass"
    assert Outcome("x", "", (lines[2],), 0.0).status == "skipped"
    assert Outcome("x", "", (lines[0],), 0.0, "killed").status == "fail"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "kernel"], "unknown check kernel; the checks are environment, "),
        (["--device", "cpu"], "use --device cpu with --tiny"),
    ],
)
def test_invalid_options_are_refused(arguments, message, tmp_path, capsys):
    assert gpu_check.main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_checks_are_listed_in_order_and_all_can_be_found(capsys):
    assert gpu_check.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        check.name for check in CHECKS
    ]
    assert chosen([]) == CHECKS
    for check in CHECKS:
        assert callable(check.load())


def test_shapes_have_the_sizes_in_their_names():
    """The models' public pages state 0.49B, 1.54B and 3.21B parameters."""
    counts = {
        name: num_parameters(ModelShape.from_hf_config(values)) / 1e9 for name, values in SHAPES.items()
    }
    assert counts["qwen2.5-0.5b"] == pytest.approx(0.49, abs=0.01)
    assert counts["qwen2.5-1.5b"] == pytest.approx(1.54, abs=0.01)
    assert counts["llama-3.2-3b"] == pytest.approx(3.21, abs=0.01)


def test_models_of_one_setting_are_gone_before_the_next_are_built(tmp_path):
    assert run_distributed(models_that_stay, 1, tmp_path) == [[]], "two do not fit on a GPU"


def test_rows_follow_their_rule_mostly():
    sizes = Sizes(1, 8, 100, 100, 50)
    rows = [prompt + response for prompt, response in ruled_sequences(sizes, 0, [0, 1] * 4)]
    follow = [{}, {}]
    for row, tokens in enumerate(rows):
        for left, right in pairwise(tokens):
            follow[row % 2].setdefault(left, []).append(right)
    shares = []
    for table in follow:
        most = {left: max(set(rights), key=rights.count) for left, rights in table.items()}
        pairs = [(left, right) for left, rights in table.items() for right in rights]
        shares.append(sum(most[left] == right for left, right in pairs) / len(pairs))
    assert all(abs(share - FOLLOWS_RULE) < 0.06 for share in shares)
    assert ruled_sequences(sizes, 0, [0, 1] * 4) == ruled_sequences(sizes, 0, [0, 1] * 4)


def test_nothing_is_judged_at_toy_size():
    setting = Setting("cpu", True, Path())
    assert setting.why_no_speed == "no GPU"
    assert Setting("cuda", True, Path()).why_no_speed == "toy size"
    assert Setting("cuda", False, Path()).why_no_speed is None
    assert Line("x", "info", 1.23456, "s").figure == "1.235 s"
