r"""The command `megatron-prime verify`: tries the verifiers of a run on responses, before the run relies on them.

    megatron-prime verify run.toml                                   # the answers of the run's own data
    megatron-prime verify run.toml --file responses.jsonl            # rows with response and answer
    megatron-prime verify reward.verifier=math --answer 1/2 --response "\boxed{0.5}"

Rows of a file may also have a `reward` that is expected, `source` (or `data_source`) and `ability`, what else verifiers
may use (`messages` or `prompt`, `metadata`, `turns`, `finish_reason`, `response_ids`), or be problems with `responses`
that `eval` has saved. Rows without a response are tried with a right one, as far as that can be made from
the answer. The verifiers are those that a run starts, and refuse the same answers.
"""

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

from megatron_prime.cli.arguments import Options
from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.redaction import redact
from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.layouts import answer_text, layout
from megatron_prime.data.messages import checked_prompt, complete_messages
from megatron_prime.data.rows import DataRow, MetadataReader, read_rows
from megatron_prime.observability.durable import replace_file
from megatron_prime.preflight.rewards import verifier_faults
from megatron_prime.rewards import RewardPools, VerificationOutcome, VerificationStatus, answer_check
from megatron_prime.rewards.selection import CERTAIN_VERIFIERS, sample_response
from megatron_prime.sample import Sample

NOT_AS_EXPECTED = 3
"""Exit code if a response has no reward, or another one than expected."""
TOLERANCE = 1e-6
"""Difference to an expected reward that is none."""
MAX_FAULTS = 10
NUM_ROWS = 100
"""Rows of each file of the run's own data."""
_NAMES = (*(each.name for each in fields(Sample)), "data_source", "prompt", "response", "responses", "reward")
"""Columns of a file with responses that have a meaning here; the others are metadata."""
WITHOUT_CONFIG = ("run_dir=.", "model.path=.", "trainer.num_steps=1", "trainer.prompts_per_step=1")
"""Values of the keys that a configuration must have, and that verifiers do not need."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One response to judge."""

    where: str
    sample: Sample
    expected: float | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """Data source and ability, which select the verifier."""
        return self.sample.source, self.sample.ability


@dataclass(frozen=True, slots=True)
class _Verdict:
    case: _Case
    reward: float
    """NaN if there is none."""
    status: str
    """Status of the outcome; "refused" if a run would refuse the answer before sampling."""
    reason: str

    @property
    def is_expected(self) -> bool:
        """Whether there is a reward, and the expected one."""
        expected = self.case.expected
        return not math.isnan(self.reward) and (expected is None or abs(self.reward - expected) <= TOLERANCE)

    def line(self) -> str:
        """Return the verdict as a line."""
        shown = self.status if math.isnan(self.reward) else f"{self.reward:.4g}"
        note = "" if self.is_expected or math.isnan(self.reward) else f"expected {self.case.expected:.4g}; "
        return f"{self.case.where}: {shown:<7} {note}{self.reason}".rstrip()


def verify(options: Options) -> int:
    """Print the verdict and the reason of each response, and a summary.

    Returns:
        The exit code: 0, or NOT_AS_EXPECTED.

    Raises:
        ConfigError: The configuration has faults, or the input cannot be read; the error lists them.
    """
    config = load_config(options.config, [*([] if options.config else WITHOUT_CONFIG), *options.overrides])
    faults = list(verifier_faults(config.reward))
    if faults:
        raise ConfigError("verify", faults)
    cases = _cases(config, options)
    verdicts, seconds = _judged(config, cases)
    lines = [verdict.line() for verdict in verdicts if not options.quiet or not verdict.is_expected]
    try:
        print("\n".join(redact(line) for line in [*lines, *_summary(verdicts, seconds)]), flush=True)  # noqa: T201
    except BrokenPipeError:
        # The reader has seen enough, as `head` has. The interpreter would try to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if options.json:
        if Path(options.json).is_dir():
            raise ConfigError("verify", [f"--json {options.json} is a folder: name a file"])
        try:
            replace_file(Path(options.json), "".join(_as_json(verdict) for verdict in verdicts))
        except OSError as error:
            raise ConfigError("verify", [f"--json: the verdicts cannot be written: {error}"]) from error
    return 0 if all(verdict.is_expected for verdict in verdicts) else NOT_AS_EXPECTED


def _cases(config: PrimeConfig, options: Options) -> list[_Case]:
    """Return the responses to judge. Raises ConfigError if the input cannot be read, or a row has no verifier."""
    if (options.response is None) != (options.answer is None) or (
        options.file and options.response is not None
    ):
        raise ConfigError("verify", ["name --response with --answer, or --file, or neither"])
    faults: list[str] = []
    if options.response is not None:
        sample = Sample(options.response, options.answer, options.source, options.ability)
        cases = [_Case("the response", sample)]
    else:
        cases = _read(config, options, faults)
    for case in cases:
        try:
            config.reward.verifier_of(*case.kind)
        except ValueError as error:
            faults.append(f"{case.where}: {error}")
    if not faults and not cases:
        faults = ["the files have no rows"]
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise ConfigError("verify", [*faults[:MAX_FAULTS], *more])
    return cases


def _read(config: PrimeConfig, options: Options, faults: list[str]) -> list[_Case]:
    """Return the responses of the files, and add what is wrong with them to `faults`."""
    paths = [options.file] if options.file else [*config.data.train, *config.data.evaluation]
    if not paths:
        faults.append("there is nothing to judge: name --file, or --response with --answer")
    # With --file all rows are wanted; of the run's own data, a sample shows what is wrong with their format.
    most = options.rows or (None if options.file else NUM_ROWS)
    cases: list[_Case] = []
    for path in paths:
        try:
            for row in islice(read_rows(path, lambda error: faults.append(str(error))), most):
                try:
                    cases += _cases_of(row, config)
                except ValueError as error:
                    faults.append(str(error))
        except ValueError as error:
            faults.append(str(error))
    return cases


def _cases_of(row: DataRow, config: PrimeConfig) -> Iterator[_Case]:
    """Yield the responses of a row. Raises ValueError, naming file and row, if it has none that can be judged."""
    where = f"{row.path.name}, row {row.number}"
    if "response" not in row.fields and "responses" not in row.fields:
        rows = layout(config.data.layout, config.data)
        kind = rows.source(row), rows.ability(row)
        try:
            spec = config.reward.verifier_of(*kind)
        except ValueError as error:
            raise row.error(str(error)) from error
        answer = rows.answer(row)
        messages = complete_messages(rows.prompt(row), config.data)
        metadata = json.loads(MetadataReader(rows.columns).text(row))
        sample = Sample(sample_response(spec, answer), answer, *kind, messages, metadata)
        yield _Case(where, sample, 1.0 if spec in CERTAIN_VERIFIERS else None)
        return
    given = _given(row, config)
    if "responses" not in row.fields:
        sample = replace(given, response_text=_text(row, row.fields["response"]))
        yield _Case(where, sample, _expected(row, row.fields.get("reward")))
        return
    saved = row.fields["responses"]
    if not isinstance(saved, list) or not all(isinstance(each, dict) for each in saved):
        raise row.error("'responses' is not a list of objects, as `eval` saves them")
    for number, each in enumerate(saved, start=1):
        expected = _expected(row, each.get("outcome"))
        sample = replace(given, response_text=_text(row, each.get("text")))
        yield _Case(f"{where}, response {number}", sample, expected)


def _given(row: DataRow, config: PrimeConfig) -> Sample:
    """Return what a row of a file says besides the text of the response."""
    row_fields = row.fields
    name = next((name for name in ("messages", "prompt") if row_fields.get(name)), None)
    metadata = row_fields.get("metadata")
    turns = row_fields.get("turns") or ()
    is_pairs = isinstance(turns, Sequence) and all(
        isinstance(turn, list | tuple) and [type(text) for text in turn] == [str, str] for turn in turns
    )
    if not is_pairs:
        raise row.error("'turns' is not a list of [text of the policy, reply of the environment]")
    return Sample(
        response_text="",
        answer=answer_text(row, "answer"),
        source=str(row_fields.get("source") or row_fields.get("data_source") or ""),
        ability=str(row_fields.get("ability") or ""),
        messages=[] if name is None else complete_messages(checked_prompt(row, name), config.data),
        metadata=metadata if isinstance(metadata, dict) else json.loads(MetadataReader(_NAMES).text(row)),
        response_ids=row_fields.get("response_ids") or (),
        finish_reason=str(row_fields.get("finish_reason") or "stop"),
        turns=[(turn[0], turn[1]) for turn in turns],
    )


def _text(row: DataRow, value: object) -> str:
    if not isinstance(value, str):
        raise row.error(f"the response is a {type(value).__name__}, not text")
    return value


def _expected(row: DataRow, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise row.error(f"the expected reward {value!r} is not a number in [0, 1]")
    return float(value)


def _judged(config: PrimeConfig, cases: Sequence[_Case]) -> tuple[list[_Verdict], float]:
    """Return the verdict of each response, and the time for all in seconds."""
    check = answer_check(config.reward)
    verdicts: dict[int, _Verdict] = {}
    for index, case in enumerate(cases):
        try:
            check(*case.kind, case.sample.answer)
        except ValueError as error:
            verdicts[index] = _Verdict(case, math.nan, "refused", str(error))
    seconds = 0.0
    rest = [index for index in range(len(cases)) if index not in verdicts]
    if rest:
        try:
            with RewardPools(config.reward) as pools:
                started = time.monotonic()
                outcomes = pools.verify_all([cases[index].sample for index in rest])
                seconds = time.monotonic() - started
        except (RuntimeError, ValueError) as error:
            raise ConfigError("verify", [str(error)]) from error
        for index, outcome in zip(rest, outcomes, strict=True):
            case = cases[index]
            spec = config.reward.verifier_of(*case.kind)
            verdicts[index] = _verdict(case, outcome, spec)
    return [verdicts[index] for index in range(len(cases))], seconds


def _verdict(case: _Case, outcome: VerificationOutcome, spec: str) -> _Verdict:
    # Functions and servers give a number alone.
    reason = outcome.detail or f"as {spec} says"
    status = "away" if outcome.is_away else outcome.status.value
    return _Verdict(case, outcome.reward, status, reason)


def _summary(verdicts: Sequence[_Verdict], seconds: float) -> Iterator[str]:
    rewards = [verdict.reward for verdict in verdicts if not math.isnan(verdict.reward)]
    kinds = Counter(verdict.status for verdict in verdicts if verdict.status != VerificationStatus.OK)
    counts = [
        f"judged {len(verdicts)}: {sum(reward == 1 for reward in rewards)} with reward 1",
        f"{sum(reward == 0 for reward in rewards)} with reward 0",
        f"{sum(0 < reward < 1 for reward in rewards)} between",
        *(f"{count} without a reward ({status})" for status, count in sorted(kinds.items())),
    ]
    others = sum(not verdict.is_expected and not math.isnan(verdict.reward) for verdict in verdicts)
    if any(verdict.case.expected is not None for verdict in verdicts):
        counts.append(f"{others} other than expected")
    yield f"{', '.join(counts)}; {1000 * seconds / len(verdicts):.3g} ms each"


def _as_json(verdict: _Verdict) -> str:
    fields = {
        "where": verdict.case.where,
        "reward": None if math.isnan(verdict.reward) else verdict.reward,
        "status": verdict.status,
        "reason": redact(verdict.reason),
        "expected": verdict.case.expected,
    }
    return json.dumps(fields) + "\n"
