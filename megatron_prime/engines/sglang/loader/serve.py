"""Start an SGLang server that answers nobody without its key: `python -m PACKAGE.serve ARGUMENTS OF SGLANG`.

SGLang's own `--api-key` would show the key to every user of the machine, SGLang writes its arguments to its log, and it
answers some calls without a key. Here the key comes from the environment, which only the owner of a process can read,
goes to no argument, and is required for every call.
"""

import hmac
import importlib
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

KEY_VARIABLE = "MEGATRON_PRIME_SERVER_KEY"
"""Environment variable with the key."""

_App = Callable[[Any, Any, Any], Awaitable[None]]


class KeyGate:
    """ASGI middleware that answers 401 to every request without `Authorization: Bearer KEY`."""

    def __init__(self, app: _App, *, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - the types of ASGI
        """Pass a request on, or refuse it."""
        # The other scope is the application's own start and end.
        if scope["type"] in ("http", "websocket"):
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(given) != 1 or not hmac.compare_digest(given[0], self._expected):
                await _refuse(scope["type"], send)
                return
        await self._app(scope, receive, send)


async def _refuse(kind: str, send: Any) -> None:  # noqa: ANN401 - the types of ASGI
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})


def main() -> None:
    """Run the server until it ends."""
    # Removed from the environment, so that no child of the server inherits it.
    key = os.environ.pop(KEY_VARIABLE, "")
    if not key:
        sys.exit(f"{KEY_VARIABLE} is not set: give the server its API key by this environment variable")
    # These are the steps of `python -m sglang.launch_server`, with one in between.
    launch_server, plugins, server_args, process_tools = (
        importlib.import_module(f"sglang.{name}")
        for name in ("launch_server", "srt.plugins", "srt.server_args", "srt.utils")
    )
    plugins.load_plugins()
    arguments = server_args.prepare_server_args(sys.argv[1:])
    try:
        # SGLang can import its HTTP server only after it has resolved the arguments.
        arguments.resolve_once()
        app = importlib.import_module("sglang.srt.entrypoints.http_server").app
        app.add_middleware(KeyGate, key=key)
        launch_server.run_server(arguments)
    finally:
        process_tools.kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
