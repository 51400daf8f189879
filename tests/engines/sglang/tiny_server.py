"""An HTTP server with SGLang's paths, to test supervision without the half minute that SGLang takes to start.

python tiny_server.py PORT [dies | never-ready]

It imports the standard library only: tests start it many times, and importing torch would take seconds each time.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

KEY = os.environ.get("MEGATRON_PRIME_SERVER_KEY")


class Handler(BaseHTTPRequestHandler):
    version = "default"
    calls: ClassVar[list] = []
    """Every POST: path and tags."""
    given_up: ClassVar[set] = set()
    hangs = False
    """Whether the scheduler hangs, which the HTTP process does not notice."""

    def do_GET(self):
        if self.path == "/health":
            self.ask_scheduler()
        self.answer({"weight_version": Handler.version, "calls": Handler.calls})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/generate":
            self.ask_scheduler()
            meta = {"finish_reason": {"type": "length"}, "weight_version": Handler.version}
            meta["output_token_logprobs"] = [[-1.0, 1, None]]
            self.answer({"output_ids": [1], "meta_info": meta})
            return
        Handler.hangs |= self.path == "/hang"
        Handler.calls.append([self.path, *body.get("tags", [])])
        Handler.version = body.get("weight_version", Handler.version)
        self.change_memory(set(body.get("tags", [])))
        self.answer({"success": True})

    def ask_scheduler(self):
        while Handler.hangs:
            time.sleep(1)

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
        self.send_response(200 if not KEY or self.headers["Authorization"] == f"Bearer {KEY}" else 401)
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
