"""Metrics as JSON and TensorBoard files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.tensorboard import TensorBoardWriter


def write_metrics(
    json_path: Path, tensorboard_folder: Path, tag_prefix: str, metrics: Mapping[str, float]
) -> None:
    """Write metrics to a JSON file, with null for values that are not finite, and to TensorBoard at step 0.

    Args:
        json_path: replaced atomically; its folder must exist.
        tensorboard_folder: created when missing.
        tag_prefix: put before each metric's name in TensorBoard, such as "eval/".
        metrics: name -> value.
    """
    # JSON has no NaN or infinity.
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    replace_file(json_path, json.dumps(finite, indent=2) + "\n")
    writer = TensorBoardWriter(tensorboard_folder)
    writer.log(0, {f"{tag_prefix}{name}": value for name, value in metrics.items()})
    writer.close()
