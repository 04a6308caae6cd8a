"""One answer at a time over `Engine`: any kv method, any budget, and the memory that was promised."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from holdall.engine import Engine
from holdall.engine_text import Chooser
from holdall.errors import BudgetError, HoldallError
from holdall.memory import release
from holdall.server.protocol import Event, Job, Memory
from holdall.server.room import Room, need, tiers, weight_bytes


class Alone:
    """Answers one job after the other."""

    slots = 1

    def __init__(self, engine: Engine, context: int | None = None):
        self.engine, room = engine, Room.make(engine, context)
        self.context, self._beside = room.context, room.beside
        self._weights = weight_bytes(engine.net)
        self._key: int | None = None
        self._most = self._given = 0
        self._tokens: Any = None

    def check(self, tokens: int, most: int) -> None:
        least = need(self.engine, tokens, most)
        if least > self._beside:
            why = f"{tokens} tokens, {most} of answer"
            raise BudgetError(self._beside, least, who="the server", why=why)

    def admits(self, job: Job) -> bool:
        return self._key is None

    def submit(self, key: int, job: Job) -> None:
        choose = Chooser(job.temperature, job.seed, job.top_p)
        self._key, self._most, self._given = key, job.most, 0
        self._tokens = self.engine.tokens(list(job.ids), job.most, choose)

    def cancel(self, key: int) -> None:
        if key == self._key:
            self._end()

    def step(self) -> list[Event]:
        key = self._key
        if key is None:
            return []
        try:
            token = next(self._tokens)
        except StopIteration:
            self._end()
            return [Event(key, end="stop")]
        except HoldallError as fault:
            self._end()
            return [Event(key, fault=fault)]
        if token is None:
            return []
        self._given += 1
        if self._given < self._most:
            return [Event(key, token)]
        self._end()
        return [Event(key, token, "length")]

    def _end(self) -> None:
        tokens: Generator[int | None] = self._tokens
        self._key = self._tokens = None
        tokens.close()
        del tokens
        release()

    def memory(self) -> Memory:
        cache = self.engine.cache
        held = {} if cache is None else tiers(cache)
        full = 0 if cache is None else cache.get_seq_length() * self.engine.shape.token
        return Memory(self._weights, held, full, self.engine.memory)

    def close(self) -> None:
        if self._key is not None:
            self._end()
