"""A complete run through the command line: the quickstart's toy task, in bf16 on the GPU."""

import json
import subprocess
import sys
from collections.abc import Iterator

from megatron_prime.quickstart.folder import CONFIG
from tools.gpu_checks.lines import ROOT, Line, Setting, info, judged

MIN_GAIN = 0.2
"""Gain in held-out accuracy that PRIME must reach; on CPUs in fp32 it is about 0.7 (README)."""


def prime_run(setting: Setting) -> Iterator[Line]:
    """Run SFT and PRIME on the arithmetic task as a user would; held-out accuracy must rise."""
    task = setting.folder / "task"
    generate = [sys.executable, "-m", "megatron_prime.quickstart.arithmetic_task", "--output", str(task)]
    subprocess.run(generate, check=True, timeout=120)
    shared = [
        f"platform.device={setting.device}",
        "platform.dtype=bf16",
        "parallel.tensor=1",
        f"model.path={task / 'model'}",
        f'sft.data=["{task / "sft.jsonl"}"]',
        f"sft.output={setting.folder / 'sft'}",
        f'data.train=["{task / "train.jsonl"}"]',
        f'data.evaluation=["{task / "heldout.jsonl"}"]',
    ]
    short = ["sft.num_steps=40", "sft.lr_warmup_steps=5"] if setting.is_tiny else []
    yield from _command("sft", [*shared, *short, f"run_dir={setting.folder / 'sft_run'}"])
    run = setting.folder / "prime"
    if setting.is_tiny:
        short = ["trainer.num_steps=2", "trainer.prompts_per_step=8", "evaluation.max_prompts=32"]
        short += ["filter.enabled=false"]
    yield from _command("train", [*shared, f"model.path={setting.folder / 'sft'}", *short, f"run_dir={run}"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accuracy = [record["eval/accuracy"] for record in records if "eval/accuracy" in record]
    yield info("held-out accuracy after SFT", accuracy[0])
    gain = accuracy[-1] - accuracy[0]
    goal = f"gain >= {MIN_GAIN}"
    why_not = "toy size: two steps" if setting.is_tiny else None
    yield judged("held-out accuracy after PRIME", accuracy[-1], "", goal, gain >= MIN_GAIN, why_not=why_not)
    steps = [record for record in records if "time/step_s" in record]
    yield info("duration of the last step", steps[-1]["time/step_s"], "s")
    yield info(
        "log-prob gap of trainer and engine in the last step", steps[-1]["rollout/logprob_gap"], "nats"
    )
    # The run exports the policy at its end, so missing files mean that it did not finish.
    num_files = len(list((run / "hf").glob("*.safetensors")))
    yield judged("safetensors files of the exported policy", num_files, "", ">= 1", num_files >= 1)


def _command(name: str, overrides: list[str]) -> Iterator[Line]:
    """Run a command; its output goes to the check's log. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", "megatron_prime", name, str(CONFIG), *overrides]
    done = subprocess.run(command, check=False, cwd=ROOT)
    yield judged(f"exit code of {name}", done.returncode, "", "0", done.returncode == 0)
    done.check_returncode()
