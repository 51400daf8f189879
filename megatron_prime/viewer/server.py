"""Serves the pages on this machine alone, and writes them again when a page is opened and the run has gone on."""

import secrets
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from megatron_prime.viewer.site import Site

HOST = "127.0.0.1"
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The pages have a stricter policy of their own, which adds to this one."""
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class LoopbackServer(ThreadingHTTPServer):
    """An HTTP server that this machine alone can reach.

    Pages of other sites may ask for it under names of their own, so handlers refuse requests whose Host is not in
    `hosts`.

    Args:
        handler: Class that answers a request.
        port: Port to listen on; 0 for any free one.

    Raises:
        ValueError: The port is in use or not allowed.
    """

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int) -> None:
        try:
            super().__init__((HOST, port), handler)
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"cannot serve on port {port} of {HOST} ({error}): name another port, or 0 for any free one"
            ) from error
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://{HOST}:{self.server_port}"


class ViewServer(LoopbackServer):
    """A server of a site's folder.

    Other users of the machine can connect to the port as well, so every address begins with a secret.

    Args:
        site: The pages.
        port: Port to listen on; 0 for any free one.

    Raises:
        ValueError: The port is in use or not allowed.
    """

    def __init__(self, site: Site, port: int = 0) -> None:
        super().__init__(_Handler, port)
        self.site = site
        self.secret = secrets.token_urlsafe(16)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Address of the first page."""
        return f"{super().url}/{self.secret}/index.html"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Say nothing when a browser has closed the connection, as it does when the reader leaves a page."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def refresh(self) -> None:
        """Write the pages again if a run has gone on; one that cannot be read at the moment keeps its pages."""
        with self._lock:
            try:
                self.site.update()
            except (ValueError, OSError) as error:
                print(f"the pages were not updated: {error}", flush=True)  # noqa: T201

    def file_of(self, address: str) -> Path | None:
        """Return the file of a request's path, or None if it does not lead to a file of the site."""
        prefix = f"/{self.secret}/"
        path = unquote(urlsplit(address).path)
        if not secrets.compare_digest(path[: len(prefix)].encode(), prefix.encode()) or "\0" in path:
            return None
        root = self.site.output.resolve()
        file = (root / (path[len(prefix) :] or "index.html").lstrip("/")).resolve()
        return file if file.is_relative_to(root) and file.suffix in _TYPES else None


class _Handler(SimpleHTTPRequestHandler):
    server: ViewServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def send_head(self) -> Any:  # noqa: ANN401
        """Answer GET and HEAD: the opened file, or None after an error."""
        if self.headers.get("Host") not in self.server.hosts:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "unknown host")
            return None
        file = self.server.file_of(self.path)
        if file is not None and file.suffix == ".html":
            self.server.refresh()
        try:
            opened = file.open("rb") if file is not None and file.is_file() else None
        except OSError:
            opened = None
        if file is None or opened is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{_TYPES[file.suffix]}; charset=utf-8")
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()
        return opened

    def end_headers(self) -> None:
        """Send the headers that every answer has."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        """Print nothing: the terminal belongs to the command."""
