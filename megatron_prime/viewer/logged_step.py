"""One logged step as an index of its groups, and small files of texts and numbers that a page loads when needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from megatron_prime.observability.rollout_log import FileInfo, RolloutFile
from megatron_prime.observability.rollout_log.versions import VERSION_COLUMNS
from megatron_prime.viewer import encoding

QUANTITIES = (
    "process_rewards",
    "advantages",
    "policy_logprobs",
    "rollout_logprobs",
    "prm_logprobs",
    "ref_logprobs",
    "entropy",
)
"""Columns with one number per response token."""
_OF_THE_POLICY = ("advantages", "policy_logprobs", "rollout_logprobs", "entropy")
"""Quantities without a meaning on tokens that an environment wrote."""
TOKENS_PER_PART = 1 << 14
"""Number of response tokens after which the next group begins another part."""
QUANTILE = 0.98
"""The colour scale of a step ends at this quantile of the magnitudes, so that single extremes do not pale the rest."""
_ROW_COLUMNS = (
    *(
        "group",
        "sample",
        "prompt_index",
        "source",
        "ground_truth",
        "prompt",
        "response",
        "response_token_ids",
    ),
    *(
        "token_ends",
        "step_ends",
        "policy_mask",
        "turn_ends",
        "turn_rewards",
        "mask",
        "outcome_reward",
        "reason",
        "finish_reason",
        "policy_version",
        "filter",
        *VERSION_COLUMNS,
    ),
)


@dataclass(frozen=True)
class Part:
    """The texts and the numbers of a few whole groups."""

    first_row: int
    end_row: int
    texts: list[str]
    numbers: dict[str, Any]


class LoggedStep:
    """All responses of one file of the rollout log.

    Raises:
        ValueError: The file is damaged, has another schema version, or is no rollout log.
    """

    def __init__(self, path: Path) -> None:
        with RolloutFile(path) as file:
            self.info: FileInfo = file.info
            table = file.table([*_ROW_COLUMNS, *QUANTITIES]).combine_chunks()
        self._columns = {name: _whole(table.column(name)) for name in table.column_names}
        self.num_rows = table.num_rows
        self.has_turns: bool = self._columns["turn_ends"].null_count < self.num_rows
        """Whether an environment replied to a response."""
        self.ends = _offsets(self._columns["response_token_ids"])[1:]
        """Number of tokens up to the end of each row."""
        self.starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        self._values = {name: self._tokens(name) for name in QUANTITIES}
        is_reply = self._tokens("policy_mask") == 0
        for name in _OF_THE_POLICY:
            self._values[name][is_reply] = np.nan
        groups = self._columns["group"].to_numpy()
        first = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]])) if self.num_rows else []
        self.first_rows: list[int] = [int(row) for row in first]
        """First row of each group."""
        self._bounds = list(
            zip(self.first_rows, [*self.first_rows[1:], self.num_rows][: len(self.first_rows)], strict=True)
        )

    def _tokens(self, name: str) -> np.ndarray:
        """Return a number for each token of the file; NaN where it was not computed."""
        column = self._columns[name]
        values = np.full(int(self.ends[-1]) if self.num_rows else 0, np.nan, dtype=np.float32)
        lengths = np.asarray(
            column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64
        )
        present = np.repeat(lengths > 0, self.ends - self.starts)
        if (lengths[lengths > 0] != (self.ends - self.starts)[lengths > 0]).any():
            raise ValueError(
                f"the rollout log of step {self.info.step} has rows whose {name} are not one per token"
            )
        values[present] = column.flatten().to_numpy(zero_copy_only=False)
        return values

    def values(self, name: str) -> np.ndarray:
        """Return a quantity for each token of the file: a column, or `log_ratio` or `gap`."""
        if name == "log_ratio":
            return self._values["policy_logprobs"] - self._values["ref_logprobs"]
        if name == "gap":
            return self._values["policy_logprobs"] - self._values["rollout_logprobs"]
        return self._values[name]

    def index(self) -> dict[str, Any]:
        """Return everything that the page needs to list, sort and filter the groups."""
        lists = {
            name: self._columns[name].to_pylist() for name in ("outcome_reward", "reason", "finish_reason")
        }
        return {
            "step": self.info.step,
            "policy_versions": self._versions(),
            "beta": self.info.beta,
            "groups": list(self._groups()),
            "rows": {
                "reward": encoding.rounded(lists["outcome_reward"]),
                "reason": lists["reason"],
                "finish": lists["finish_reason"],
                "tokens": [int(length) for length in self.ends - self.starts],
                "credit": encoding.rounded(self._sums("process_rewards")),
            },
            "has_turns": self.has_turns,
            "scales": self.scales(),
            "parts": [[part[0], part[1]] for part in self._part_bounds()],
        }

    def _versions(self) -> list[int]:
        """Return the oldest and the newest policy version that sampled a token of the step."""
        found = [
            *self._columns["policy_version"].to_pylist(),
            *self._columns["versions"].flatten().to_pylist(),
        ]
        return [min([self.info.policy_version, *found]), max([self.info.policy_version, *found])]

    def _groups(self) -> Iterator[dict[str, Any]]:
        column = self._columns
        for first, end in self._bounds:
            yield {
                "first": first,
                "size": end - first,
                "prompt": column["prompt"][first].as_py(),
                "truth": column["ground_truth"][first].as_py(),
                "source": column["source"][first].as_py(),
                "problem": column["prompt_index"][first].as_py(),
                "filter": column["filter"][first].as_py(),
            }

    def _sums(self, name: str) -> np.ndarray:
        """Return the sum over the tokens of each row; NaN where it was not computed."""
        totals = np.concatenate([[0.0], np.cumsum(np.nan_to_num(self._values[name]), dtype=np.float64)])
        known = np.concatenate([[0], np.cumsum(np.isfinite(self._values[name]))])
        sums = totals[self.ends] - totals[self.starts]
        sums[known[self.ends] == known[self.starts]] = np.nan
        return sums

    def scales(self) -> dict[str, float]:
        """Return for each quantity that can colour tokens the magnitude at which the colours end."""
        names = ("process_rewards", "advantages", "log_ratio", "entropy", "gap")
        found = {}
        for name in names:
            values = np.abs(self.values(name))
            values = values[np.isfinite(values)]
            if values.size:
                found[name] = float(f"{np.quantile(values, QUANTILE) or values.max():.3g}")
        return found

    def outcomes(self) -> Iterator[tuple[tuple[str, int], list[float], int]]:
        """Yield (source and prompt index, outcomes without verifier errors, number of the group) of each group."""
        rewards = self._columns["outcome_reward"].to_pylist()
        for number, group in enumerate(self._groups()):
            rows = rewards[group["first"] : group["first"] + group["size"]]
            known = [reward for reward in rows if reward is not None and reward == reward]
            yield (group["source"], group["problem"]), known, number

    def prompt_of(self, group: int) -> tuple[str, str]:
        """Return the prompt and the ground truth of a group."""
        first = self.first_rows[group]
        return self._columns["prompt"][first].as_py(), self._columns["ground_truth"][first].as_py()

    def _part_bounds(self) -> list[tuple[int, int]]:
        """Return (first row, end row) of each part: whole groups until there are enough tokens."""
        bounds: list[tuple[int, int]] = []
        start = 0
        for _, end in self._bounds:
            if self.ends[end - 1] - self.starts[start] >= TOKENS_PER_PART:
                bounds.append((start, end))
                start = end
        return bounds if start == self.num_rows else [*bounds, (start, self.num_rows)]

    def parts(self) -> Iterator[Part]:
        """Yield the texts and numbers of all groups, part by part."""
        for first, end in self._part_bounds():
            texts = self._columns["response"].slice(first, end - first).to_pylist()
            tokens = slice(int(self.starts[first]), int(self.ends[end - 1]))
            lists = {
                name: self._columns[name].slice(first, end - first).to_pylist()
                for name in (
                    "step_ends",
                    "policy_mask",
                    "turn_ends",
                    "turn_rewards",
                    "mask",
                    *VERSION_COLUMNS,
                )
            }
            numbers: dict[str, Any] = {
                "lengths": encoding.uint16(self._text_lengths(first, end, texts)),
                "ids": encoding.int32(_flat(self._columns["response_token_ids"], first, end)),
                "steps": lists["step_ends"],
                "left_out": [
                    _left_out(mask, policy)
                    for mask, policy in zip(lists["mask"], lists["policy_mask"], strict=True)
                ],
            }
            if self.has_turns:
                numbers["turns"] = [
                    _turns(*of_row)
                    for of_row in zip(
                        lists["turn_ends"], lists["policy_mask"], lists["turn_rewards"], strict=True
                    )
                ]
            if any(lists["versions"]):
                numbers["versions"] = [
                    list(zip(ends or [], versions or [], strict=True))
                    for ends, versions in zip(lists["version_ends"], lists["versions"], strict=True)
                ]
            for name in QUANTITIES:
                values = self._values[name][tokens]
                if np.isfinite(values).any():
                    numbers[name] = encoding.float16(values)
            yield Part(first, end, texts, numbers)

    def _text_lengths(self, first: int, end: int, texts: list[str]) -> np.ndarray:
        """Return the length of each token's text in UTF-16 units, which is how a browser counts."""
        lengths = []
        for row, text in zip(range(first, end), texts, strict=True):
            ends = _flat(self._columns["token_ends"], row, row + 1)
            if len(text.encode("utf-16-le")) != 2 * len(text):
                ends = _utf16_ends(text)[ends]
            lengths.append(np.diff(ends, prepend=0))
        return np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)


def _left_out(mask: list[bool] | None, policy: list[bool] | None) -> list[int]:
    """Return the tokens that the policy wrote and that its loss left out."""
    return [
        number for number, is_in in enumerate(mask or ()) if not is_in and (policy is None or policy[number])
    ]


def _turns(
    ends: list[int] | None, policy: list[bool] | None, rewards: list[float] | None
) -> list[tuple[int, int, float]]:
    """Return (end of the policy's tokens, end of the reply, the environment's reward) of each turn of a response."""
    if ends is None or policy is None or rewards is None:
        return []
    starts = [0, *ends[:-1]]
    return [
        (start + sum(policy[start:end]), end, reward)
        for start, end, reward in zip(starts, ends, rewards, strict=True)
    ]


def _whole(column: pyarrow.ChunkedArray) -> Any:  # noqa: ANN401
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _offsets(column: Any) -> np.ndarray:  # noqa: ANN401
    """Return the offsets of the lists of a column, from 0."""
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _flat(column: Any, first: int, end: int) -> np.ndarray:  # noqa: ANN401
    return column.slice(first, end - first).flatten().to_numpy(zero_copy_only=False)


def _utf16_ends(text: str) -> np.ndarray:
    """Return the number of UTF-16 units before each offset in code points, from 0 to the length."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return np.concatenate([[0], np.cumsum(1 + (points > 0xFFFF))])
