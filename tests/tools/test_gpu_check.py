"""The checks run at toy size and report what they found, and an error in one of them does not affect the others."""

import json
import math
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_prime.hf.serving import num_parameters
from megatron_prime.hf.shape import ModelShape
from tests.gpu.gpu_worker import models_that_stay
from tests.support import deadlines
from tests.support.distributed_runner import run_distributed
from tools import gpu_check
from tools.gpu_checks import precision
from tools.gpu_checks.catalog import CHECKS, Check, chosen
from tools.gpu_checks.lines import Line, Outcome, Setting, judged
from tools.gpu_checks.precision import FOLLOWS_RULE, Sizes, ruled_sequences
from tools.gpu_checks.report import as_markdown
from tools.gpu_checks.roles import SHAPES

RUN = ("environment", "zero", "parity", "step-1.5b", "memory", "offload", "sglang")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run most checks at toy size on this CPU; return the finished process, the checks by name, and the Markdown."""
    out = tmp_path_factory.mktemp("gpu-check")
    arguments = ["--device", "cpu", "--tiny", "--out", out, "--markdown", out / "results.md", "--only", *RUN]
    done = subprocess.run(
        [sys.executable, "-m", "tools.gpu_check", *arguments, "--sglang-python", out / "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadlines.seconds(400),
    )
    report = json.loads((out / "gpu-check.json").read_text())
    return done, {check["name"]: check for check in report["checks"]}, (out / "results.md").read_text()


def lines_of(check, status):
    return {line["what"]: line for line in check["lines"] if line["status"] == status}


def test_every_check_that_can_be_done_here_passes(ran):
    done, checks, _ = ran
    assert {name: check["fault"] for name, check in checks.items()} == dict.fromkeys(RUN, "")
    assert {name: check["status"] for name, check in checks.items()} == dict.fromkeys(RUN, "pass") | {
        "sglang": "skipped"
    }
    assert done.returncode == 0
    assert "no interpreter at" in checks["sglang"]["lines"][0]["note"]


def test_process_rewards_are_0_before_an_update_and_not_after(ran):
    _, checks, _ = ran
    passed = lines_of(checks["zero"], "pass")
    before = [line["value"] for what, line in passed.items() if "at step 0" in what]
    after = [line["value"] for what, line in passed.items() if "after an update" in what]
    assert len(before) == 2 * len(after) == 6
    assert set(before) == {0.0} and min(after) > 0


def test_curves_have_a_value_per_step(ran):
    _, checks, _ = ran
    curves = {line["what"]: line["series"] for line in checks["parity"]["lines"] if line["series"]}
    assert len(curves) == 4 and {len(series) for series in curves.values()} == {6}
    for what, series in curves.items():
        assert series[0] == pytest.approx(math.log(2) if what.startswith("prm") else math.log(128), rel=0.02)


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


def test_parts_come_back_bit_for_bit(ran):
    _, checks, _ = ran
    found = [what for what in lines_of(checks["offload"], "pass") if "bit for bit" in what]
    assert len(found) == 3


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


def test_what_a_check_leaves_running_is_ended(tmp_path):
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid)"
    assert gpu_check._run([sys.executable, "-c", code], tmp_path / "log", 30.0) == ""
    status = Path(f"/proc/{(tmp_path / 'log').read_text().strip()}/status")
    deadline = time.monotonic() + deadlines.seconds(60)
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() < deadline, "the process is still running"
        time.sleep(0.02)


def test_a_broken_check_is_a_line_and_sets_the_exit_code(tmp_path, monkeypatch, capsys):
    broken = Check("broken", "nowhere:nothing", "is not there", 60)
    monkeypatch.setattr(gpu_check, "chosen", lambda names: (broken, broken))
    assert gpu_check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [check["status"] for check in report["checks"]] == ["fail", "fail"], (
        "the next check ran nevertheless"
    )
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
