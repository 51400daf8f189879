"""`megatron-prime from-megatron`: a configuration from the arguments of an existing Megatron-LM set-up."""

import argparse
import json
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prime.cli.megatron_script import read_arguments, read_file
from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.megatron.mapping import Kind, Verdict, judge
from megatron_prime.hf.config_json import read_config_json
from megatron_prime.observability.durable import replace_file

DEFAULT_RUN_DIR = "runs/prime"


def from_megatron(options: argparse.Namespace) -> list[str]:
    """Write options.output, and return the verdict on each argument as lines.

    Raises ConfigError, with nothing written, when an argument is unknown or contradicts the model, when one is refused
    and options.skip_refused is not set, or when the settings do not make a sound configuration.
    """
    source = "--args" if options.args is not None else str(options.args_file)
    try:
        found = read_arguments(options.args) if options.args is not None else read_file(options.args_file)
    except ValueError as error:
        raise ConfigError(source, str(error).splitlines()) from None
    if not found:
        raise ConfigError(source, ["holds no argument that begins with --"])
    verdicts = judge(found, _read_model(options.model))
    faults = [f"--{verdict.argument}: {verdict.text}" for verdict in verdicts if verdict.kind is Kind.FAULT]
    if not options.skip_refused:
        refused = (verdict for verdict in verdicts if verdict.kind is Kind.REFUSED)
        faults += [
            f"--{verdict.argument} is refused: {verdict.text} (--skip-refused leaves it out)"
            for verdict in refused
        ]
    if faults:
        raise ConfigError(source, faults)
    settings: dict[str, Any] = {"run_dir": DEFAULT_RUN_DIR, "model.path": str(options.model)}
    for verdict in verdicts:
        settings |= verdict.settings if verdict.kind in (Kind.MAPPED, Kind.PASSED) else {}
    settings |= dict(map(_override, options.overrides))
    text = toml_text(settings)
    _check(text, options.output)
    replace_file(options.output, text)
    return [
        *report(verdicts),
        f"wrote {options.output}; add data.train, then: megatron-prime check {options.output}",
    ]


def report(verdicts: list[Verdict]) -> list[str]:
    """One line an argument, by what becomes of it."""
    lines = []
    for kind in Kind:
        mine = [verdict for verdict in verdicts if verdict.kind is kind]
        if mine:
            width = max(len(verdict.argument) for verdict in mine)
            lines.append(f"{kind.value} ({len(mine)})")
            lines += [f"  --{verdict.argument:<{width}}  {verdict.text}" for verdict in mine]
    return lines


def toml_text(settings: Mapping[str, Any]) -> str:
    """Dotted keys as a TOML file, tables in the order of their first key."""
    tables: dict[str, list[str]] = {"": []}
    for key, value in settings.items():
        table, _, name = key.rpartition(".")
        # A JSON string, number, truth value or list of them is TOML too.
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
