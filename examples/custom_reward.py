"""Custom reward functions: one of text and answer, and one that also reads the prompt and the row.

    PYTHONPATH=examples megatron-prime train run.toml reward.verifier=custom_reward:concise_match
    PYTHONPATH=examples megatron-prime train run.toml reward.verifier=custom_reward:match_in_words

or as a server, which may be written in any language and run on any machine (docs/rewards.md has the protocol):

    python -m examples.custom_reward --port 8000
    megatron-prime train run.toml reward.verifier=http://127.0.0.1:8000/verify
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FREE_WORDS = 200


def concise_match(response_text: str, answer: str) -> float:
    """Return 1 if the last word is the answer, less (down to 0.5) for FREE_WORDS to 2 * FREE_WORDS words; else 0."""
    words = response_text.split()
    if not words or words[-1] != answer.strip():
        return 0.0
    excess = max(0, len(words) - FREE_WORDS) / FREE_WORDS
    return 1.0 - 0.5 * min(1.0, excess)


def match_in_words(
    response_text: str, answer: str, messages: list[dict[str, str]], metadata: dict[str, Any]
) -> float:
    """Return `concise_match`, but 0 for too many words: more than the row's max_words, or than the prompt has."""
    limit = metadata.get("max_words") or sum(len(message["content"].split()) for message in messages)
    return concise_match(response_text, answer) if len(response_text.split()) <= limit else 0.0


class RewardHandler(BaseHTTPRequestHandler):
    """Answers POST {"response": ..., "answer": ...} with {"reward": ...}."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Score one response."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        # The request also has messages, metadata and more; see docs/rewards.md.
        body = json.dumps({"reward": concise_match(request["response"], request["answer"])}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing, rather than one line per request."""


def main() -> None:
    parser = argparse.ArgumentParser(description="serve concise_match")
    parser.add_argument("--port", type=int, default=8000)
    with ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), RewardHandler) as server:
        print(f"http://127.0.0.1:{server.server_port}/verify", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
