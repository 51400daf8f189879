"""A launch plan whose servers are `tiny_server` processes."""

import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.launch import LaunchPlan

TINY_SERVER = Path(__file__).with_name("tiny_server.py")


@dataclass(frozen=True, slots=True)
class TinyPlan(LaunchPlan):
    """Starts `tiny_server` instead of SGLang."""

    mode: str = ""

    def command(self, server_index, port):
        return [sys.executable, str(TINY_SERVER), str(port), self.mode]

    def environment(self, server_index, inherited):
        return dict(inherited)


def tiny_plan(mode="", secret="", **settings):
    return TinyPlan("model", "cpu", "fp32", 0, SGLangConfig(**settings), secret=secret, mode=mode)
