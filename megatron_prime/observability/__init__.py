"""What a run tells: metrics, their files, and progress on a terminal."""

from megatron_prime.observability.metrics import Metrics
from megatron_prime.observability.metrics_logger import MetricsLogger
from megatron_prime.observability.progress import Progress

__all__ = ["Metrics", "MetricsLogger", "Progress"]
