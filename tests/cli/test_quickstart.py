"""The quickstart runs on a prepared task; slow tests check that policies learn."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_prime.cli.quickstart import _rollouts_to
from megatron_prime.training.health.stop import EXIT_CODE as STOPPED
from tests.support import deadlines
from tests.support.event_files import EventFiles
from tests.support.metric_names import undocumented
from tests.support.toy_runs import Toy, environment, records

SMALL = [
    "--task=arithmetic",
    "trainer.num_steps=2",
    "trainer.prompts_per_step=8",
    "evaluation.max_prompts=32",
    "parallel.tensor=1",
    "filter.accuracy_min=0.1",
]
SHORT_SFT = ["trainer.eval_every=0", "sft.num_steps=150", "sft.batch_size=32"]
"""Half the steps of half the size, after which the tasks of many turns can be learned all the same."""
LEARNING = {
    "chain": ["trainer.num_steps=24", "evaluation.max_prompts=256", *SHORT_SFT],
    "arithmetic": ["trainer.num_steps=12", "parallel.tensor=1", "prm.enabled=false"],
    "tools": ["trainer.num_steps=10", *SHORT_SFT],
}
"""Overrides with which policies learn within a minute after SFT. One process is faster than two on a few cores."""
DOCUMENTED = (
    "rollout/accuracy_batch",
    "rollout/accuracy_sampled",
    "rollout/mean_response_tokens",
    "rollout/logprob_gap",
    "rollout/logprob_gap_max",
    "prm/loss",
    "prm/sign_accuracy",
    "policy/approx_kl",
    "policy/entropy",
    "policy/clip_fraction",
    "time/step_s",
    "time/rollout_s",
    "throughput/response_tokens_per_s",
    "memory/peak_rss_gib",
)
"""Scalars that TensorBoard must show."""


def quickstart(root: Path, *arguments: str, timeout_s: float = 900) -> str:
    """Run the quickstart to its end, and return its output."""
    finished = subprocess.run(
        [sys.executable, "-m", "megatron_prime", "quickstart", "--root", str(root), *arguments],
        cwd=root.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=deadlines.seconds(timeout_s),
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:] + finished.stdout[-3000:]
    return finished.stdout


@pytest.fixture(scope="module")
def prepared(toy: Toy, tmp_path_factory) -> Path:
    """Return a quickstart folder that already has the task and the SFT checkpoint, as after an earlier start."""
    root = tmp_path_factory.mktemp("quickstart") / "root"
    for name in ("task", "sft"):
        shutil.copytree(toy.folder / name, root / name)
    return root


@pytest.fixture(scope="module")
def printed(prepared: Path) -> str:
    return quickstart(prepared, *SMALL, "--compare")


@pytest.fixture(scope="module")
def scalars(prepared: Path, printed: str) -> EventFiles:
    return EventFiles(prepared / "prime/tensorboard")


def row(printed: str, name: str, column: int = 0) -> str:
    """Return the value next to a name in the final tables, of one run."""
    lines = printed.replace("┃", "│").splitlines()
    rows = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    (cells,) = [cells for cells in rows if cells[1] == name]
    return cells[2 + column]


START, END = "held-out accuracy at the start", "held-out accuracy at the end"


def test_the_quickstart_ends_with_a_table_of_the_metrics_of_its_runs(prepared, printed):
    assert (row(printed, "quickstart"), row(printed, "quickstart", 1)) == ("PRIME", "outcome rewards alone")
    for column, name in enumerate(("prime", "outcome")):
        history = records(prepared / name)
        assert row(printed, START, column) == f"{history[0]['eval/accuracy']:.3f}"
        assert row(printed, END, column) == f"{history[-1]['eval/accuracy']:.3f}"
        assert row(printed, "steps", column) == "2"
        assert float(row(printed, "rollouts", column)) == sum(
            record.get("rollout/num_rollouts_sampled", 0) for record in history
        )
        assert ("prm/loss" in history[-1]) == (name == "prime")
    assert re.fullmatch(r"\d+", row(printed, "seconds, total"))
    assert "One seed proves nothing" in " ".join(printed.split())


def test_rollouts_are_counted_until_the_mean_of_four_steps_reaches_a_goal():
    steps = [
        {"rollout/num_rollouts_sampled": 100.0, "rollout/accuracy_sampled": accuracy}
        for accuracy in (0.9, 0.1, 0.1, 0.1, 0.7, 0.9, 0.3)
    ]
    # The means are 0.3, 0.25, 0.45 and 0.5.
    assert [_rollouts_to(goal, steps) for goal in (0.29, 0.44, 0.49, 0.7)] == [
        "400",
        "600",
        "700",
        "not reached",
    ]
    assert _rollouts_to(0.0, steps[:3]) == "not reached"


def test_tensorboard_shows_the_documented_scalars_of_every_step(prepared, scalars):
    tags = scalars.tags()
    assert undocumented(tags) == []
    assert set(DOCUMENTED) <= set(tags)
    assert [event.step for event in scalars.scalars("policy/entropy")] == [1, 2]
    assert [event.step for event in scalars.scalars("eval/accuracy")] == [0, 2]
    for record in records(prepared / "prime")[1:]:
        (event,) = [event for event in scalars.scalars("policy/entropy") if event.step == record["step"]]
        assert event.value == pytest.approx(record["policy/entropy"], rel=1e-6)


def test_transformers_loads_the_export(prepared, printed):
    model = AutoModelForCausalLM.from_pretrained(prepared / "prime/hf")
    tokenizer = AutoTokenizer.from_pretrained(prepared / "prime/hf")
    prompt = tokenizer("1 + 2 =", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=2, do_sample=False)[0])
    assert text.startswith("1 + 2 =")


def test_a_second_start_resumes_where_the_first_ended(prepared, printed):
    before = (prepared / "sft/model.safetensors").stat().st_mtime_ns, records(prepared / "prime")
    again = quickstart(prepared, *SMALL, "trainer.num_steps=3")
    assert "resuming after step 2" in again
    history = records(prepared / "prime")
    assert (prepared / "sft/model.safetensors").stat().st_mtime_ns == before[0]
    assert history[:3] == before[1]
    assert row(again, "steps") == "3"
    assert json.loads((prepared / "prime/config.json").read_text())["trainer"]["num_steps"] == 3


def test_a_request_to_stop_reaches_the_run_which_saves(prepared, printed):
    before = len(records(prepared / "prime"))
    many = ("--root", str(prepared), *SMALL, "trainer.num_steps=1000")
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_prime", "quickstart", *many],
        cwd=prepared.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    deadlines.wait_until(lambda: len(records(prepared / "prime")) > before, 300)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=deadlines.seconds(300))
    assert process.returncode == STOPPED
    assert "resume" in output


def test_a_folder_that_cannot_be_used_is_a_fault_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "megatron_prime", "quickstart", "--root", "file"]
    finished = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 2
    assert re.fullmatch(r"megatron-prime: .*file.*\n", finished.stderr.replace("\n  ", " "))


def learned(root: Path, task: str) -> tuple[float, float]:
    """Run a complete quickstart, from the random model to the trained policy; return the accuracies at both ends."""
    printed = quickstart(root, "--task", task, *LEARNING[task])
    return float(row(printed, START)), float(row(printed, END))


@pytest.mark.slow
def test_the_policy_learns_from_process_rewards(tmp_path):
    before, after = learned(tmp_path / "root", "chain")
    assert 0.1 < before < 0.3
    assert after > before + 0.2


@pytest.mark.slow
def test_the_policy_learns_from_outcome_rewards_alone(tmp_path):
    before, after = learned(tmp_path / "root", "arithmetic")
    assert 0.2 < before < 0.5
    assert after > before + 0.2


@pytest.mark.slow
def test_the_policy_learns_to_call_a_tool(tmp_path):
    before, after = learned(tmp_path / "root", "tools")
    # Whoever answers without the tool is right in one case of ten.
    assert 0.3 < before < 0.65
    assert after > before + 0.15
    assert records(tmp_path / "root" / "prime")[-1]["rollout/mean_turns"] > 1.5
