"""Check the models of a run: their folders, their shapes against the layout, and settings that need experts."""

from collections.abc import Iterator
from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.rope import YarnScaling
from megatron_prime.hf.shape import ModelShape, read_shape
from megatron_prime.hf.training_limits import ModelSplit, fp8_faults, recompute_faults, training_faults
from megatron_prime.hf.weight_files import check_weights, megatron_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any one of these makes a tokenizer that transformers can read."""


def model_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each fault of the checkpoints that a command loads."""
    vocab_sizes: dict[str, int] = {}
    for key, folder in _folders(config, command).items():
        where = f"{key} = {folder}"
        yield from folder_faults(key, folder)
        try:
            shape = read_shape(folder)
        except ModelFolderError:
            continue  # already reported by folder_faults
        vocab_sizes[key] = shape.vocab_size
        yield from (f"{where}: {fault}" for fault in _shape_faults(config, shape))
        for role in (role for role, path in config.model_paths(command).items() if path == folder):
            yield from (f"{where}: {fault}" for fault in _role_faults(config, command, role, shape))
    if len(set(vocab_sizes.values())) > 1:
        sizes = ", ".join(f"{key}: {size}" for key, size in vocab_sizes.items())
        yield f"policy, PRM and reference need one vocabulary, but vocab_size differs ({sizes})"
    model = config.model.path
    yield from _engine_faults(config, command)
    if model.is_dir() and not any((model / name).is_file() for name in TOKENIZER_FILES):
        yield f"model.path = {model}: no tokenizer ({', '.join(TOKENIZER_FILES)})"


def _engine_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield why an engine that reads the weights from disk, and not from the trainer, cannot."""
    reads_disk = command in ("evaluate", "rollout") or (
        command == "train"
        and config.rollout.starts_servers
        and config.rollout.sglang.weight_transport == "disk"
    )
    served = {"model.path": config.model.path} if reads_disk else {}
    if command == "serve_prm" and not config.rollout.sglang.urls:
        served = _folders(config, command)
        served.pop("model.path", None)
        if config.reference.path is None:
            served["model.path"] = config.model.path
    for key, path in served.items():
        try:
            weights = megatron_weights(path)
        except ModelFolderError:
            continue  # already reported by folder_faults
        if weights is not None:
            yield (
                f"{key} = {path}: its weights are in Megatron's format, but the engine reads safetensors: convert them "
                "with megatron-prime megatron-to-hf"
            )


def folder_faults(key: str, folder: Path) -> Iterator[str]:
    """Yield why a model folder, the value of the option `key`, cannot be read."""
    shape = None
    try:
        shape = read_shape(folder)
    except ModelFolderError as error:
        yield f"{key} = {folder}: {error.reason}"
    if folder.is_dir():
        try:
            check_weights(folder, shape)
        except ModelFolderError as error:
            yield f"{key} = {folder}: {error.reason}"


def _folders(config: PrimeConfig, command: str) -> dict[str, Path]:
    """Return the folder of each distinct checkpoint that a command reads, by the first option that names it."""
    # The tokenizer comes from model.path, whatever models the command loads.
    used = {config.model.path, *config.model_paths(command).values()}
    options = {
        "model.path": config.model.path,
        "prm.path": config.prm.path,
        "reference.path": config.reference.path,
    }
    first_key = {path: key for key, path in reversed(options.items()) if path in used}
    return {key: path for path, key in reversed(first_key.items()) if path is not None}


def _shape_faults(config: PrimeConfig, shape: ModelShape) -> Iterator[str]:
    split = ModelSplit.of(config.parallel)
    yield from training_faults(shape, split)
    yield from recompute_faults(shape, split, config.memory.recompute)
    longest, reserved = config.rollout.max_sequence_tokens, config.rollout.reserved_positions
    if longest > shape.max_position_embeddings - reserved:
        yield (
            f"rollout.max_prompt_tokens + max_response_tokens = {longest} exceeds "
            f"max_position_embeddings = {shape.max_position_embeddings}"
            + (f" less the {reserved} that SGLang reserves" if reserved else "")
            + _longer_positions(shape)
        )


def _longer_positions(shape: ModelShape) -> str:
    """Return how the limit can be raised, if the model's positions are scaled for more."""
    scaling = shape.rope_scaling
    if not isinstance(scaling, YarnScaling):
        return ""
    positions = int(scaling.factor * scaling.original_max_position_embeddings)
    if positions <= shape.max_position_embeddings:
        return ""
    original = scaling.original_max_position_embeddings
    return (
        f"; its YaRN scaling reaches {positions}: set max_position_embeddings to that in its config.json, and "
        f"original_max_position_embeddings = {original} beside the scaling"
    )


def _role_faults(config: PrimeConfig, command: str, role: str, shape: ModelShape) -> Iterator[str]:
    """Yield the faults of a role's own settings with the model that it starts from."""
    yield from fp8_faults(shape, config.fp8, role)
    if shape.is_moe:
        return
    if command == "train" and role == "policy" and config.rollout.replays_routing:
        yield "rollout.sglang.routing_replay = true: the model has no experts, set it to false"
    trained = {
        ("train", "policy"): ("policy", config.policy),
        ("train", "prm"): ("prm", config.prm),
        ("sft", "policy"): ("sft", config.sft),
        ("train_prm", "prm"): ("prm_training", config.prm_training),
    }
    table, settings = trained.get((command, role), ("", None))
    if settings is not None and settings.load_balance_coef > 0:
        yield f"{table}.load_balance_coef = {settings.load_balance_coef}: the model has no experts, set it to 0"
