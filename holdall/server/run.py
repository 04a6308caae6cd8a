"""Sockets, signals, and a shutdown in which answers are finished."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import uvicorn

from holdall.budget import Budget
from holdall.engine import Engine
from holdall.errors import BadInput, human_bytes
from holdall.kinds import Spend
from holdall.kv.base import KVSelector
from holdall.meter import resident_bytes
from holdall.server import app, faults
from holdall.server.alone import Alone
from holdall.server.guard import is_loopback
from holdall.server.protocol import Runner
from holdall.server.service import Service

_LAST = 5  # seconds in which abandoned clients are told so


def listen(host: str, port: int) -> socket.socket:
    """The server's socket, before anything slow is done: a port that is taken is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.create_server((host.strip("[]"), port), family=family, backlog=512)
    except OverflowError:
        raise BadInput("--port", port, "0 (any that is free) to 65535") from None
    except socket.gaierror:
        raise BadInput("--host", host, "an address of this machine") from None
    except OSError as fault:
        wanted = f"an address and a port that are free ({fault.strerror or fault})"
        raise BadInput("--host and --port", f"{host}:{port}", wanted) from None
    return found


def open_runner(
    path: str, memory: Spend, kv: KVSelector | None, budget: Spend, context: int | None, slots: int
) -> tuple[Runner, Engine, int]:
    """What generates, its engine, and the resident bytes before it was opened.

    Contexts that are kept whole stand in mapped slots, and their answers are given together; a kv method judges one
    context at a time, and slots are mapped with Linux's calls.
    """
    asked, free = Budget.parse(memory), psutil.virtual_memory().available
    if asked is not None and asked.bytes is not None and asked.bytes > free:
        raise BadInput(
            "memory", human_bytes(asked.bytes), f"at most the {human_bytes(free)} that are free here"
        )
    together = kv is None and slots > 1 and sys.platform.startswith("linux")
    if together:
        from holdall.server.batched import compiled

        compiled()
    base = resident_bytes()
    engine = Engine.open(path, memory, kv, budget)
    if together:
        from holdall.server.batched import Batched

        return Batched(engine, context, slots), engine, base
    return Alone(engine, context), engine, base


def known(engine: Engine, path: str, budget: Spend, report: str | None) -> dict[str, Any]:
    """What is known of the quality of the methods in use: from the artefact's header, and from a stored measurement.

    report: a file that `holdall measure kv.METHOD --json` wrote.
    """
    packed, kv = engine.source.packed, engine.kv
    weights = None if packed is None else (packed.meta.get("method") or {}).get("method")
    name = None if kv is None else kv.full_name()
    how = f"holdall measure {name} --budget {budget or 'none'} --json > report.json" if name else ""
    told = None
    if report is not None:
        stored = _stored(report)
        if stored.get("method") != name:
            raise BadInput("--report", f"{report}, of {stored.get('method')}", f"a measurement of {name}")
        told = {**stored["report"], "budget": stored.get("budget")}
    return {
        "model": path, "weights": weights, "kv": name, "kv_budget": None if budget is None else str(budget),
        "weights_report": packed.meta.get("report") if packed is not None else None, "kv_report": told, "how": how,
    }  # fmt: skip


def _stored(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("report"), dict):
        raise BadInput("--report", path, "what `holdall measure kv.METHOD --json` prints")
    return found


def serve(
    service: Service, quality: dict[str, Any], listener: socket.socket, ready: Callable[[], None]
) -> None:
    """Answer until a signal comes; then finish what was begun."""
    settings = service.settings
    if settings.api_key is None and not is_loopback(settings.host):
        logging.getLogger("holdall.server").warning("anybody who reaches %s can ask", settings.host)
    made = app.create(service, quality)
    config = uvicorn.Config(
        made,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=math.ceil(settings.idle),
        timeout_graceful_shutdown=math.ceil(settings.grace) + _LAST,
    )
    try:
        Server(config, service, ready).run([listener])
    finally:
        service.worker.close()


class Server(uvicorn.Server):
    """uvicorn's, where the first signal lets answers finish, and the second ends them with a proper error."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None] = lambda: None):
        super().__init__(config)
        self.service, self.ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.worker.stop()
        later = self._loop.call_later(self.service.settings.grace, self._abandon)
        await super().shutdown(sockets)
        later.cancel()

    def _abandon(self) -> None:
        self.service.worker.abandon(faults.stopping())

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a stop that was asked for is no failure: the signal is not raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._loop.call_soon_threadsafe(self._abandon)
        self.should_exit = True
