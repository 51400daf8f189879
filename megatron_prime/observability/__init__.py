"""Metrics, their files, progress output, and the heartbeat of a process.

- `metrics`: metrics of one step, timers and memory
- `catalog`: the declaration of everything that is logged, with unit and description
- `declared_metrics/`: the rows of the catalog
- `metrics_logger`: writes metrics to all destinations
- `jsonl`: the file metrics.jsonl
- `loggers/`: TensorBoard, Weights & Biases and MLflow
- `progress`: log lines, progress and the status of a run
- `status_area`: lines that stay at the bottom of a terminal
- `run_status`: the status of a run in two lines
- `heartbeat`: step, phase and last event of this process
- `activity`: work of engines and verifiers, and the recording of a step
- `timeline`: writes the recording of a step as a trace for Perfetto
- `provenance`: versions, git state and machine of each attempt of a run
- `rollout_log/`: sampled responses with everything computed of their tokens, as Parquet files
- `durable`: atomic replacement of files
"""

from megatron_prime.observability.metrics import Metrics
from megatron_prime.observability.metrics_logger import MetricsLogger
from megatron_prime.observability.progress import Progress

__all__ = ["Metrics", "MetricsLogger", "Progress"]
