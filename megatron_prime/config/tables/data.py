"""[data]: files of prompts and how to read them."""

from typing import Literal

from pydantic import Field

from megatron_prime.config.section import PositiveFloat, Section, UserPath

LayoutName = Literal["columns", "eurus", "gsm8k", "math", "olympiadbench", "leetcode", "livecodebench"]
"""How the rows of a file say what the problem and its answer are; see data/layouts.py."""


class DataConfig(Section):
    """Prompts to train and evaluate on."""

    train: tuple[UserPath, ...] = ()
    """jsonl or parquet files with training prompts."""
    evaluation: tuple[UserPath, ...] = ()
    """jsonl or parquet files with held-out prompts."""
    prompt_field: str = "prompt"
    """Column with a string or a list of chat messages; dots descend."""
    answer_field: str = "answer"
    """Column with the ground truth; dots descend."""
    source_field: str | None = None
    """Column that names where a row comes from, for metrics."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """auto applies the tokenizer's template to lists of messages only."""
    shuffle: bool = True
    """Visit the prompts of each epoch in a seeded random order."""
    ability_field: str | None = None
    """Column that names what a row asks for, such as math or code; verifiers may go by it."""
    layout: LayoutName = "columns"
    """Where problem and answer stand in a row: columns goes by the *_field settings, the others know their columns."""
    system_prompt: str | None = None
    """System message put before prompts that have none; makes chat messages of text."""
    instruction: str | None = None
    """Text put after the question, such as how to give the answer; "" also takes that of the benchmarks away."""
    chat_template_file: UserPath | None = None
    """Jinja file used instead of the tokenizer's own chat template."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that does not fit stops the run, or is left out, counted and logged."""
    dedup: Literal["none", "exact", "normalized"] = "none"
    """Leave prompts out that came before: same text, or the same but for case, white space and Unicode forms."""
    weights: dict[str, PositiveFloat] = Field(default={})
    """Shares by data source or file, {numina = 3, "code.parquet" = 1}; empty visits every prompt once an epoch."""
