"""Decode alone: the embedded engine, transformers' generate, and an SGLang server on the CPU, with the same model.

Every method decodes the same prompts greedily with one thread. The model's end token is never the most likely one, so
that all methods generate the same number of tokens.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.task import MAX_PROMPT_TOKENS, WORKLOADS, Workload
from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.engines.sglang.server import SupervisedServer
from megatron_prime.types import Prompt, SamplingParams

MAX_TOKENS = 512
BATCHES = {1: 256, 8: 128, 64: 64}
"""Requests at a time, and the tokens that each of them generates."""
BASE = "transformers dynamic"
Method = Callable[[Sequence[Sequence[int]], int], list[list[int]]]
"""Generates a number of tokens for each prompt."""
Clock = Callable[[], float]
"""Returns CPU seconds."""


def workload_of(size: str) -> Workload:
    """Return the workload whose model decodes: its responses never end early, and SGLang has positions to spare."""
    return replace(WORKLOADS[size], mean_response_tokens=MAX_TOKENS, max_response_tokens=MAX_TOKENS)


def prompts_of(num_prompts: int, vocabulary: int) -> list[list[int]]:
    """Return prompts of 8 to 32 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, MAX_PROMPT_TOKENS + 1, (num_prompts,), generator=generator).tolist()
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


def measure(
    folder: Path, size: str, rounds: int, sglang_python: Path, record: Callable[[dict[str, Any]], None]
) -> None:
    """Time all methods in alternation, and pass a record of each measurement to `record`."""
    torch.set_num_threads(1)
    vocabulary = WORKLOADS[size].size.vocabulary
    with ExitStack() as stack:
        methods: dict[str, tuple[Method, Clock]] = {
            "embedded engine": (_embedded(folder / "model"), time.process_time),
            BASE: (_transformers(folder / "model", None), time.process_time),
            "transformers static": (_transformers(folder / "model", "static"), time.process_time),
        }
        server = stack.enter_context(running_server(folder, sglang_python))
        methods["SGLang server"] = (_sglang(server), lambda: _cpu_seconds(server))
        for number in range(rounds + 1):
            for batch_size, num_tokens in BATCHES.items():
                prompts = prompts_of(batch_size, vocabulary)
                for found in _timed(methods, prompts, num_tokens):
                    if number:  # The first round is a warm-up.
                        record({"decoding": size, "load": os.getloadavg()[0], **found})


def _timed(
    methods: Mapping[str, tuple[Method, Clock]], prompts: Sequence[Sequence[int]], num_tokens: int
) -> Iterator[dict[str, Any]]:
    """Run the methods one after the other, and yield the costs of each."""
    reference: list[list[int]] = []
    for name, (method, cpu_clock) in methods.items():
        start = time.perf_counter(), cpu_clock()
        found = method(prompts, num_tokens)
        seconds, cpu = time.perf_counter() - start[0], cpu_clock() - start[1]
        assert [len(row) for row in found] == [num_tokens] * len(prompts), name
        reference = reference or found
        # Rounding decides near-ties differently, after which the rest of a response differs.
        same = sum(row == other for row, other in zip(found, reference, strict=True))
        yield {
            "method": name,
            "batch_size": len(prompts),
            "tokens": len(prompts) * num_tokens,
            "seconds": seconds,
            "cpu_s": cpu,
            "equal": same / len(prompts),
        }


def _embedded(model: Path) -> Method:
    engine = LocalEngine(
        model, device=torch.device("cpu"), dtype=torch.float32, seed=0, max_batch_size=max(BATCHES)
    )
    engine.load_from_hf(model)

    def decode(prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        rows = [Prompt(index, tuple(tokens), "") for index, tokens in enumerate(prompts)]
        params = SamplingParams(num_tokens, temperature=0.0)
        return [list(each.response_ids) for each in engine.generate(rows, params, 1, 0)]

    return decode


def _transformers(folder: Path, cache: str | None) -> Method:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    padding = model.generation_config.pad_token_id

    def decode(prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in prompts])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=num_tokens,
                cache_implementation=cache,
                # Compiling needs a C++ compiler, which neither side uses.
                disable_compile=True,
            )
        return output[:, longest:].tolist()

    return decode


@contextmanager
def running_server(folder: Path, python: Path) -> Iterator[SupervisedServer]:
    """Start an SGLang server as a run of this project does, with the weights of folder/model."""
    settings = SGLangConfig(
        python=python,
        concurrency=max(BATCHES),
        weight_transport="disk",
        max_restarts=0,
        startup_timeout_s=300,
    )
    plan = LaunchPlan(folder / "model", "cpu", "fp32", 0, settings)
    server = SupervisedServer(plan, 0, folder / "sglang.log")
    try:
        while server.url is None:
            server.raise_if_failed()
            time.sleep(0.2)
        yield server
    finally:
        server.close()


def _sglang(server: SupervisedServer) -> Method:
    def decode(prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        body = {
            "input_ids": [list(row) for row in prompts],
            "sampling_params": {"temperature": 0.0, "max_new_tokens": num_tokens, "ignore_eos": True},
        }
        reply = httpx.post(f"{server.url}/generate", json=body, timeout=600)
        assert reply.status_code == 200, reply.text
        return [row["output_ids"] for row in reply.json()]

    return decode


def _cpu_seconds(server: SupervisedServer) -> float:
    """Return the CPU seconds of a server's processes so far."""
    assert server.pid is not None
    main = psutil.Process(server.pid)
    times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
    return sum(each.user + each.system for each in times)
