"""An OpenAI-compatible server on loopback that does what the response to be judged commands, also what is wrong."""

import gzip
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RESPONSE = re.compile(r"\nResponse:\n<<<(\w+)\n(.*?)\n\1>>>", re.DOTALL)


class JudgeServer(ThreadingHTTPServer):
    """Answers in threads; `requests` has the bodies and the tokens, `tries` counts them by command."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.lock = threading.Lock()
        self.requests: list[tuple[dict[str, Any], str]] = []
        self.tries: Counter[str] = Counter()
        self.busy = self.most_busy = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        found = _RESPONSE.search(body["messages"][0]["content"])
        text = found[2] if found else "say Score: 1"
        with server.lock:
            server.requests.append((body, self.headers.get("Authorization", "")))
            server.tries[text] += 1
            number = server.tries[text]
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        command, _, argument = text.partition(" ")
        try:
            if self.path.partition("?")[0] != "/v1/chat/completions":
                self._answer(404, b"no such path")
            else:
                getattr(self, f"_{command}")(argument, number)
        finally:
            with server.lock:
                server.busy -= 1

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _complete(self, content: object, reason: str = "stop") -> None:
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": reason}
        self._answer(200, json.dumps({"choices": [choice]}).encode())

    def _say(self, argument: str, number: int) -> None:
        time.sleep(0.02)
        self._complete(argument)

    def _turns(self, argument: str, number: int) -> None:
        """Say one of several texts after the other."""
        texts = argument.split("|")
        self._complete(texts[(number - 1) % len(texts)])

    def _cut(self, argument: str, number: int) -> None:
        self._complete(argument, "length")

    def _null(self, argument: str, number: int) -> None:
        self._complete(None)

    def _status(self, argument: str, number: int) -> None:
        self._answer(int(argument), b"why")

    def _fails(self, argument: str, number: int) -> None:
        """Fail with a status a number of times, then judge."""
        status, _, times = argument.partition(" ")
        if number <= int(times):
            self._answer(int(status), b"busy", Retry_After="0")
        else:
            self._complete("Score: 10")

    def _drops(self, argument: str, number: int) -> None:
        """Cut the connection within the reply a number of times, then judge."""
        if number > int(argument):
            return self._complete("Score: 10")
        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"choi')
        self.close_connection = True
        return None

    def _hang(self, argument: str, number: int) -> None:
        time.sleep(float(argument))

    def _drip(self, argument: str, number: int) -> None:
        """Send a letter now and then, for longer than anyone waits."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        try:
            for _ in range(600):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    def _raw(self, argument: str, number: int) -> None:
        self._answer(200, argument.encode("utf-8", "surrogatepass"))

    def _big(self, argument: str, number: int) -> None:
        self._answer(200, b" " * (5 << 20))

    def _gzip(self, argument: str, number: int) -> None:
        bomb = gzip.compress(b" " * (64 << 20), 1)
        self._answer(200, bomb, Content_Encoding="gzip")

    def _echo(self, argument: str, number: int) -> None:
        """Repeat the address and headers of the request, with a status or as a verdict."""
        text = f"no {self.path} for {self.headers.get('Authorization')}"
        if argument == "200":
            self._complete(f"{text}. Score: 3")
        else:
            self._answer(int(argument), text.encode())

    def log_message(self, *arguments: Any) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]
