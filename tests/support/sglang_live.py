"""Shared parts of tests on real SGLang servers: the engine environment, models as oracles, prompts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_prime.config.tables.rollout import SGLANG_RESERVED_POSITIONS, SGLangConfig
from megatron_prime.engines.dialogue import DialogueSettings
from megatron_prime.engines.requests import ModelLimits
from megatron_prime.engines.sglang.client import SGLangClient
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.rollout.episode import Environments
from megatron_prime.types import Prompt, SamplingParams

ROOT = Path(__file__).parents[2]


def engine_python() -> Path:
    """Return the interpreter of the engine environment; skip the test if there is none."""
    named = os.environ.get("MEGATRON_PRIME_SGLANG_PYTHON")
    built = ROOT / ".venv-sglang"
    python = Path(named) if named else built / "bin" / "python"
    # An interrupted installation leaves an interpreter too.
    if not python.is_file() or not (named or (built / ".installed").is_file()):
        pytest.skip(
            f"no SGLang environment at {python}: `make sglang` builds it, or name its interpreter in "
            "MEGATRON_PRIME_SGLANG_PYTHON"
        )
    return python


def sglang_settings(**changes: Any) -> SGLangConfig:
    return SGLangConfig(
        python=engine_python(), concurrency=32, max_restarts=20, startup_timeout_s=400, control_timeout_s=60
    ).model_copy(update=changes)


def attachment(engine: SGLangEngine, folder: Path) -> dict[str, Any]:
    """Return the settings of another engine that attaches to the servers that an engine has started."""
    assert engine.fleet is not None
    urls = tuple(server.url or "" for server in engine.servers)
    path = folder / "api_keys"
    path.touch(0o600)
    path.write_text("\n".join(engine.fleet.api_key(index, url) for index, url in enumerate(urls)))
    return {"urls": urls, "api_key_file": path}


@dataclass(frozen=True)
class LiveModel:
    path: Path
    hf: Any

    def greedy(self, prompt_ids: tuple[int, ...], num_tokens: int) -> list[int]:
        ids = torch.tensor([prompt_ids])
        for _ in range(num_tokens):
            ids = torch.cat([ids, self.hf(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        return ids[0, len(prompt_ids) :].tolist()

    def is_greedy(self, prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> bool:
        """Return whether each token of a response is HF's most probable one, with one forward pass for all of them."""
        logits = self.hf(torch.tensor([(*prompt_ids, *response_ids)])).logits[0, len(prompt_ids) - 1 : -1]
        return logits.argmax(-1).tolist() == list(response_ids)

    def logprobs(self, prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], temperature: float = 1.0):
        logits = self.hf(torch.tensor([(*prompt_ids, *response_ids)])).logits[0].double() / temperature
        table = logits.log_softmax(-1)[len(prompt_ids) - 1 : -1]
        return table.gather(1, torch.tensor(response_ids)[:, None])[:, 0]


def live_prompts(num_prompts: int) -> list[Prompt]:
    return [
        Prompt(index, tuple((7 * index + place) % 300 for place in range(1 + index % 5)), "")
        for index in range(num_prompts)
    ]


def dialogues(params: SamplingParams, environments: Environments | None = None) -> DialogueSettings:
    """Return the settings of responses of the live models."""
    return DialogueSettings(params, ModelLimits(300, 128, SGLANG_RESERVED_POSITIONS), environments)


async def rename(client: SGLangClient, name: str) -> None:
    """Rename a server's weights, as somebody else would."""
    await client._call("/update_weight_version", {"new_version": name, "abort_all_requests": False})
