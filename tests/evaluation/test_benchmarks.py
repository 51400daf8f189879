"""The benchmark table against the sample files and the settings that the paper reports."""

from pathlib import Path
from typing import get_args

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.config.tables.evaluation import CODE_BENCHMARKS, BenchmarkConfig, BenchmarkName
from megatron_prime.data.prompts import PromptDataset
from megatron_prime.evaluation.benchmarks import BENCHMARKS, benchmark_data, benchmark_of, held_out_data
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer

SAMPLES = Path(__file__).parents[2] / "examples" / "data"
FILES = {name: f"{name}.jsonl" for name in BENCHMARKS} | {"amc": "amc.csv"}


def test_every_name_has_an_entry_and_the_code_benchmarks_are_those_of_the_configuration():
    assert set(BENCHMARKS) == set(get_args(BenchmarkName))
    assert {name for name, each in BENCHMARKS.items() if each.ability == "code"} == set(CODE_BENCHMARKS)


def test_small_benchmarks_are_sampled_often_and_the_others_greedily():
    often = {
        name for name, each in BENCHMARKS.items() if (each.samples_per_prompt, each.temperature) == (16, 0.3)
    }
    greedy = {
        name for name, each in BENCHMARKS.items() if (each.samples_per_prompt, each.temperature) == (1, 0.0)
    }
    assert often == {"aime24", "amc"}
    assert often | greedy == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_reads_its_sample_with_its_instruction(name):
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


def test_a_run_s_own_instruction_wins_and_a_format_names_the_benchmark():
    benchmark = benchmark_of("mine", BenchmarkConfig(path="a.jsonl", format="leetcode"))
    assert benchmark.title == "LeetCode"
    assert benchmark_data(DataConfig(instruction="Go."), benchmark).instruction == "Go."
    assert benchmark_data(DataConfig(instruction=""), benchmark).instruction == ""


def test_held_out_prompts_have_no_rates_and_keep_their_duplicates():
    config = held_out_data(DataConfig(weights={"x": 1}, dedup="exact", layout="eurus", on_bad_row="skip"))
    assert (config.weights, config.dedup, config.layout, config.on_bad_row) == ({}, "none", "eurus", "skip")
