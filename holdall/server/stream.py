"""Answers as server-sent events, and clients that go away in the middle."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdall.server import faults, schemas
from holdall.server.faults import Refusal
from holdall.server.metrics import Metrics
from holdall.server.service import Service
from holdall.server.ticket import Ticket, Told


@asynccontextmanager
async def watched(receive: Receive, service: Service, ticket: Ticket) -> AsyncIterator[None]:
    """Inside, a client that goes away ends its request; its memory is free before the engine's next step."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        service.worker.drop(ticket)
        ticket.news.put_nowait(Told(fault=faults.gone()))

    task = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Form:
    """The words of one kind of answer: chat or plain."""

    def __init__(self, service: Service, chat: bool):
        self.chat, self.model = chat, service.settings.name
        self.id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())

    def whole(self, text: str, end: str, usage: schemas.Usage) -> dict[str, Any]:
        choice = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        told = self._around("chat.completion" if self.chat else "text_completion", choice, end)
        return {**told, "usage": usage.model_dump()}

    def piece(self, text: str | None, end: str | None = None, first: bool = False) -> dict[str, Any]:
        if not self.chat:
            return self._around("text_completion", {"text": text or ""}, end)
        delta: dict[str, str] = {"role": "assistant", "content": ""} if first else {}
        if text is not None and not first:
            delta = {"content": text}
        return self._around("chat.completion.chunk", {"delta": delta}, end)

    def used(self, usage: schemas.Usage) -> dict[str, Any]:
        told = self._around("chat.completion.chunk" if self.chat else "text_completion", {}, None)
        return {**told, "choices": [], "usage": usage.model_dump()}

    def _around(self, kind: str, choice: Mapping[str, Any], end: str | None) -> dict[str, Any]:
        choices = [{"index": 0, **choice, "logprobs": None, "finish_reason": end}]
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices
        }  # fmt: skip


class EventStream(Response):
    """Sends an answer while it is made. It begins when there is something to send, so that what goes wrong before
    that has a status of its own; what goes wrong later is an event of the stream."""

    def __init__(
        self, service: Service, ticket: Ticket, first: Told, form: Form, usage: bool, metrics: Metrics
    ):
        self.service, self.ticket, self.first, self.form = service, ticket, first, form
        self.with_usage, self.metrics = usage, metrics
        self.status_code, self.background = 200, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async with watched(receive, self.service, self.ticket):
                async for event in self._events():
                    await self._send(send, f"data: {event}\n\n".encode())
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Refusal:  # nobody is there to be told
            pass
        finally:
            self.service.worker.drop(self.ticket)

    async def _events(self) -> AsyncIterator[str]:
        form, news = self.form, self.first
        if form.chat:
            yield json.dumps(form.piece(None, first=True))
        try:
            while True:
                if news.text:
                    yield json.dumps(form.piece(news.text))
                if news.end:
                    yield json.dumps(form.piece(None, news.end))
                    break
                news = await self.service.told(self.ticket)
        except Refusal as fault:
            if fault.status == 499:
                raise
            yield json.dumps(fault.body())
            return
        self.metrics.answered(self.ticket)
        if self.with_usage:
            yield json.dumps(form.used(self.service.usage(self.ticket)))
        yield "[DONE]"

    async def _send(self, send: Send, body: bytes) -> None:
        """A client that does not read for too long is as good as gone."""
        try:
            async with asyncio.timeout(self.service.settings.idle):
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise faults.gone() from None
