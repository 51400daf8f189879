"""The benchmark table matches the sample files and the settings reported in the paper."""

from pathlib import Path
from typing import get_args

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.config.tables.evaluation import CODE_BENCHMARKS, BenchmarkConfig, BenchmarkName
from megatron_prime.data.benchmarks import BENCHMARKS, benchmark_data, benchmark_of, held_out_data
from megatron_prime.data.prompts import PromptDataset
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer

SAMPLES = Path(__file__).parents[2] / "examples" / "data"
FILES = {name: f"{name}.jsonl" for name in BENCHMARKS} | {"amc": "amc.csv"}


def test_every_configurable_name_has_an_entry_and_the_code_benchmarks_agree():
    assert set(BENCHMARKS) == set(get_args(BenchmarkName))
    assert {name for name, each in BENCHMARKS.items() if each.ability == "code"} == set(CODE_BENCHMARKS)


def test_small_benchmarks_take_16_samples_and_the_others_are_greedy():
    sampled = {
        name for name, each in BENCHMARKS.items() if (each.samples_per_prompt, each.temperature) == (16, 0.3)
    }
    greedy = {
        name for name, each in BENCHMARKS.items() if (each.samples_per_prompt, each.temperature) == (1, 0.0)
    }
    assert sampled == {"aime24", "amc"}
    assert sampled | greedy == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_reads_its_sample_file_and_appends_its_instruction(name):
    benchmark = benchmark_of(name, BenchmarkConfig(path=SAMPLES / FILES[name]))
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    config = benchmark_data(DataConfig(answer_field="elsewhere", weights={"x": 1}), benchmark)
    dataset = PromptDataset.read([SAMPLES / FILES[name]], config, tokenizer, 10_000)
    assert len(dataset) >= 2
    for prompt in dataset.prompts:
        text = tokenizer.decode(list(prompt.token_ids))
        assert text.startswith("<|user|>")
        assert text.endswith(f"\n\n{benchmark.instruction}<|assistant|>")
        assert prompt.ability == benchmark.ability


def test_data_instruction_takes_precedence_and_format_selects_the_benchmark():
    benchmark = benchmark_of("mine", BenchmarkConfig(path="a.jsonl", format="leetcode"))
    assert benchmark.title == "LeetCode"
    assert benchmark_data(DataConfig(instruction="Go."), benchmark).instruction == "Go."
    assert benchmark_data(DataConfig(instruction=""), benchmark).instruction == ""


def test_held_out_prompts_have_no_weights_and_keep_duplicates():
    config = held_out_data(DataConfig(weights={"x": 1}, dedup="exact", layout="eurus", on_bad_row="skip"))
    assert (config.weights, config.dedup, config.layout, config.on_bad_row) == ({}, "none", "eurus", "skip")
