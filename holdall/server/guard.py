"""Who may call, and how large a request may be; before anything else looks at it."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdall.server import faults
from holdall.server.faults import Refusal
from holdall.server.service import Settings

OPEN = ("/", "/health")  # need no key: a page without data, and whether the server lives


class Guard:
    """ASGI middleware: host, key, type, size and patience.

    Whoever listens on loopback is reached by other sites' pages too, through a browser on this machine: their
    requests name another host, or are not JSON, and are refused. Bodies are read here, whole and within a limit;
    more requests at a time than can ever be answered are refused before their bodies are read.
    """

    def __init__(self, app: ASGIApp, settings: Settings, places: int):
        self.app, self.settings = app, settings
        self.loopback = is_loopback(settings.host)
        self.places, self.inside = places, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.app(scope, receive, send)
                return
            if self.inside >= self.places:
                raise faults.full(1.0)
            self.inside += 1
            try:
                body = await self._body(scope, receive)
                await self.app(scope, _again(body, receive), send)
            finally:
                self.inside -= 1
        except Refusal as fault:
            await refuse(fault, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.loopback and not is_loopback(_name(headers.get("host", "localhost"))):
            message = "this server answers to localhost only; start it with --host to let others in"
            raise Refusal(403, message, "wrong_host")
        key = self.settings.api_key
        if key is not None and scope["path"] not in OPEN:
            word, _, given = headers.get("authorization", "").partition(" ")
            if word.lower() != "bearer" or not hmac.compare_digest(
                given.strip().encode("latin-1"), key.encode()
            ):
                raise Refusal(401, "wrong or missing API key (Authorization: Bearer ...)", "invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        headers, most = Headers(scope=scope), self.settings.body
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        chunks, size, more = [], 0, True
        while more:
            message = await self._next(receive)
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > most:
                raise _too_large(most)
            more = message.get("more_body", False)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if size and kind != "application/json":
            raise Refusal(415, f"got {kind[:60] or 'no content type'}; wanted application/json", "wrong_type")
        return b"".join(chunks)

    async def _next(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self.settings.idle):
                message = await receive()
        except TimeoutError:
            raise Refusal(408, f"nothing came for {self.settings.idle:g} seconds", "timeout") from None
        if message["type"] == "http.disconnect":
            raise faults.gone()
        return message


def is_loopback(host: str) -> bool:
    """Whether only this machine is reached under that name."""
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def _name(host: str) -> str:
    """Without the port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the request is larger than {most} bytes", "request_too_large")


def _again(body: bytes, receive: Receive) -> Receive:
    """What was read is given once more; then whatever follows (that the client goes away)."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def refuse(fault: Refusal, send: Send) -> None:
    """Tell a client that the routes never saw. The connection is closed: its body may not have been read."""
    body = json.dumps(fault.body()).encode()
    headers = [(k.lower().encode(), v.encode()) for k, v in fault.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
