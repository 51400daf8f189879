"""Try what a run does first: load the tokenizer, read all rows, render and tokenize a sample, verify some responses.

This is the code that the run itself calls. It imports transformers, which takes seconds, and may start a worker of a
verifier, so it comes after the checks that need neither.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.reward import JUDGE, RewardConfig
from megatron_prime.data.benchmarks import benchmark_data, benchmark_of, held_out_data
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.layouts import layout
from megatron_prime.data.reading import ProblemReader, TokenizedProblem
from megatron_prime.data.sft import demonstration_data, demonstration_reader
from megatron_prime.data.tokenizer import load_tokenizer, stop_token_ids, vocabulary_fault
from megatron_prime.environments.episodes import tools_of
from megatron_prime.environments.trial import try_environment
from megatron_prime.hf.shape import read_shape
from megatron_prime.rewards import VerificationOutcome, VerificationStatus, answer_check, get
from megatron_prime.rewards.selection import CERTAIN_VERIFIERS, build_pool, sample_response
from megatron_prime.rewards.verifier import run_verifier
from megatron_prime.sample import Sample
from megatron_prime.types import Prompt

MAX_PROBLEMS = 512
"""Problems that are rendered and tokenized of all files of a data set together."""
MIN_PROBLEMS = 8
"""Problems of each file, also of a data set of many files."""
SCAN_S = 20.0
"""Seconds for reading the other rows of all data sets, without rendering them: over a million short rows."""
NUM_VERIFIED = 8
"""Answers that a verifier is tried on; a reward server or a judge is asked for one."""
MANY_EPOCHS = 100
"""Visits of each prompt during the run from which on the number of steps is questioned."""


@dataclass
class Trial:
    """The results of a trial."""

    faults: list[str] = field(default_factory=list)
    """Lines that say why the run would end."""
    warnings: list[str] = field(default_factory=list)
    """Lines about what is possible, but hardly meant."""


@dataclass(frozen=True)
class _Source:
    """A data set of the run."""

    key: str
    paths: Sequence[Path]
    reader_of: Callable[[Sequence[Path]], ProblemReader]
    longest: int
    """Rows with more tokens are left out."""
    has_responses: bool = False
    """True for demonstrations, whose responses count among the tokens."""


def try_run(config: PrimeConfig, command: str = "train") -> Trial:
    """Return the faults and doubts that the data of a run of "train", "rollout", "evaluate" or "sft" meet."""
    trial = Trial()
    path = config.model.path
    try:
        tokenizer = load_tokenizer(path)
        stop_ids = stop_token_ids(tokenizer, path)
    except ValueError as error:
        trial.faults.append(str(error))
        return trial
    vocab_size = read_shape(path).vocab_size
    fault = vocabulary_fault(tokenizer, stop_ids, vocab_size)
    if fault:
        trial.faults.append(f"model.path = {path}: {fault}")
        return trial
    try:
        tools = tools_of(config)
    except ValueError as error:
        trial.faults.append(str(error))
        return trial
    problems: list[TokenizedProblem] = []
    deadline = time.monotonic() + SCAN_S
    for source in (_demonstrations if command == "sft" else _prompts)(config, command, tokenizer, tools):
        problems += _read(trial, source, config, vocab_size)
        if not trial.faults:
            _scan(trial, source, config, deadline - time.monotonic())
    if command != "sft":
        if config.environment.is_multi_turn and not trial.faults:
            faults, warnings = try_environment(
                config, tokenizer, stop_ids, [_prompt(each) for each in problems]
            )
            trial.faults += faults
            trial.warnings += warnings
        _verify(trial, problems, config.reward)
    return trial


def _prompts(
    config: PrimeConfig, command: str, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Schema] | None
) -> Iterator[_Source]:
    sets = [("data.train", config.data.train, config.data)] if command in ("train", "rollout") else []
    if config.data.evaluation:
        sets.append(("data.evaluation", config.data.evaluation, held_out_data(config.data)))
    for name, table in config.evaluation.benchmarks.items():
        data = benchmark_data(config.data, benchmark_of(name, table))
        sets.append((f"evaluation.benchmarks.{name}", (table.path,), data))
    for key, paths, data in sets:
        reader_of = partial(
            ProblemReader,
            config=data,
            layout=layout(data.layout, data).in_conversation(tools),
            tokenizer=tokenizer,
            check_answer=answer_check(config.reward),
            keeps_rows=config.reads_rows,
        )
        yield _Source(key, paths, reader_of, config.rollout.max_prompt_tokens)


def _demonstrations(
    config: PrimeConfig, _: str, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Schema] | None
) -> Iterator[_Source]:
    reader_of = partial(
        demonstration_reader,
        config=demonstration_data(config),
        response_field=config.sft.response_field,
        tokenizer=tokenizer,
        messages_field=config.sft.messages_field,
        tools=tools,
    )
    for key, paths in (("sft.data", config.sft.data), ("sft.evaluation", config.sft.evaluation)):
        if paths:
            yield _Source(key, paths, reader_of, config.trainer.max_tokens_per_microbatch, has_responses=True)


def _scan(trial: Trial, source: _Source, config: PrimeConfig, seconds: float) -> None:
    """Read all rows, as the run does at its start, without rendering them, and record what is wrong with one."""
    try:
        scan = source.reader_of(source.paths).scan(seconds)
        if not source.has_responses:
            for kind in sorted(scan.kinds):
                config.reward.verifier_of(*kind)
    except ValueError as error:
        trial.faults.append(f"{source.key}: {error}")
        return
    if not scan.is_whole:
        trial.warnings.append(
            f"{source.key}: only the first {scan.num_rows:,} rows were checked, for {SCAN_S:g} s; the run reads all of "
            "them at its start"
        )


def _read(trial: Trial, source: _Source, config: PrimeConfig, vocab_size: int) -> list[TokenizedProblem]:
    """Return the first problems of each file that are short enough, and record what is wrong with the files."""
    longest = source.longest
    kept: list[TokenizedProblem] = []
    highest = 0
    num_rows, num_long, is_whole, reason = 0, 0, True, ""
    most = max(MIN_PROBLEMS, MAX_PROBLEMS // len(source.paths))
    for path in source.paths:
        try:
            reader = source.reader_of([path])
            problems = list(islice(reader, most))
            tokens = [problem.prompt_ids + problem.response_ids for problem in problems]
        except ValueError as error:
            trial.faults.append(f"{source.key}: {error}")
            return []
        short = [row for row, ids in enumerate(tokens) if len(ids) <= longest]
        kept += [problems[row] for row in short]
        highest = max(highest, *(max(tokens[row]) for row in short), 0)
        num_rows += reader.num_rows
        num_long += len(problems) - len(short)
        is_whole &= len(problems) < most
        reason = reader.empty_reason(len(problems) - len(short), longest)
    if not kept:
        trial.faults.append(f"{source.key}: no row can be used: {reason}")
    elif 2 * len(kept) < num_rows and num_rows > 1:
        trial.warnings.append(
            f"{source.key}: {num_rows - len(kept)} of {num_rows} rows are left out"
            + (f", {num_long} of them because they have more than {longest} tokens" if num_long else "")
        )
    if highest >= vocab_size:
        trial.faults.append(
            f"{source.key}: a row has the token {highest}, but the model's vocab_size is {vocab_size}"
        )
    if source.key == "data.train" and is_whole and kept:
        trial.warnings += _repetitions(config, len(kept))
    return kept


def _repetitions(config: PrimeConfig, num_prompts: int) -> Iterator[str]:
    per_step, num_steps = config.trainer.prompts_per_step, config.trainer.num_steps
    if per_step > num_prompts:
        yield (
            f"trainer.prompts_per_step = {per_step} exceeds the {num_prompts} prompts of data.train: a step has the "
            "same prompt more than once"
        )
    visits = per_step * num_steps / num_prompts
    if visits > MANY_EPOCHS:
        yield (
            f"trainer.num_steps = {num_steps:,} of {per_step} prompts visits each of the {num_prompts} prompts of "
            f"data.train {visits:,.0f} times"
        )


def _prompt(problem: TokenizedProblem) -> Prompt:
    return Prompt(
        problem.index,
        problem.prompt_ids,
        problem.answer,
        problem.source,
        problem.ability,
        problem.messages,
        problem.metadata,
    )


def _verify(trial: Trial, problems: Sequence[TokenizedProblem], reward: RewardConfig) -> None:
    """Try each verifier on the answers of problems that it would judge."""
    samples: dict[str, dict[str, Sample]] = {}
    for problem in problems:
        try:
            spec = reward.verifier_of(problem.source, problem.ability)
        except ValueError as error:
            if not any(str(error) in fault for fault in trial.faults):
                trial.faults.append(str(error))
            return
        samples.setdefault(spec, {}).setdefault(problem.answer, _right_sample(spec, problem))
    for spec, by_answer in samples.items():
        tried = [*by_answer.values()][: 1 if "://" in spec or spec == JUDGE else NUM_VERIFIED]
        try:
            outcomes = _outcomes(spec, tried, reward)
        except (ValueError, RuntimeError, OSError) as error:
            trial.faults.append(f"reward.verifier = {spec!r} cannot be started: {error}")
            continue
        _judge(trial, spec, [sample.answer for sample in tried], outcomes)


def _right_sample(spec: str, problem: TokenizedProblem) -> Sample:
    """Return a right response to a problem; for code, a program that does nothing."""
    return Sample(
        sample_response(spec, problem.answer),
        problem.answer,
        problem.source,
        problem.ability,
        json.loads(problem.messages or "[]"),
        json.loads(problem.metadata or "{}"),
    )


def _outcomes(spec: str, samples: Sequence[Sample], reward: RewardConfig) -> list[VerificationOutcome]:
    if spec in CERTAIN_VERIFIERS:
        verifier = get(spec)
        return [run_verifier(verifier, sample) for sample in samples]
    once = reward.http.model_copy(update={"num_retries": 0})
    vote = reward.judge.model_copy(update={"num_retries": 0, "votes": 1})
    few = reward.model_copy(update={"num_workers": 1, "http": once, "judge": vote})
    pool = build_pool(spec, few)
    logging.disable(logging.WARNING)  # the outcomes are reported below
    try:
        return pool.verify_all(samples)
    finally:
        logging.disable(logging.NOTSET)
        pool.close()


def _judge(trial: Trial, spec: str, answers: Sequence[str], outcomes: Sequence[VerificationOutcome]) -> None:
    failed = [
        (answer, outcome)
        for answer, outcome in zip(answers, outcomes, strict=True)
        if outcome.status is not VerificationStatus.OK
    ]
    if failed:
        answer, outcome = failed[0]
        line = (
            f"reward.verifier = {spec!r} gives no reward ({outcome.status.value}) for {len(failed)} of {len(answers)} "
            f"answers, such as {answer[:80]!r}: {outcome.detail}"
            + (f"\n{outcome.traceback}" if outcome.traceback else "")
        )
        (trial.faults if len(failed) == len(answers) else trial.warnings).append(line)
    wrong = [answer for answer, outcome in zip(answers, outcomes, strict=True) if outcome.reward < 1]
    if spec in CERTAIN_VERIFIERS and wrong:
        trial.warnings.append(
            f"reward.verifier = {spec!r} does not accept {len(wrong)} of {len(answers)} answers of the data as right, "
            f"such as {wrong[0][:80]!r}"
        )
