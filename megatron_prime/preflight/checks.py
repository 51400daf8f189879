"""What can be known to be wrong before a process group starts: files, shapes against the layout, batches.

Torch-free, so that a login node tells in milliseconds what a cluster job would fail on after its queue time.
"""

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.loading import ConfigError
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.evaluation import CODE_BENCHMARKS
from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.config.tables.rollout import SGLANG_RESERVED_POSITIONS
from megatron_prime.preflight.algorithm import algorithm_faults
from megatron_prime.preflight.rewards import reward_faults

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any one of these makes a tokenizer that transformers can read."""

MEGATRON_TRACKER = "latest_checkpointed_iteration.txt"
"""A folder that has it holds its weights in Megatron's format (tools/hf_to_megatron.py)."""

TEXT_VERIFIERS = ("exact_match", "math")
"""Verifiers that judge text alone."""

COMMANDS = ("train", "evaluate", "sft", "evaluate_prm")
"""Commands that run a model; each needs other files."""


def check_run(
    config: PrimeConfig,
    num_processes: int,
    command: str,
    *,
    verifiers: Collection[str] | None = None,
    model_types: Collection[str] | None = None,
) -> BatchArithmetic:
    """Check that `command` (one of COMMANDS) can start on `num_processes`, and return its batch arithmetic.

    `verifiers` and `model_types` are the names that the registries know; they come from the command line,
    because this layer may not import them, and None skips the check. Raises ConfigError with every fault.
    """
    assert command in COMMANDS, f"unknown command {command!r}"
    arithmetic = BatchArithmetic.of(config, num_processes)
    faults = [
        *_model_faults(config, command, model_types),
        *_data_faults(config, command),
        *_benchmark_faults(config, command),
        *_process_faults(config, arithmetic, command),
        *_engine_faults(config, command),
        *_run_dir_faults(config.run_dir),
        *_output_faults(config, command),
        *_resume_faults(config, command),
    ]
    if command == "train":
        faults += algorithm_faults(config)
    if verifiers is not None and command not in ("sft", "evaluate_prm"):
        faults += reward_faults(config.reward, verifiers)
    if faults:
        raise ConfigError(f"{command} on {num_processes} processes", faults)
    return arithmetic


def _resume_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    checkpoints = sorted((config.run_dir / "checkpoints").glob("step_*/run.json"))
    if command == "train" and config.checkpoint.resume == "never" and checkpoints:
        yield (
            f"checkpoint.resume = 'never', but run_dir = {config.run_dir} holds {checkpoints[-1].parent.name}: choose "
            "another run_dir, or remove its checkpoints"
        )


def sft_output(config: PrimeConfig) -> Path:
    """Where `sft` writes its HF checkpoint."""
    return config.sft.output or config.run_dir / "sft"


def check_convert(config: PrimeConfig, role: str, checkpoint: Path | None, output: Path) -> None:
    """Check that a checkpoint's role can be written to `output`. Raises ConfigError with every fault.

    `checkpoint` None stands for the newest complete one of run_dir.
    """
    faults: list[str] = []
    source_key = "prm.path" if role == "prm" and config.prm.path is not None else "model.path"
    source = (
        config.prm.path if source_key == "prm.path" and config.prm.path is not None else config.model.path
    )
    try:
        _read_model_config(source)
    except ValueError as error:
        faults.append(f"{source_key} = {source}: {error}")
    folder = config.run_dir / "checkpoints"
    if checkpoint is None and not any(folder.glob("step_*/run.json")):
        faults.append(f"{folder} holds no complete checkpoint; train first, or name one with --checkpoint")
    if checkpoint is not None and not (checkpoint / "run.json").is_file():
        faults.append(f"--checkpoint {checkpoint} is not a complete checkpoint: it has no run.json")
    if output.exists():
        faults.append(f"--output {output} exists already: remove it, or choose another folder")
    if faults:
        raise ConfigError("convert", faults)


def _model_faults(config: PrimeConfig, command: str, model_types: Collection[str] | None) -> Iterator[str]:
    vocab_sizes: dict[str, object] = {}
    for key, folder in _models_used(config, command).items():
        try:
            shape = _read_model_config(folder)
        except ValueError as error:
            yield f"{key} = {folder}: {error}"
            continue
        where = f"{key} = {folder}"
        if model_types is not None and shape.get("model_type") not in model_types:
            known = ", ".join(sorted(model_types))
            yield f"{where}: config.json has model_type {shape.get('model_type')!r}; known are {known}"
        yield from (f"{where}: {fault}" for fault in _shape_faults(shape, config))
        if _num_experts(shape) is None:
            yield from (f"{where}: {fault}" for fault in _dense_faults(config, key, command))
        vocab_sizes[key] = shape.get("vocab_size")
    if len(set(vocab_sizes.values())) > 1:
        sizes = ", ".join(f"{key}: {size}" for key, size in vocab_sizes.items())
        yield f"policy, PRM and reference need one vocabulary, but vocab_size differs ({sizes})"
    if config.model.path.is_dir() and not any(
        (config.model.path / name).is_file() for name in TOKENIZER_FILES
    ):
        yield f"model.path = {config.model.path}: no tokenizer ({', '.join(TOKENIZER_FILES)})"


def _models_used(config: PrimeConfig, command: str) -> dict[str, Path]:
    """Configuration key -> folder of every distinct checkpoint that the command loads."""
    models = {"model.path": config.model.path}
    if command == "evaluate_prm":
        roles = {"prm.path": config.prm.path, "reference.path": config.reference.path}
        models |= {key: path for key, path in roles.items() if path is not None}
    if command == "train":
        has_reference = config.reference.mode == "freeze" and (
            config.prm.enabled or config.policy.kl_coef > 0
        )
        # The reference starts from the PRM's checkpoint when it has none of its own, with or without a PRM.
        needs_prm_path = config.prm.enabled or (has_reference and config.reference.path is None)
        if needs_prm_path and config.prm.path is not None:
            models["prm.path"] = config.prm.path
        if has_reference and config.reference.path is not None:
            models["reference.path"] = config.reference.path
    first_key = {path: key for key, path in reversed(models.items())}
    return {key: path for key, path in models.items() if first_key[path] == key}


def _read_model_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint; raises ValueError saying what the folder lacks."""
    if not folder.is_dir():
        raise ValueError(f"no such folder (working directory: {Path.cwd()})")
    path = folder / "config.json"
    try:
        shape = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError("no config.json; this must be a Hugging Face checkpoint folder") from None
    except OSError as error:
        raise ValueError(f"config.json cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"config.json is not valid JSON: {error}") from error
    if not isinstance(shape, dict):
        raise ValueError("config.json does not hold an object")
    if not any(folder.glob("*.safetensors")) and not (folder / MEGATRON_TRACKER).is_file():
        raise ValueError("no *.safetensors file; convert other weight formats to safetensors first")
    return shape


def _shape_faults(shape: dict[str, Any], config: PrimeConfig) -> Iterator[str]:
    parallel: ParallelConfig = config.parallel
    num_chunks = parallel.pipeline * parallel.virtual_pipeline
    chunks = "pipeline * virtual_pipeline" if parallel.virtual_pipeline > 1 else "pipeline"
    heads = shape.get("num_attention_heads")
    divisions = [
        ("tensor", parallel.tensor, "num_attention_heads", heads),
        ("tensor", parallel.tensor, "num_key_value_heads", shape.get("num_key_value_heads", heads)),
        (chunks, num_chunks, "num_hidden_layers", shape.get("num_hidden_layers")),
    ]
    num_experts = _num_experts(shape)
    if num_experts is None:
        divisions.append(("tensor", parallel.tensor, "intermediate_size", shape.get("intermediate_size")))
    else:
        ffn_key = "moe_intermediate_size" if "moe_intermediate_size" in shape else "intermediate_size"
        divisions += [
            ("expert", parallel.expert, "the number of experts", num_experts),
            ("expert_tensor", parallel.expert_tensor, ffn_key, shape.get(ffn_key)),
        ]
    for axis, size, name, value in divisions:
        if not isinstance(value, int):
            yield f"config.json has no whole number {name}"
        elif value % size:
            yield f"parallel.{axis} = {size} does not divide {name} = {value}"
    recompute, layers = config.memory.recompute, shape.get("num_hidden_layers")
    if isinstance(layers, int) and recompute.num_layers > layers // parallel.pipeline:
        yield (
            f"memory.recompute.num_layers = {recompute.num_layers} exceeds the {layers // parallel.pipeline} layers "
            "of a pipeline stage"
        )
    yield from _expert_faults(num_experts, parallel)
    positions = shape.get("max_position_embeddings")
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    reserved = SGLANG_RESERVED_POSITIONS if config.rollout.engine == "sglang" else 0
    if isinstance(positions, int) and longest > positions - reserved:
        yield (
            f"rollout.max_prompt_tokens + max_response_tokens = {longest} exceeds "
            f"max_position_embeddings = {positions}"
            + (f" less the {reserved} that SGLang reserves" if reserved else "")
        )


def _num_experts(shape: dict[str, Any]) -> object:
    """Experts of a layer; None of a dense model."""
    return shape.get("num_experts") or shape.get("num_local_experts")


def _dense_faults(config: PrimeConfig, model_key: str, command: str) -> Iterator[str]:
    """What is asked of experts that a dense model does not have."""
    rollout = config.rollout
    replays = command == "train" and rollout.engine == "sglang" and rollout.sglang.routing_replay
    if replays and model_key == "model.path":
        yield "rollout.sglang.routing_replay = true: the model has no experts, set it to false"
    roles = {"policy": config.policy, "prm": config.prm} if command == "train" else {}
    roles |= {"sft": config.sft} if command == "sft" else {}
    for name, role in roles.items():
        starts_from = "prm.path" if name == "prm" and config.prm.path is not None else "model.path"
        if role.load_balance_coef > 0 and starts_from == model_key:
            yield f"{name}.load_balance_coef = {role.load_balance_coef}: the model has no experts, set it to 0"


def _expert_faults(num_experts: object, parallel: ParallelConfig) -> Iterator[str]:
    if num_experts is None and parallel.expert * parallel.expert_tensor > 1:
        yield (
            f"parallel.expert = {parallel.expert}, expert_tensor = {parallel.expert_tensor}: the model has no experts, "
            "set both to 1"
        )
    if num_experts is not None and parallel.tensor > 1 and not parallel.sequence_parallel:
        yield (
            f"parallel.tensor = {parallel.tensor}: a mixture of experts needs parallel.sequence_parallel = true with "
            "it, because each tensor-parallel rank routes its own tokens"
        )


def _data_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    if config.data.chat_template_file is not None:
        fault = _file_fault(config.data.chat_template_file)
        if fault:
            yield f"data.chat_template_file = {config.data.chat_template_file} {fault}"
    if command == "evaluate_prm":
        yield from _prm_data_faults(config)
        return
    needed = {"train": "data.train", "evaluate": "data.evaluation", "sft": "sft.data"}[command]
    files = {
        "data.train": config.data.train,
        "data.evaluation": config.data.evaluation,
        "sft.data": config.sft.data,
    }
    if not files[needed] and not (command == "evaluate" and config.evaluation.benchmarks):
        yield f"{needed} is empty: name at least one jsonl, parquet or csv file"
    used = {needed, "data.evaluation"} if command == "train" else {needed}
    for key in sorted(used):
        for path in files[key]:
            fault = _file_fault(path)
            if fault:
                yield f"{key}: {path} {fault}"


def _prm_data_faults(config: PrimeConfig) -> Iterator[str]:
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
        fault = _file_fault(path)
        if fault:
            yield f"{where} {fault}"
    prm, reference = (role or config.model.path for role in (config.prm.path, config.reference.path))
    if prm.absolute() == reference.absolute():
        yield (
            f"prm.path and reference.path are both {prm} (model.path is the default of each): every score would be 0; "
            "name the PRM and what it started from"
        )


def _benchmark_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    if command not in ("train", "evaluate"):
        return
    for name, benchmark in config.evaluation.benchmarks.items():
        key = f"evaluation.benchmarks.{name}"
        fault = _file_fault(benchmark.path)
        if fault:
            yield f"{key}.path: {benchmark.path} {fault}"
        is_code = (benchmark.format or name) in CODE_BENCHMARKS
        if config.reward.verifier in (TEXT_VERIFIERS if is_code else ("code",)):
            yield (
                f"{key} asks for {'programs' if is_code else 'mathematical answers'}, which reward.verifier = "
                f"{config.reward.verifier!r} does not judge: 'auto' goes by what a problem asks for"
            )


def _file_fault(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return None if file.read(1) else "is empty"
    except FileNotFoundError:
        return f"does not exist (working directory: {Path.cwd()})"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _process_faults(config: PrimeConfig, arithmetic: BatchArithmetic, command: str) -> Iterator[str]:
    parallel = config.parallel
    if not arithmetic.data:
        yield (
            f"{arithmetic.num_processes} processes are not a multiple of "
            f"parallel.tensor * pipeline * context = {parallel.tensor} * {parallel.pipeline} * "
            f"{parallel.context} = {parallel.model_size}"
        )
    elif arithmetic.num_processes % parallel.min_processes:
        yield (
            f"{arithmetic.num_processes} processes are not a multiple of parallel.pipeline * expert * expert_tensor = "
            f"{parallel.pipeline} * {parallel.expert} * {parallel.expert_tensor}"
        )
    if command == "train":
        for role in arithmetic.roles:
            if role.responses_per_minibatch < arithmetic.data:
                yield (
                    f"{role.name}.num_minibatches = {role.num_minibatches} leaves "
                    f"{role.responses_per_minibatch} responses a minibatch for {arithmetic.data} "
                    "data-parallel ranks: lower it, or raise the batch"
                )
    if command == "sft" and config.sft.batch_size < arithmetic.data:
        yield f"sft.batch_size = {config.sft.batch_size} is less than {arithmetic.data} data-parallel ranks"


def _run_dir_faults(run_dir: Path) -> Iterator[str]:
    """The folder, or the nearest one above it that exists, must take new files; nothing is created here."""
    existing = run_dir.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        yield f"run_dir = {run_dir}: {existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"run_dir = {run_dir}: {existing} is not writable"


def _engine_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    settings = config.rollout.sglang
    if command in ("sft", "evaluate_prm") or config.rollout.engine != "sglang" or settings.urls:
        return
    if not settings.python.is_file():
        yield (
            f"rollout.sglang.python = {settings.python} does not exist: build the engine environment with `make "
            "sglang`, name its interpreter, or attach to servers by rollout.sglang.urls"
        )


def _output_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    output = sft_output(config)
    if command == "sft" and output.exists():
        yield f"{output} exists already: remove it, or set sft.output to another folder"
