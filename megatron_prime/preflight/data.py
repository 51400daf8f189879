"""Check the data files of a command: that they exist, and that a reader takes their type."""

from collections.abc import Iterator
from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.evaluation import CODE_BENCHMARKS
from megatron_prime.data.files import data_file_fault
from megatron_prime.preflight.prm_training import response_faults

TEXT_VERIFIERS = ("exact_match", "math")
"""Verifiers that judge text alone."""


def data_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each fault of the files that a command reads."""
    template = config.data.chat_template_file
    if template is not None:
        fault = _file_fault(template)
        if fault:
            yield f"data.chat_template_file = {template} {fault}"
    if "prm" in command:
        yield from _prm_faults(config, command)
        return
    needed = {
        "train": "data.train",
        "evaluate": "data.evaluation",
        "sft": "sft.data",
        "rollout": "data.train",
    }[command]
    files = {
        "data.train": config.data.train,
        "data.evaluation": config.data.evaluation,
        "sft.data": config.sft.data,
        "sft.evaluation": config.sft.evaluation,
    }
    if not files[needed] and not (command == "evaluate" and config.evaluation.benchmarks):
        yield f"{needed} is empty: name at least one jsonl, parquet or csv file"
    used = {needed, *{"train": ["data.evaluation"], "sft": ["sft.evaluation"]}.get(command, [])}
    for key in sorted(used):
        for path in files[key]:
            fault = data_file_fault(path) or _file_fault(path)
            if fault:
                yield f"{key}: {path} {fault}"
    if command in ("train", "evaluate"):
        yield from _benchmark_faults(config)
    yield from _probe_faults(config, command)


def _probe_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    path = config.prm.probe if command == "train" and config.prm.enabled else None
    fault = None if path is None else data_file_fault(path) or _file_fault(path)
    if fault:
        yield f"prm.probe: {path} {fault}"


def _prm_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each fault of the files of a command about a PRM alone."""
    if command == "train_prm":
        yield from response_faults(config)
        return
    if command == "evaluate_prm":
        yield from _prm_evaluation_faults(config)
    yield from _equal_models_faults(config)


def _prm_evaluation_faults(config: PrimeConfig) -> Iterator[str]:
    settings = config.prm_evaluation
    files = [
        *((f"prm_evaluation.responses: {path}", path) for path in settings.responses),
        *(
            (f"prm_evaluation.processbench.{split}: {path}", path)
            for split, path in settings.processbench.items()
        ),
        *((f"prm_evaluation.pairs: {path}", path) for path in settings.pairs),
    ]
    if not files:
        yield "prm_evaluation is empty: name responses, processbench or pairs"
    for where, path in files:
        fault = data_file_fault(path) or _file_fault(path)
        if fault:
            yield f"{where} {fault}"


def _equal_models_faults(config: PrimeConfig) -> Iterator[str]:
    prm, reference = config.prm_path, config.evaluated_reference_path
    if prm.absolute() == reference.absolute():
        yield (
            f"prm.path and reference.path are both {prm} (model.path is the default of each): every score would be 0; "
            "name the PRM and the model that it was trained from"
        )


def _benchmark_faults(config: PrimeConfig) -> Iterator[str]:
    for name, benchmark in config.evaluation.benchmarks.items():
        key = f"evaluation.benchmarks.{name}"
        fault = data_file_fault(benchmark.path) or _file_fault(benchmark.path)
        if fault:
            yield f"{key}.path: {benchmark.path} {fault}"
        is_code = (benchmark.format or name) in CODE_BENCHMARKS
        if config.reward.verifier in (TEXT_VERIFIERS if is_code else ("code",)):
            yield (
                f"{key} asks for {'programs' if is_code else 'mathematical answers'}, which reward.verifier = "
                f"{config.reward.verifier!r} does not judge: set it to 'auto', which chooses by what a problem asks for"
            )


def _file_fault(path: Path) -> str | None:
    """Return why a file has no content that can be read; None when it has."""
    try:
        with path.open("rb") as file:
            return None if file.read(1) else "is empty"
    except FileNotFoundError:
        return f"does not exist (working directory: {Path.cwd()})"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
