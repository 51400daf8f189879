"""The benchmarks of the paper: where problem and answer stand, and how responses are sampled.

AIME and AMC are small, so that one greedy answer a problem says little: the mean of 16 at temperature 0.3 is reported.
The others are judged by one greedy answer a problem.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_prime.config.tables.data import DataConfig, LayoutName
from megatron_prime.config.tables.evaluation import BenchmarkConfig, BenchmarkName

MATH_INSTRUCTION = "Reason step by step, and put the final answer in \\boxed{}."
CODE_INSTRUCTION = "Write the solution in Python, in one ```python code block."


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A known benchmark."""

    title: str
    layout: LayoutName
    ability: Literal["math", "code"]
    """Which verifier judges it."""
    samples_per_prompt: int = 1
    temperature: float = 0.0

    @property
    def instruction(self) -> str:
        """Put behind each question where data.instruction says nothing."""
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
    """The benchmark that a table of [evaluation.benchmarks] means."""
    key = config.format or name
    assert key in BENCHMARKS, "the configuration was checked"
    return BENCHMARKS[key]


def benchmark_data(config: DataConfig, benchmark: Benchmark) -> DataConfig:
    """How a benchmark's file is read in a run: by its own layout, all of it, with the run's chat template."""
    instruction = benchmark.instruction if config.instruction is None else config.instruction
    return held_out_data(config).model_copy(update={"layout": benchmark.layout, "instruction": instruction})


def held_out_data(config: DataConfig) -> DataConfig:
    """How held-out prompts are read: as the training prompts, but all of them, and at no rates."""
    return config.model_copy(update={"weights": {}, "dedup": "none"})
