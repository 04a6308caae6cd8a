"""The page's server: one page and a few buffers from memory, for a browser on this machine and nobody else.

Python's own http.server: nothing is computed per request, so that what `serve` needs would be an extra for nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from holdall.errors import BadInput

FILES = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".vert": "text/plain; charset=utf-8",
    ".frag": "text/plain; charset=utf-8",
}
_LOCAL = ("127.0.0.1", "localhost")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass
class Site:
    """All that can be asked for: path -> (type, bytes). quality may change while it is shown."""

    pages: Mapping[str, tuple[str, Any]]
    quality: dict[str, Any] = field(default_factory=lambda: {"state": "measuring"})

    def find(self, path: str) -> tuple[str, Any] | None:
        if path == "/quality.json":
            return "application/json", json.dumps(self.quality).encode()
        return self.pages.get(path)


def site(facts: Mapping[str, Any], buffers: list[Any]) -> Site:
    """The page's own files, what is known of the scenes, and a buffer for each."""
    pages: dict[str, tuple[str, Any]] = {
        f"/{p.name}": (_TYPES[p.suffix], p.read_bytes()) for p in FILES.iterdir() if p.suffix in _TYPES
    }
    pages["/"] = pages["/index.html"]
    pages["/scenes.json"] = "application/json", json.dumps(facts).encode()
    for i, buffer in enumerate(buffers):
        pages[f"/scene/{i}"] = "application/octet-stream", memoryview(buffer).cast("B")
    return Site(pages)


class Server(ThreadingHTTPServer):
    """Listens on loopback from the start; `serve_forever` answers."""

    daemon_threads = True
    allow_reuse_address = False  # on some systems two would share a port

    def __init__(self, port: int, shown: Site | None = None):
        self.shown = shown
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as fault:
            wanted = f"a port that is free, or 0 ({fault.strerror or fault})"
            raise BadInput("--port", port, wanted) from None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers that leave in the middle are no news; anything else is."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def begin(self) -> threading.Thread:
        """Answers from a thread of its own, until `shutdown`."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        return thread


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of what the site holds, asked for under this machine's own name.

    Other sites' pages reach loopback through a browser here: by a name of theirs (refused), or by ours, and then no
    header lets them read the answer.
    """

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")
        name = host[0] if host[2].isdigit() else host[2]
        if name not in _LOCAL:
            self._answer(403, "text/plain; charset=utf-8", b"this page is for http://127.0.0.1 only")
            return
        shown = self.server.shown
        found = shown and shown.find(self.path.partition("?")[0])
        if found:
            self._answer(200, *found)
        else:
            self._answer(404, "text/plain; charset=utf-8", b"nothing of that name is shown here")

    do_HEAD = do_GET

    def _answer(self, status: int, kind: str, body: Any) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}.items():
            self.send_header(name, value)
        if status != 200:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "holdall"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a terminal is not flooded with what a page asks for."""
