"""The [data] table: files of prompts and how to read them."""

from datetime import date as Date
from typing import Literal

from pydantic import Field

from megatron_prime.config.section import PositiveFloat, Section, UserPath

LayoutName = Literal[
    "columns", "eurus", "verl", "sharegpt", "gsm8k", "math", "olympiadbench", "leetcode", "livecodebench"
]
"""Known formats of the rows of a file; see data/layouts.py."""


class DataConfig(Section):
    """The prompts to train and evaluate on."""

    train: tuple[UserPath, ...] = ()
    """jsonl, parquet or csv files with training prompts; none by default."""
    evaluation: tuple[UserPath, ...] = ()
    """jsonl, parquet or csv files with held-out prompts; none by default."""
    prompt_field: str = "prompt"
    """Column with the prompt, a string or a list of chat messages; a dot in the name descends into an object."""
    answer_field: str = "answer"
    """Column with the ground truth; a dot in the name descends into an object."""
    source_field: str | None = None
    """Column with the name of a row's data source, for metrics and reward.routes; by default there is none."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """auto applies the tokenizer's chat template to lists of messages, and to the bare questions of layouts other than
    columns."""
    shuffle: bool = True
    """Visit the prompts of each epoch in a seeded random order; false visits them in file order."""
    ability_field: str | None = None
    """Column with the kind of task of a row, such as math or code, for reward.routes; by default there is none."""
    tools_field: str | None = None
    """Column with the schemas of the tools of a row, a list or its JSON text, which the chat template writes into the
    prompt; by default there is none."""
    layout: LayoutName = "columns"
    """Format of the rows: columns uses the *_field options; the other formats have fixed columns."""
    system_prompt: str | None = None
    """System message to put before prompts that have none; it turns text prompts into chat messages. Off by default."""
    instruction: str | None = None
    """Text to append to the question, such as how to give the answer; "" also removes that of the benchmarks."""
    chat_template_file: UserPath | None = None
    """Jinja file to use instead of the tokenizer's own chat template."""
    date: Date | None = None
    """Day that chat templates write as today's, such as 2026-01-31; default the day of the run's first start."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Reaction to a row that cannot be read: stop ends the run; skip leaves it out, counts and logs it."""
    dedup: Literal["none", "exact", "normalized"] = "none"
    """Leave out repeated prompts: exact compares the text; normalized ignores case, white space and Unicode forms."""
    weights: dict[str, PositiveFloat] = Field(default={})
    """Sampling weights by data source or file, such as {numina = 3, "code.parquet" = 1}; by default every prompt is
    visited once per epoch."""
