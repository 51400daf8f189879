"""Train with this project, and report the costs of each step.

    python -m benchmarks.peers.ours FOLDER WORKLOAD METHOD TENSOR OUTPUT

torchrun starts it with several processes, each of which writes a report into the folder OUTPUT.
"""

import functools
import json
import os
import resource
import sys
import time
from pathlib import Path

from benchmarks.peers.task import GROUP_SIZE, MAX_PROMPT_TOKENS, WORKLOADS

METHODS = {
    "RLOO": ["prm.enabled=false"],
    "PRIME": [],
}


def main(folder: Path, workload_name: str, method: str, tensor: int, output: Path) -> int:
    """Run `train` in this process, and write the costs of its steps to output."""
    from megatron_prime.cli import main as command_line
    from megatron_prime.training.trainer import Trainer

    workload, rank = WORKLOADS[workload_name], os.environ.get("RANK", "0")
    marks: list[tuple[float, float, float]] = []
    step = Trainer.step

    @functools.wraps(step)
    def marked(self):
        start = time.perf_counter(), time.process_time()
        result = step(self)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        marks.append((time.perf_counter() - start[0], time.process_time() - start[1], peak_mb))
        return result

    # A timer from outside, so that the product contains no benchmark code.
    Trainer.step = marked
    run = folder / f"ours-{method}"
    code = command_line(
        [
            "train",
            str(Path(__file__).with_name("ours.toml")),
            f"run_dir={run}",
            f"model.path={folder / 'model'}",
            f'data.train=["{folder / "train.jsonl"}"]',
            f"rollout.group_size={GROUP_SIZE}",
            f"rollout.max_prompt_tokens={MAX_PROMPT_TOKENS}",
            f"rollout.max_response_tokens={workload.max_response_tokens}",
            f"trainer.prompts_per_step={workload.prompts_per_step}",
            f"trainer.num_steps={workload.num_steps}",
            f"parallel.tensor={tensor}",
            *METHODS[method],
        ]
    )
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    samples = workload.prompts_per_step * GROUP_SIZE
    steps = [
        {
            "step_s": seconds,
            "cpu_s": cpu,
            # Sampled tokens are metrics of the job, which rank 0 reports for all.
            "sampling_s": record["time/rollout_s"] if rank == "0" else 0.0,
            "sampled_tokens": record["rollout/mean_response_tokens"] * samples if rank == "0" else 0.0,
        }
        for (seconds, cpu, _), record in zip(marks, metrics, strict=True)
    ]
    # The checkpoint at the end of the run does not count: TRL's runs write none.
    (output / f"{rank}.json").write_text(json.dumps({"steps": steps, "peak_mb": marks[-1][2]}))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])))
