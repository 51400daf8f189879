"""A real SGLang server for chat completions: a tiny random model with a tokenizer of bytes and a chat template."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.engines.sglang.loader.serve import KEY_VARIABLE
from megatron_prime.engines.sglang.server import SupervisedServer
from tests.support.deadlines import wait_until
from tests.support.sglang_live import sglang_settings
from tests.support.tiny_models import tiny_model
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer

KEY = "key-of-the-judge"
NUM_POSITIONS = 4096
"""Length of the context, in which a request with the default template has room."""


@dataclass(frozen=True, slots=True)
class _ChatPlan(LaunchPlan):
    """Starts a server with a tokenizer, and with SGLang's own API key."""

    def command(self, server_index: int, port: int) -> list[str]:
        words = LaunchPlan.command(self, server_index, port)
        return [*(word for word in words if word != "--skip-tokenizer-init"), "--api-key", KEY]

    def key_variables(self, url: str) -> dict[str, str]:
        return {KEY_VARIABLE: KEY}


@contextlib.contextmanager
def chat_server(folder: Path) -> Iterator[str]:
    """Yield the address of a server, which ends with the block."""
    settings = sglang_settings(weight_transport="disk")  # skips the test where there is no engine environment
    model = tiny_model("shallow qwen2")
    model.config.max_position_embeddings = NUM_POSITIONS
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    server = SupervisedServer(_ChatPlan(folder / "model", "cpu", "fp32", 0, settings), 0, folder / "log")
    try:

        def address() -> str | None:
            server.raise_if_failed()
            return server.url

        yield wait_until(address, settings.startup_timeout_s)
    finally:
        server.close()
