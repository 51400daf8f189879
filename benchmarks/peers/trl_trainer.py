"""Train with TRL, in TRL's own environment, and report the costs of each step.

    python benchmarks/peers/trl_trainer.py JOB.json

torchrun starts it with several processes, each of which writes a report. It imports nothing of this project, whose
versions of packages need not be TRL's.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

TRAINERS = {"RLOO": (RLOOTrainer, RLOOConfig), "GRPO": (GRPOTrainer, GRPOConfig)}


def reward(completions, **_):
    """Return benchmarks.peers.task.verify of each response."""
    return [float(sum(int(w[1:]) for w in text.split() if w[1:].isdigit()) % 2 == 0) for text in completions]


class Clock(TrainerCallback):
    """Notes wall and CPU time at the end of each step."""

    def __init__(self):
        self.marks = [(time.perf_counter(), time.process_time())]

    def on_step_begin(self, *_, **__):
        """Start the clock at the first step."""
        if len(self.marks) == 1:
            self.marks = [(time.perf_counter(), time.process_time())]

    def on_step_end(self, *_, **__):
        """Note the end of a step."""
        self.marks.append((time.perf_counter(), time.process_time()))


def main(job):
    """Carry out a job, and write the costs of its steps to the folder job["output"]."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    trainer_class, config_class = TRAINERS[job["method"]]
    config = config_class(
        output_dir=job["folder"] + "/trl",
        use_cpu=True,
        # With a backend, one process would look for a process group too.
        ddp_backend="gloo" if "RANK" in os.environ else None,
        bf16=False,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_steps=job["num_steps"],
        per_device_train_batch_size=job["rows_per_microbatch"],
        gradient_accumulation_steps=job["samples_per_process"] // job["rows_per_microbatch"],
        num_generations=job["group_size"],
        max_completion_length=job["max_response_tokens"],
        cache_implementation=job.get("cache"),
        beta=0.0,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
    )
    rows = [json.loads(line) for line in Path(job["folder"], "train.jsonl").read_text().splitlines()]
    clock, sampling = Clock(), []
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(job["folder"] + "/model", dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(job["folder"] + "/model"),
        callbacks=[clock],
    )
    generate = trainer._generate

    def timed(prompts, *arguments, **settings):
        start = time.perf_counter()
        found = generate(prompts, *arguments, **settings)
        sampling.append((time.perf_counter() - start, sum(len(ids) for ids in found[1])))
        return found

    trainer._generate = timed
    trainer.train()
    steps = [
        {
            "step_s": end[0] - begin[0],
            "cpu_s": end[1] - begin[1],
            "sampling_s": seconds,
            "sampled_tokens": tokens,
        }
        for begin, end, (seconds, tokens) in zip(clock.marks[:-1], clock.marks[1:], sampling, strict=True)
    ]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = Path(job["output"], f"{os.environ.get('RANK', '0')}.json")
    report.write_text(json.dumps({"steps": steps, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
