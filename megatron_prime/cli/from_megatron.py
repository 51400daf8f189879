"""`megatron-prime from-megatron`: write a configuration from the arguments of an existing Megatron-LM setup."""

import json
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prime.cli.arguments import Options
from megatron_prime.cli.megatron_script import read_arguments, read_file
from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.megatron.mapping import MappedArgument, MappingKind, map_arguments
from megatron_prime.hf.config_json import read_config_json
from megatron_prime.observability.durable import replace_file

DEFAULT_RUN_DIR = "runs/prime"


def from_megatron(options: Options) -> list[str]:
    """Write options.output, and return a report of each argument as lines.

    Raises ConfigError, with nothing written, when an argument is unknown or contradicts the model, when one is refused
    and options.skip_refused is not set, or when the settings are not a valid configuration.
    """
    source = "--args" if options.args is not None else str(options.args_file)
    try:
        found = read_arguments(options.args) if options.args is not None else read_file(options.args_file)
    except ValueError as error:
        raise ConfigError(source, str(error).splitlines()) from None
    if not found:
        raise ConfigError(source, ["holds no argument that begins with --"])
    mapped = map_arguments(found, _read_model(options.model))
    faults = [
        f"--{argument.name}: {argument.text}" for argument in mapped if argument.kind is MappingKind.FAULT
    ]
    if not options.skip_refused:
        refused = (argument for argument in mapped if argument.kind is MappingKind.REFUSED)
        faults += [
            f"--{argument.name} is refused: {argument.text} (--skip-refused leaves it out)"
            for argument in refused
        ]
    if faults:
        raise ConfigError(source, faults)
    settings: dict[str, Any] = {"run_dir": DEFAULT_RUN_DIR, "model.path": str(options.model)}
    for argument in mapped:
        settings |= argument.settings if argument.kind in (MappingKind.MAPPED, MappingKind.PASSED) else {}
    settings |= dict(map(_override, options.overrides))
    text = toml_text(settings)
    _check(text, options.output)
    replace_file(options.output, text)
    return [
        *report(mapped),
        f"wrote {options.output}; add data.train, then: megatron-prime check {options.output}",
    ]


def report(mapped: list[MappedArgument]) -> list[str]:
    """Return one line per argument, grouped by the kind of result."""
    lines = []
    for kind in MappingKind:
        of_kind = [argument for argument in mapped if argument.kind is kind]
        if of_kind:
            width = max(len(argument.name) for argument in of_kind)
            lines.append(f"{kind.value} ({len(of_kind)})")
            lines += [f"  --{argument.name:<{width}}  {argument.text}" for argument in of_kind]
    return lines


def toml_text(settings: Mapping[str, Any]) -> str:
    """Return dotted keys and values as the text of a TOML file, tables in the order of their first key."""
    tables: dict[str, list[str]] = {"": []}
    for key, value in settings.items():
        table, _, name = key.rpartition(".")
        # JSON strings, numbers, booleans and lists of them are valid TOML.
        tables.setdefault(table, []).append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    parts = [
        "\n".join([f"[{table}]", *lines] if table else lines) for table, lines in tables.items() if lines
    ]
    return "\n\n".join(parts) + "\n"


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError("command line", [f"{text!r} is not of the form section.key=value"])
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _read_model(folder: Path) -> dict[str, Any]:
    try:
        return read_config_json(folder)
    except ValueError as error:
        raise ConfigError("--model", [str(error)]) from None


def _check(text: str, output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "draft.toml")
        draft.write_text(text, encoding="utf-8")
        try:
            load_config(draft)
        except ConfigError as error:
            raise ConfigError(str(output), error.faults) from None
