"""Evaluation on held-out prompts and benchmarks, used during training and by the eval command."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.benchmarks import benchmark_data, benchmark_of, held_out_data
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.prompts import PromptDataset
from megatron_prime.data.tokenizer import load_tokenizer, stop_token_ids
from megatron_prime.evaluation.accuracy import (
    EvaluationReport,
    EvaluationResult,
    evaluate,
    evaluation_sampling,
)
from megatron_prime.evaluation.confidence import BootstrapSettings
from megatron_prime.observability.progress import SILENT, Progress
from megatron_prime.rewards import answer_check
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.episode import Environments
from megatron_prime.rollout.stream_keys import evaluation_stream_key
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import Prompt, SamplingParams


@dataclass(frozen=True)
class EvaluationSet:
    """A set of prompts with common sampling settings."""

    name: str
    """Name of the benchmark; "" for data.evaluation."""
    prompts: list[Prompt]
    samples_per_prompt: int
    sampling: SamplingParams
    notes: tuple[str, ...]
    """Messages about skipped rows, to be logged."""


class Evaluator:
    """Evaluates the weights that the engine holds, on prompt sets that `evaluation_sets` has read."""

    def __init__(
        self,
        config: PrimeConfig,
        sets: Sequence[EvaluationSet],
        engine: Engine,
        verifier: RolloutVerifier,
        progress: Progress = SILENT,
        environments: Environments | None = None,
    ) -> None:
        self._progress = progress
        self._engine = engine
        self._verifier = verifier
        self._environments = environments
        settings = config.evaluation
        self._bootstrap = BootstrapSettings(settings.confidence, settings.num_resamples, config.seed)
        self._sets = sets

    def __call__(self, step_index: int) -> EvaluationReport:
        """Sample and verify all prompt sets after `step_index` training steps. Collective over all ranks."""
        results = {}
        for number, prompts in enumerate(self._sets):
            with self._progress.sampling(f"evaluation of {prompts.name or 'the held-out prompts'}"):
                results[prompts.name] = self._evaluate(prompts, step_index, number)
        return EvaluationReport(results)

    def _evaluate(self, prompts: "EvaluationSet", step_index: int, number: int) -> EvaluationResult:
        return evaluate(
            self._engine,
            prompts.prompts,
            self._verifier,
            prompts.sampling,
            samples_per_prompt=prompts.samples_per_prompt,
            # Each prompt set has its own random numbers, so adding a benchmark does not change the others.
            stream_key=evaluation_stream_key(step_index, number),
            bootstrap=self._bootstrap,
            # Benchmarks count a program as right only if it passes all tests; held-out prompts are scored like
            # training.
            whole_only=bool(prompts.name),
            environments=self._environments,
        )


def evaluation_sets(config: PrimeConfig, tools: Sequence[Schema] | None = None) -> list[EvaluationSet]:
    """Read data.evaluation and every benchmark. Call it before anything expensive begins.

    Args:
        config: the run's configuration.
        tools: schemas of the environment's tools; None without an environment.

    Raises:
        ValueError: a file cannot be read, a row is malformed, or no verifier is configured for it.
    """
    sets = list(_sets(config, tools))
    for prompt in (prompt for prompts in sets for prompt in prompts.prompts):
        config.reward.verifier_of(prompt.source, prompt.ability)
    return sets


def notes_of(sets: Sequence[EvaluationSet]) -> list[str]:
    """Return the messages about skipped rows, each prefixed with its prompt set."""
    return [f"{prompts.name or 'data.evaluation'}: {note}" for prompts in sets for note in prompts.notes]


def _sets(config: PrimeConfig, tools: Sequence[Schema] | None) -> Iterator[EvaluationSet]:
    tokenizer = load_tokenizer(config.model.path)
    stop_ids = stop_token_ids(tokenizer, config.model.path)
    settings, longest = config.evaluation, config.rollout.max_prompt_tokens
    base = evaluation_sampling(config, stop_ids)
    check = answer_check(config.reward)
    if config.data.evaluation:
        held_out = held_out_data(config.data)
        dataset = PromptDataset.read(
            config.data.evaluation, held_out, tokenizer, longest, check, config.reads_rows, tools
        )
        prompts = dataset.prompts[: settings.max_prompts]
        yield EvaluationSet("", prompts, settings.samples_per_prompt, base, dataset.notes)
    for name, table in settings.benchmarks.items():
        benchmark = benchmark_of(name, table)
        data = benchmark_data(config.data, benchmark)
        dataset = PromptDataset.read([table.path], data, tokenizer, longest, check, config.reads_rows, tools)
        temperature = benchmark.temperature if table.temperature is None else table.temperature
        yield EvaluationSet(
            name,
            dataset.prompts[: table.max_prompts],
            table.samples_per_prompt or benchmark.samples_per_prompt,
            replace(base, temperature=temperature, top_p=table.top_p),
            dataset.notes,
        )
