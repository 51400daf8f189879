"""The benchmarks of the paper, their file layouts and sampling settings.

AIME and AMC have few problems, so one greedy response per problem gives a noisy score: their accuracy is the mean over
16 responses at temperature 0.3. The other benchmarks take one greedy response per problem.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_prime.config.tables.data import DataConfig, LayoutName
from megatron_prime.config.tables.evaluation import BenchmarkConfig, BenchmarkName

MATH_INSTRUCTION = "Reason step by step, and put the final answer in \\boxed{}."
CODE_INSTRUCTION = "Write the solution in Python, in one ```python code block."


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Settings of a known benchmark."""

    title: str
    layout: LayoutName
    ability: Literal["math", "code"]
    """Selects the verifier."""
    samples_per_prompt: int = 1
    temperature: float = 0.0

    @property
    def instruction(self) -> str:
        """Text appended to each question unless data.instruction is set."""
        return MATH_INSTRUCTION if self.ability == "math" else CODE_INSTRUCTION


BENCHMARKS: dict[BenchmarkName, Benchmark] = {
    "aime24": Benchmark("AIME 2024", "math", "math", 16, 0.3),
    "amc": Benchmark("AMC", "math", "math", 16, 0.3),
    "math500": Benchmark("MATH-500", "math", "math"),
    "minerva": Benchmark("Minerva Math", "math", "math"),
    "olympiadbench": Benchmark("OlympiadBench", "olympiadbench", "math"),
    "leetcode": Benchmark("LeetCode", "leetcode", "code"),
    "livecodebench": Benchmark("LiveCodeBench", "livecodebench", "code"),
    "gsm8k": Benchmark("GSM8K", "gsm8k", "math"),
}


def benchmark_of(name: str, config: BenchmarkConfig) -> Benchmark:
    """Return the benchmark that the table [evaluation.benchmarks.<name>] selects."""
    key = config.format or name
    assert key in BENCHMARKS, "the configuration was checked"
    return BENCHMARKS[key]


def benchmark_data(config: DataConfig, benchmark: Benchmark) -> DataConfig:
    """Return the data options for a benchmark's file: its own layout and all rows, with the run's chat template."""
    instruction = benchmark.instruction if config.instruction is None else config.instruction
    return held_out_data(config).model_copy(update={"layout": benchmark.layout, "instruction": instruction})


def held_out_data(config: DataConfig) -> DataConfig:
    """Return the data options for held-out prompts: those of training, without source weights and deduplication."""
    # The keys of data.weights name training sources, so a held-out row would be refused, and scores count every
    # problem.
    return config.model_copy(update={"weights": {}, "dedup": "none"})
