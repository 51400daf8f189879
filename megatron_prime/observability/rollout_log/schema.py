"""The columns of a rollout log, and the description that its files carry as metadata.

docs/rollouts.md shows the same table to users; a test compares the two.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow

SCHEMA_VERSION = 1
"""A file with another version is refused. A new column that readers may ignore needs no new version."""
METADATA_KEY = b"megatron_prime.rollout_log"
KINDS = ("train", "rollout", "eval")
_FILE_NAME = re.compile(r"step-(\d{8,})\.parquet")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the log."""

    name: str
    type: pyarrow.DataType
    text: str
    """The meaning, for users."""
    is_optional: bool = False
    """Whether the value may be null: it was not computed for the response."""
    is_later: bool = False
    """Whether files of earlier versions have no such column; it then reads as null."""


def _per_token(kind: pyarrow.DataType) -> pyarrow.DataType:
    return pyarrow.list_(kind)


_FLOATS = _per_token(pyarrow.float32())
_INTEGERS = _per_token(pyarrow.int32())

COLUMNS: tuple[Column, ...] = (
    Column("group", pyarrow.int32(), "Number of the group in the file, from 0; its rows stand together."),
    Column("sample", pyarrow.int32(), "Number of the response in its group, from 0."),
    Column("prompt_index", pyarrow.int64(), "Row of the prompt in the data set, over all its files."),
    Column("source", pyarrow.string(), "Data source of the prompt."),
    Column("ability", pyarrow.string(), "Kind of problem as named in the data."),
    Column("ground_truth", pyarrow.string(), "Answer that the verifier compared with."),
    Column("prompt", pyarrow.string(), "Prompt with the special tokens of its chat template."),
    Column("prompt_token_ids", _INTEGERS, "Tokens of the prompt."),
    Column(
        "response",
        pyarrow.string(),
        "Response without special tokens, with the replies of an environment between its turns.",
    ),
    Column("response_token_ids", _INTEGERS, "Tokens of the response, with the end-of-sequence token."),
    Column(
        "token_ends",
        _INTEGERS,
        "End of each token's text, as an offset into `response` in Unicode code points; a token that adds no complete "
        "character repeats the end before it.",
    ),
    Column(
        "step_ends",
        _INTEGERS,
        "Number of tokens up to the end of each reasoning step; the last is the length.",
    ),
    Column(
        "policy_mask",
        _per_token(pyarrow.bool_()),
        "Whether the policy wrote each token, and not an environment; null if it wrote all.",
        True,
        True,
    ),
    Column(
        "turn_ends",
        _INTEGERS,
        "Number of tokens up to the end of each turn, with the reply to it; null without an environment.",
        True,
        True,
    ),
    Column(
        "turn_rewards",
        _FLOATS,
        "The environment's reward for each turn, besides the outcome; null without an environment.",
        True,
        True,
    ),
    Column(
        "mask",
        _per_token(pyarrow.bool_()),
        "Whether each token entered the policy's loss; null outside the batch.",
        True,
    ),
    Column(
        "outcome_reward", pyarrow.float32(), "Verified outcome in [0, 1]; null after a verifier error.", True
    ),
    Column("reason", pyarrow.string(), "The verifier's reason, or its error; may be empty."),
    Column("finish_reason", pyarrow.string(), "stop, length or abort."),
    Column(
        "policy_version",
        pyarrow.int64(),
        "Weight syncs before the weights that sampled the response, or its first token.",
    ),
    Column(
        "version_ends",
        _INTEGERS,
        "Number of tokens up to the end of each part that one policy version sampled; null if one sampled all.",
        True,
        True,
    ),
    Column(
        "versions",
        _per_token(pyarrow.int64()),
        "Policy version of each of these parts; null if one sampled all.",
        True,
        True,
    ),
    Column(
        "filter",
        pyarrow.string(),
        "kept (in the batch), trimmed (passed, but not in the batch), or dropped_... with the reason.",
        True,
    ),
    Column("rollout_logprobs", _FLOATS, "Log-prob of each token as the engine reported it, in nats."),
    Column("policy_logprobs", _FLOATS, "Log-prob under the policy before this step's update, in nats.", True),
    Column(
        "prm_logprobs",
        _FLOATS,
        "Log-prob under the PRM that gave the process rewards, in nats; of a critic, the logit of its value before the "
        "token.",
        True,
    ),
    Column("ref_logprobs", _FLOATS, "Log-prob under the reference, in nats.", True),
    Column(
        "process_rewards",
        _FLOATS,
        "Process reward: beta times the log-ratio of PRM and reference; of a critic, the change of its value.",
        True,
    ),
    Column("advantages", _FLOATS, "Advantage that the policy was trained on.", True),
    Column(
        "entropy",
        _FLOATS,
        "Entropy of the policy's next-token distribution before the update, in nats.",
        True,
    ),
)
"""All columns of a file, in order."""

COLUMN_NAMES = tuple(column.name for column in COLUMNS)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """The description of a file as a whole, stored as JSON in its metadata."""

    step: int
    """The step, numbered as in metrics.jsonl: the first one of a run is 1. In an evaluation, the steps before it."""
    kind: str = "train"
    """One of KINDS: the command that wrote the file."""
    policy_version: int = 0
    """Version of the weights that sampled; the oldest, if there are several."""
    beta: float | None = None
    """Coefficient of the process rewards; None without a PRM."""
    attempt: int = 0
    """Attempt of the run that wrote the file."""
    num_groups_sampled: int = 0
    """Number of groups that the step sampled; the file holds all of them or a part."""
    num_groups: int = 0
    """Number of groups in the file."""
    name: str = ""
    """Name of the prompt set, in an evaluation."""
    top_p: float = 1.0
    """Probability mass of the nucleus from which tokens were sampled."""
    model: Mapping[str, str] | None = None
    """Hashes of the model's architecture, tokenizer and weights at the start of the run, as in provenance.json."""

    def encode(self) -> bytes:
        """Return the JSON text of the metadata."""
        return json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}, allow_nan=False).encode()

    @staticmethod
    def decode(data: bytes) -> "FileInfo":
        """Return the description that `encode` has written.

        Raises:
            ValueError: it has another schema version, or is no description.
        """
        try:
            values: Any = json.loads(data)
            version = values.pop("schema")
            known = {field.name for field in fields(FileInfo)}
            info = FileInfo(**{name: value for name, value in values.items() if name in known})
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError("its description is damaged") from error
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"it has version {version} of the format, and this megatron_prime reads version {SCHEMA_VERSION}: "
                "read it with the version that wrote it"
            )
        if type(info.step) is not int or info.kind not in KINDS:
            raise ValueError("its description is damaged")
        return info


def arrow_schema(info: FileInfo) -> pyarrow.Schema:
    """Return the schema of a file with its description."""
    return pyarrow.schema(
        [pyarrow.field(column.name, column.type, column.is_optional) for column in COLUMNS],
        {METADATA_KEY: info.encode()},
    )


def step_path(folder: Path, step: int) -> Path:
    """Return the file of a step."""
    return folder / f"step-{step:08d}.parquet"


def step_of(path: Path) -> int | None:
    """Return the step of a file by its name; None for any other file."""
    match = _FILE_NAME.fullmatch(path.name)
    return None if match is None else int(match[1])
