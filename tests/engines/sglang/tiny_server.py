"""A server of the standard library with SGLang's paths, to test supervision without half a minute of start.

python tiny_server.py PORT [dies | never-ready]
"""

import json
import os
import sys
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.launch import LaunchPlan


@dataclass(frozen=True, slots=True)
class TinyPlan(LaunchPlan):
    """Starts this file instead of SGLang."""

    mode: str = ""

    def command(self, server_index, port):
        return [sys.executable, __file__, str(port), self.mode]

    def environment(self, server_index, inherited):
        return dict(inherited) | {"PYTHONPATH": ":".join(sys.path)}


def tiny_plan(mode="", **settings):
    return TinyPlan("model", "cpu", "fp32", 0, SGLangConfig(**settings), mode=mode)


class Handler(BaseHTTPRequestHandler):
    version = "default"
    calls: ClassVar[list] = []
    """Every POST: path and tags."""
    given_up: ClassVar[set] = set()

    def do_GET(self):
        self.answer({"weight_version": Handler.version, "calls": Handler.calls})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.calls.append([self.path, *body.get("tags", [])])
        Handler.version = body.get("weight_version", Handler.version)
        self.change_memory(set(body.get("tags", [])))
        self.answer({"success": True})

    def change_memory(self, tags):
        """As SGLang does: a tag that was not given up ends the whole server."""
        if self.path == "/release_memory_occupation":
            Handler.given_up |= tags
        elif self.path == "/resume_memory_occupation":
            if not tags <= Handler.given_up:
                os._exit(1)
            Handler.given_up -= tags

    def answer(self, fields):
        content = json.dumps(fields).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args): ...


if __name__ == "__main__":
    if sys.argv[2] == "dies":
        sys.exit("out of memory, say")
    if sys.argv[2] == "never-ready":
        sys.stdin.read()
        while True:
            pass
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
