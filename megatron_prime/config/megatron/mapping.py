"""Map each Megatron-LM argument of an existing setup to an option of ours, to a passed-through field, or to a reason.

Every argument is reported once; a name that neither Megatron-LM nor megatron-core has is a fault. Imports no torch.
"""

import ast
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from megatron_prime.config.megatron.arguments import (
    CONVERTED,
    IMPLIED,
    LEFT_OUT,
    MAPPED,
    MODEL,
    MODEL_FLAGS,
    REFUSED,
    RENAMED,
)
from megatron_prime.config.megatron.fields import accepts, in_words, is_settable, megatron_fields
from megatron_prime.config.megatron.owned import (
    ADAMW,
    BY_PACKING,
    FP8,
    FP16,
    NO_CAPACITY,
    NO_FP4,
    NO_FSDP,
    OWNED,
)
from megatron_prime.config.megatron.owned import (
    MODEL as MODEL_REASON,
)

Arguments = Mapping[str, Sequence[str]]
"""Argument name without dashes -> its values; an empty sequence for a flag."""

CHANGES_RESULTS = (ADAMW, BY_PACKING, FP16, MODEL_REASON, NO_CAPACITY, FP8, NO_FP4, NO_FSDP)
"""Reasons to refuse an argument: a run that ignored it would compute something else."""

LOADS = ("load", "pretrained-checkpoint")
"""Arguments that name a checkpoint to start from."""
MAX_PROMPT_TOKENS = 1024
"""Share of --seq-length that prompts get, or a quarter of it where that is less; responses get the rest."""
SCHEDULES = ("constant", "linear", "cosine")


class MappingKind(Enum):
    """The kinds of result for an argument, with the title under which the report lists them."""

    MAPPED = "mapped"
    PASSED = "passed through"
    MODEL = "from config.json"
    IMPLIED = "always so"
    LEFT_OUT = "left out"
    REFUSED = "refused"
    FAULT = "fault"


@dataclass(frozen=True)
class MappedArgument:
    """The result for one argument."""

    name: str
    """The argument without dashes."""
    kind: MappingKind
    text: str
    """The setting that it became, or the reason why it did not."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of the configuration by dotted key."""


def map_arguments(arguments: Arguments, model: Mapping[str, Any]) -> list[MappedArgument]:
    """Return a result for each argument, in their order.

    Args:
        arguments: The arguments of the existing setup.
        model: The content of the model's config.json, with which arguments that describe the model are compared.
    """
    return [_map_argument(name, list(values), arguments, model) for name, values in arguments.items()]


def is_known(name: str) -> bool:
    """Return whether Megatron-LM or megatron-core has an argument of this name."""
    return name in _named() or _field_of(name) is not None


def _map_argument(
    name: str, values: list[str], arguments: Arguments, model: Mapping[str, Any]
) -> MappedArgument:
    # An argument that is left out or refused needs no value, so a shell variable in it is no problem.
    if any("$" in value or "`" in value for value in values) and name not in {*LEFT_OUT, *REFUSED, *LOADS}:
        text = f"{_joined(values)}: the value is known only when the script runs; give the finished line by --args"
        return MappedArgument(name, MappingKind.FAULT, text)
    try:
        if name in MAPPED:
            return _mapped(name, values)
        if name in CONVERTED:
            return _converted(name, values, arguments, model)
        if name in MODEL or name in MODEL_FLAGS:
            return _of_the_model(name, values, model)
    except ValueError as error:
        return MappedArgument(name, MappingKind.FAULT, str(error))
    if name in IMPLIED:
        return _implied(name, values)
    if name in REFUSED:
        return MappedArgument(name, MappingKind.REFUSED, REFUSED[name])
    if name in LEFT_OUT:
        return MappedArgument(name, MappingKind.LEFT_OUT, LEFT_OUT[name])
    if name in LOADS:
        text = (
            f"convert its weights: megatron-prime megatron-to-hf {_joined(values)}/iter_N MODEL --hf HF_MODEL"
        )
        return MappedArgument(name, MappingKind.LEFT_OUT, text)
    return _passed(name, values)


def _mapped(name: str, values: list[str]) -> MappedArgument:
    key = MAPPED[name]
    value: Any = [*values] if key.endswith("modules") else _scalar(values)
    if name == "lr-decay-style" and value not in SCHEDULES:
        text = f"{value!r} is not one of the schedules here: {', '.join(SCHEDULES)}"
        return MappedArgument(name, MappingKind.REFUSED, text)
    return _setting(name, {key: value})


def _setting(name: str, settings: Mapping[str, Any], why: str = "") -> MappedArgument:
    shown = ", ".join(f"{key} = {value!r}" for key, value in settings.items())
    return MappedArgument(name, MappingKind.MAPPED, shown + (f" ({why})" if why else ""), settings)


def _converted(
    name: str, values: list[str], arguments: Arguments, model: Mapping[str, Any]
) -> MappedArgument:
    if name == "bf16":
        return _setting(name, {"platform.dtype": "bf16"})
    if name == "recompute-activations":
        settings = {"memory.recompute.granularity": "selective", "memory.recompute.modules": ["core_attn"]}
        return _setting(name, settings)
    if name in ("fp8-format", "fp8-recipe"):
        return _fp8(name, _joined(values), arguments)
    if name == "distributed-timeout-minutes":
        return _setting(name, {"platform.timeout_s": 60.0 * _number(values)})
    if name == "seq-length":
        length = _whole(values)
        # Megatron-LM has one length for prompt and response together, and PRIME one for each.
        prompt = min(MAX_PROMPT_TOKENS, length // 4)
        settings = {"rollout.max_prompt_tokens": prompt, "rollout.max_response_tokens": length - prompt}
        return _setting(name, settings, f"prompt and response have {length} together")
    if name == "micro-batch-size":
        if "seq-length" not in arguments:
            return MappedArgument(name, MappingKind.LEFT_OUT, LEFT_OUT["rampup-batch-size"])
        tokens = _whole(values) * _whole(arguments["seq-length"])
        return _setting(name, {"trainer.max_tokens_per_microbatch": tokens}, "times seq-length, packed")
    if name == "global-batch-size":
        return _global_batch(name, _whole(values), arguments)
    per_stage = _whole(values)
    layers = model.get("num_hidden_layers")
    stages = _whole(arguments.get("pipeline-model-parallel-size", ["1"]))
    if not isinstance(layers, int) or layers % (per_stage * stages):
        raise ValueError(
            f"{per_stage} layers per virtual stage and {stages} stages do not divide {layers} layers"
        )
    return _setting(name, {"parallel.virtual_pipeline": layers // (per_stage * stages)})


def _fp8(name: str, value: str, arguments: Arguments) -> MappedArgument:
    if name == "fp8-recipe":
        text = "fp8.policy" if "fp8-format" in arguments else "no FP8 without --fp8-format"
        return MappedArgument(
            name, MappingKind.MAPPED if "fp8-format" in arguments else MappingKind.LEFT_OUT, text
        )
    # Megatron-LM's own default recipe is delayed scaling.
    recipe = _joined(arguments.get("fp8-recipe", ["delayed"]))
    return _setting(name, {"fp8.format": value, "fp8.policy": recipe}, "fp8.prm is yours to set: not delayed")


def _global_batch(name: str, size: int, arguments: Arguments) -> MappedArgument:
    # 4 is the default of rollout.group_size.
    group = _whole(arguments.get("grpo-group-size", ["4"]))
    if "grpo-prompts-per-step" in arguments:
        prompts = _whole(arguments["grpo-prompts-per-step"])
        if prompts * group % size:
            raise ValueError(
                f"{size} responses per update do not divide {prompts} prompts x {group} responses"
            )
        updates = prompts * group // size
        settings = {"policy.num_minibatches": updates}
        return _setting(name, settings, f"{prompts} x {group} responses per step, {size} per update")
    if size % group:
        raise ValueError(f"{size} responses are no multiple of rollout.group_size = {group}")
    return _setting(
        name, {"trainer.prompts_per_step": size // group}, f"of rollout.group_size = {group} responses each"
    )


def _of_the_model(name: str, values: list[str], model: Mapping[str, Any]) -> MappedArgument:
    if name in MODEL_FLAGS:
        key, meanings = MODEL_FLAGS[name]
        is_same = key in model if meanings is None else model.get(key) in meanings
        if not is_same and (key in model or meanings is None):
            raise ValueError(f"config.json has {key} = {model.get(key)!r}: it is another model")
        return MappedArgument(name, MappingKind.MODEL, f"{key} = {model.get(key)!r}")
    keys = [key for key in MODEL[name].split() if key in model]
    if not keys:
        return MappedArgument(
            name, MappingKind.MODEL, f"config.json has no {MODEL[name].split()[0]}: not compared"
        )
    (key, value), given = (keys[0], model[keys[0]]), _number(values)
    if not isinstance(value, int | float) or not math.isclose(given, value, rel_tol=1e-9):
        raise ValueError(f"{_joined(values)}, but config.json has {key} = {value!r}: it is another model")
    return MappedArgument(name, MappingKind.MODEL, f"{key} = {value!r}")


def _implied(name: str, values: list[str]) -> MappedArgument:
    allowed, given = IMPLIED[name].split(), _joined(values)
    is_same = not allowed or any(given == text or _same_number(given, text) for text in allowed)
    if is_same:
        return MappedArgument(
            name, MappingKind.IMPLIED, "it is always so here" if not values else f"it is always {given} here"
        )
    return MappedArgument(name, MappingKind.REFUSED, f"{given!r}: it is always {' or '.join(allowed)} here")


def _passed(name: str, values: list[str]) -> MappedArgument:
    """Return the result for an argument that is a field of megatron-core, or that is unknown."""
    found = _field_of(name)
    if found is None:
        near = difflib.get_close_matches(name, list(_all_names()), n=1, cutoff=0.7)
        hint = f"; did you mean --{near[0]}?" if near else ""
        return MappedArgument(name, MappingKind.FAULT, f"Megatron-LM has no such argument{hint}")
    table, field_name, is_off = found
    if field_name in OWNED[table]:
        reason = OWNED[table][field_name]
        kind = MappingKind.REFUSED if reason in CHANGES_RESULTS else MappingKind.LEFT_OUT
        return MappedArgument(name, kind, reason)
    annotation = megatron_fields(table)[field_name]
    if not is_settable(annotation):
        return MappedArgument(
            name, MappingKind.REFUSED, f"it takes {in_words(annotation)}, which has no TOML value"
        )
    value = False if is_off and not values else _typed(annotation, values)
    if not accepts(annotation, value):
        return MappedArgument(name, MappingKind.FAULT, f"{' '.join(values)}: must be {in_words(annotation)}")
    key = f"megatron.{table}.{field_name}"
    return MappedArgument(name, MappingKind.PASSED, f"{key} = {value!r}", {key: value})


def _field_of(name: str) -> tuple[str, str, bool] | None:
    """Return the table and name of an argument's field in megatron-core, and whether the argument switches it off."""
    # These two names switch a field off without beginning with a negation.
    is_off = name.startswith(("no-", "disable-")) or name in ("muon-no-split-qkv", "grad-reduce-in-bf16")
    if name in RENAMED:
        return (*RENAMED[name], is_off)
    for text, off in ((name, False), (name.removeprefix("no-").removeprefix("disable-"), True)):
        for table in OWNED:
            for field_name in megatron_fields(table):
                # Some fields contain capitals, such as barrier_with_L1_time, where the argument has none.
                if field_name.lower() == text.replace("-", "_").lower():
                    return table, field_name, off
    return None


def _named() -> frozenset[str]:
    tables = (MAPPED, CONVERTED, MODEL, MODEL_FLAGS, IMPLIED, RENAMED, LEFT_OUT, REFUSED, LOADS)
    return frozenset(name for table in tables for name in table)


def _all_names() -> Iterator[str]:
    yield from sorted(_named())
    for table in OWNED:
        yield from (name.replace("_", "-") for name in megatron_fields(table))


def _typed(annotation: ast.expr, values: list[str]) -> Any:  # noqa: ANN401 - what a field takes
    if not values:
        return True
    items = [_literal(value) for value in values]
    if len(items) == 1 and accepts(annotation, items[0]):
        return items[0]
    if len(items) == 1 and accepts(annotation, values[0]):
        return values[0]
    return items


def _literal(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _scalar(values: list[str]) -> bool | int | float | str:
    return _literal(_joined(values)) if values else True


def _joined(values: Sequence[str]) -> str:
    return " ".join(values)


def _number(values: Sequence[str]) -> float:
    try:
        return float(_joined(values))
    except ValueError:
        raise ValueError(f"takes one number, not {_joined(values)!r}") from None


def _whole(values: Sequence[str]) -> int:
    number = _number(values)
    if not number.is_integer() or number < 1:
        raise ValueError(f"takes a whole number from 1 on, not {_joined(values)!r}")
    return int(number)


def _same_number(left: str, right: str) -> bool:
    try:
        return float(left) == float(right)
    except ValueError:
        return False
