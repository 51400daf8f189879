"""Convert data files of known layouts into the schema of Eurus-2-RL-Data, or into SFT demonstrations.

    python -m tools.convert_data train.jsonl --layout gsm8k --output gsm8k.parquet
    python -m tools.convert_data aime.csv --layout math --source aime24 --output aime24.jsonl
    python -m tools.convert_data rows.jsonl --prompt-field q --answer-field a --ability math --output rows.parquet
    python -m tools.convert_data train.jsonl --layout math --sft --response-field solution --output sft.jsonl

Rows are streamed, so memory does not grow with the files. The output appears complete or not at all. A row that does
not fit the layout is reported with its file and number, and ends the conversion; --on-bad-row skip leaves it out and
counts it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet

from megatron_prime.config.tables.data import DataConfig, LayoutName
from megatron_prime.data.bad_rows import ADVICE, BadRows
from megatron_prime.data.duplicates import DuplicateFinder
from megatron_prime.data.layouts import fitting_layout, layout
from megatron_prime.data.messages import Message
from megatron_prime.data.reading import prompt_text
from megatron_prime.data.rows import DataRow, MissingFieldError, read_rows
from megatron_prime.data.sft import response_text

MESSAGES = pyarrow.list_(pyarrow.struct([("content", pyarrow.string()), ("role", pyarrow.string())]))
RL_SCHEMA = pyarrow.schema(
    [
        ("data_source", pyarrow.string()),
        ("prompt", MESSAGES),
        ("ability", pyarrow.string()),
        ("reward_model", pyarrow.struct([("style", pyarrow.string()), ("ground_truth", pyarrow.string())])),
        ("extra_info", pyarrow.struct([("split", pyarrow.string()), ("index", pyarrow.int64())])),
    ]
)
SFT_SCHEMA = pyarrow.schema(
    [("data_source", pyarrow.string()), ("prompt", MESSAGES), ("response", pyarrow.string())]
)
ROW_GROUP = 4096
"""Records per row group of a parquet file; so many are held in memory."""


class Converter:
    """Converts the rows of all inputs, and counts bad rows and duplicates.

    Args:
        options: what `parse` returns.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        config = DataConfig(
            prompt_field=options.prompt_field,
            answer_field=options.answer_field,
            source_field=options.source_field,
            ability_field=options.ability_field,
        )
        self._layout = layout(options.layout, config)
        self.bad_rows = BadRows(options.on_bad_row)
        self.duplicates = DuplicateFinder(options.dedup)
        self.num_written = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the converted rows of all inputs, in order."""
        for path in self._options.inputs:
            for row in read_rows(path, self.bad_rows.reject):
                try:
                    record = self._record(row)
                except ValueError as error:
                    self.bad_rows.reject(error, self._advice(row, error))
                    continue
                if record is not None:
                    self.num_written += 1
                    yield record

    def _advice(self, row: DataRow, error: ValueError) -> str:
        is_first = isinstance(error, MissingFieldError) and not self.num_written
        name = fitting_layout(row, needs_answer=not self._options.sft) if is_first else None
        return ADVICE if name in (None, self._options.layout) else f"--layout {name} fits this row"

    def _record(self, row: DataRow) -> dict[str, Any] | None:
        prompt = self._layout.prompt(row)
        options = self._options
        target = response_text(row, options.response_field) if options.sft else self._layout.answer(row)
        if self.duplicates.is_duplicate(prompt_text(prompt), target):
            return None
        source = options.source or self._layout.source(row) or row.path.stem
        for name, text in {"prompt": prompt_text(prompt), "source": source, "response": target}.items():
            row.check_text(name, text)
        record = {"data_source": source, "prompt": self._messages(prompt)}
        if options.sft:
            return record | {"response": target}
        ability = options.ability or self._layout.ability(row)
        if not ability:
            raise row.error("its ability (math, code, ...) is unknown: pass --ability or --ability-field")
        return record | {
            "ability": ability,
            "reward_model": {"style": "rule", "ground_truth": target},
            "extra_info": {"split": options.split, "index": self.num_written},
        }

    def _messages(self, prompt: str | list[Message]) -> list[Message]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self._options.instruction:
            last = messages[-1]
            content = f"{last['content']}\n\n{self._options.instruction}"
            messages = [*messages[:-1], last | {"content": content}]
        # The row's own system message takes precedence.
        if self._options.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._options.system_prompt}, *messages]
        return messages


def write(records: Iterator[dict[str, Any]], output: Path, schema: pyarrow.Schema) -> None:
    """Write jsonl or parquet, by the suffix of `output`, to a temporary file that is renamed at the end."""
    aside = output.with_name(f".{output.name}.partial")
    try:
        if output.suffix == ".parquet":
            _write_parquet(records, aside, schema)
        else:
            with aside.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)


def _write_parquet(records: Iterator[dict[str, Any]], path: Path, schema: pyarrow.Schema) -> None:
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, Any]] = []
        for record in records:
            batch.append(record)
            if len(batch) == ROW_GROUP:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch = []
        if batch:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with a usage error if options are invalid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="jsonl, parquet or csv")
    parser.add_argument("--output", type=Path, required=True, help=".parquet or .jsonl; must not exist")
    parser.add_argument("--layout", choices=get_args(LayoutName), default="columns")
    for field, default in (("prompt", "prompt"), ("answer", "answer"), ("source", None), ("ability", None)):
        parser.add_argument(
            f"--{field}-field",
            default=default,
            help="column of the columns layout; dots select nested fields",
        )
    parser.add_argument(
        "--source", help="data_source of all rows; default: the row's own, or the file's name"
    )
    parser.add_argument("--ability", help="ability of all rows; default: the one of the layout")
    parser.add_argument("--split", default="train", help="extra_info.split")
    parser.add_argument("--system-prompt", help="system message for prompts that have none")
    parser.add_argument("--instruction", help="text appended to the question")
    parser.add_argument("--sft", action="store_true", help="write prompt and response instead")
    parser.add_argument("--response-field", default="response", help="column of the response, with --sft")
    parser.add_argument("--on-bad-row", choices=("stop", "skip"), default="stop")
    parser.add_argument("--dedup", choices=("none", "exact", "normalized"), default="none")
    options = parser.parse_args(arguments)
    if options.output.suffix not in (".parquet", ".jsonl"):
        parser.error(f"--output {options.output}: use .parquet or .jsonl")
    if options.output.exists():
        parser.error(f"--output {options.output} exists already: remove it, or choose another file")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parse(arguments)
    converter = Converter(options)
    try:
        write(converter.records(), options.output, SFT_SCHEMA if options.sft else RL_SCHEMA)
    except ValueError as error:
        # The message names the configuration's option; here it is a command-line option.
        print(f"convert_data: {str(error).replace('data.on_bad_row = ', '--on-bad-row ')}", file=sys.stderr)
        return 1
    for line in (*converter.duplicates.log_lines(), *converter.bad_rows.log_lines()):
        print(line)
    print(f"{converter.num_written} rows written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
