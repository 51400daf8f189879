"""Results of evaluations as JSON and TensorBoard files, to which each evaluation adds a record."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prime import __version__
from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.durable import exclusive, replace_file
from megatron_prime.observability.loggers.tensorboard import TensorBoardWriter
from megatron_prime.observability.provenance import git_state


def describe(config: PrimeConfig, model: Path, *tables: str) -> dict[str, Any]:
    """Return what identifies an evaluation: time, model, version of this program, and its settings.

    Args:
        config: the configuration of the evaluation.
        model: checkpoint that is evaluated.
        tables: names of the tables of the configuration that the result depends on.
    """
    git = git_state(Path(__file__).parent)
    settings = config.model_dump(mode="json")
    limits = ("max_prompt_tokens", "max_response_tokens", "engine")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": str(model.absolute()),
        "version": __version__,
        "commit": None if git is None else git["commit"],
        "settings": {
            "seed": config.seed,
            "rollout": {name: settings["rollout"][name] for name in limits},
            **{table: settings[table] for table in tables},
        },
    }


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, oldest first; none without a file.

    A file that is no list of records is set aside, because results must be kept even if it was damaged by hand.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        found = None
    if isinstance(found, list) and all(isinstance(record, dict) for record in found):
        return found
    if isinstance(found, dict):
        return [{"metrics": found}]  # Earlier versions wrote the metrics of the last evaluation alone.
    path.rename(path.with_name(f"{path.name}.damaged_{time.time_ns()}"))
    return []


def add_evaluation(
    json_path: Path,
    tensorboard_folder: Path,
    tag_prefix: str,
    description: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    """Append a record to a JSON list, with null for values that are not finite, and log it to TensorBoard.

    Args:
        json_path: replaced atomically; its folder must exist.
        tensorboard_folder: created when missing; the step is the number of earlier records.
        tag_prefix: put before each metric's name in TensorBoard, such as "eval/".
        description: the record besides its metrics; see `describe`.
        metrics: name -> value.
    """
    # JSON has no NaN or infinity.
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    # Two evaluations that ended at the same time would otherwise each keep the other's result out.
    with exclusive(json_path.with_name(f".{json_path.name}.lock")):
        records = [*read_evaluations(json_path), {**description, "metrics": finite}]
        replace_file(json_path, json.dumps(records, indent=2) + "\n")
        step = len(records) - 1
        writer = TensorBoardWriter(tensorboard_folder, resume_step=step)
        writer.log(step, {f"{tag_prefix}{name}": value for name, value in metrics.items()})
        writer.close()
