"""A run through the command line with an SGLang server on the trainer's GPU, which is killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from megatron_prime.quickstart.folder import CONFIG
from tools.gpu_checks.lines import ROOT, Line, Setting, info, judged

NUM_STEPS = 4
KILLED_AFTER = 1
"""Step after which the server is killed, while the trainer computes."""
STARTUP_GOAL = 0.5
"""Bound on the time until the first step begins, as a share of rollout.sglang.startup_timeout_s."""
STARTUP_TIMEOUT_S = 600.0


def colocated_run(setting: Setting) -> Iterator[Line]:
    """Train with a colocated server as a user would: built models first, then the server, a checkpoint each step."""
    assert setting.sglang_python is not None, "the check is skipped without it"
    task, run = setting.folder / "task", setting.folder / "run"
    generate = [sys.executable, "-m", "megatron_prime.quickstart.arithmetic_task", "--output", str(task)]
    subprocess.run(generate, check=True, timeout=120, cwd=ROOT)
    # SGLang's memory saver refuses this setting, which users give the trainer: it must not reach the server.
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    command = [sys.executable, "-m", "megatron_prime", "train", str(CONFIG)]
    command += _overrides(setting, task, run)
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        first_step_s, killed = None, None
        while process.poll() is None:
            steps = [record for record in _records(run) if "time/step_s" in record]
            if steps and first_step_s is None:
                first_step_s = time.monotonic() - start - steps[0]["time/step_s"]
            if killed is None:
                servers = _servers(process.pid, setting.sglang_python)
                if servers and len(steps) == KILLED_AFTER:
                    yield _affinity(servers[0])
                    killed = servers[0].pid
                    os.kill(killed, signal.SIGKILL)
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    yield judged("exit code of train", process.returncode, "", "0", process.returncode == 0)
    yield judged("a server was killed in training", float(killed is not None), "", "1", killed is not None)
    yield from _run_lines(run, first_step_s)


def _overrides(setting: Setting, task: Path, run: Path) -> list[str]:
    settings = {
        "platform.device": setting.device,
        "platform.dtype": "bf16" if setting.is_cuda else "fp32",
        "parallel.tensor": 1,
        "model.path": task / "model",
        "data.train": f'["{task / "train.jsonl"}"]',
        "data.evaluation": "[]",
        "run_dir": run,
        "filter.enabled": "false",
        "trainer.num_steps": NUM_STEPS,
        "trainer.prompts_per_step": 8 if setting.is_tiny else 64,
        "trainer.eval_every": 0,
        "checkpoint.save_every": 1,
        "memory.offload_policy_optimizer": "true",
        "memory.offload_prm": "true",
        "memory.offload_reference": "true",
        "rollout.engine": "sglang",
        "rollout.sglang.python": setting.sglang_python,
        "rollout.sglang.colocated": "true",
        "rollout.sglang.mem_fraction": 0.4,
        "rollout.sglang.startup_timeout_s": STARTUP_TIMEOUT_S,
    }
    return [f"{key}={value}" for key, value in settings.items()]


def _records(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    # The last line may be half written.
    return [json.loads(text) for text in path.read_text().split("\n")[:-1]] if path.is_file() else []


def _servers(pid: int, python: Path) -> list[psutil.Process]:
    """Return the main processes of SGLang servers below a process, which their guardians have started."""
    found = []
    for process in psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else ():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command[:1] == [str(python)] and "sglang" in " ".join(command) and "child.py" not in command[1]:
            found.append(process)
    return found


def _affinity(server: psutil.Process) -> Line:
    mine, its = os.sched_getaffinity(0), server.cpu_affinity()
    return info("CPUs of a server", len(its), "", f"of {len(mine)} that this check may use")


def _run_lines(run: Path, first_step_s: float | None) -> Iterator[Line]:
    records = [record for record in _records(run) if "time/step_s" in record]
    yield judged("steps done", len(records), "", str(NUM_STEPS), len(records) == NUM_STEPS)
    if first_step_s is not None:
        bound = STARTUP_GOAL * STARTUP_TIMEOUT_S
        goal = f"<= {STARTUP_GOAL} of startup_timeout_s"
        yield judged("until the first step began", first_step_s, "s", goal, first_step_s <= bound)
    for record in records:
        what = (
            f"step {record.get('step', 0):.0f}: weight sync, a server's start included where one was killed"
        )
        yield info(what, record["time/weight_sync_s"], "s")
    if records:
        for name, value in records[-1].items():
            if name.endswith("/device_peak_gib") or name == "memory/peak_rss_gib":
                yield info(f"{name} of the trainer", value, "GiB")
        gap = records[-1].get("rollout/logprob_gap")
        if gap is not None:
            yield judged(
                "log-prob gap of trainer and engine in the last step", gap, "nats", "<= 0.05", gap <= 0.05
            )
    checkpoints = [path for path in (run / "checkpoints").glob("step_*") if (path / "run.json").is_file()]
    yield judged("complete checkpoints", len(checkpoints), "", ">= 1", len(checkpoints) >= 1)
