"""One answer at a time over `Engine`: any kv method, any budget, and the memory that was promised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from holdall.dropins.tokenizer import json_file
from holdall.engine import Engine
from holdall.engine_text import Chooser
from holdall.errors import BadInput, BudgetError, HoldallError
from holdall.memory import release
from holdall.server.protocol import Event, Job, Memory

ANSWER = 256  # tokens of a context that are planned as answer
MODEST = 1024  # a context of which weights are not held coarser than they are to make it longer
UNTOLD = 1 << 17  # the window of a model that does not tell it


class Alone:
    """Opens the engine's weights beside a context as long as fits, and answers one job after the other.

    context: tokens of the longest prompt with its answer; None: the model's window, or what the memory holds.
    """

    slots = 1

    def __init__(self, engine: Engine, context: int | None = None):
        self.engine = engine
        self.window = window(engine)
        if context is not None and not 2 <= context <= self.window:
            raise BadInput("context", context, f"2 to {self.window} tokens (the model's window)")
        asked = context if context is not None else self._longest(engine.memory)
        engine.prepare(*parts(asked))
        if engine.memory is not None:  # weights that are there whole leave all the rest
            engine.beside = max(engine.beside, engine.memory - engine.used - self._whole())
        self._room = engine.beside if engine.memory is not None else _available()
        self.context = context if context is not None else self._fitting(self._room)
        self.weights = weight_bytes(engine.net)
        self._key: int | None = None
        self._most = self._given = 0
        self._tokens: Iterator[int | None] = iter(())

    def _longest(self, memory: int | None) -> int:
        """The context for which the weights are opened."""
        if memory is None:
            return min(self.window, MODEST)
        left = memory - self.engine.used - self._whole()
        return max(self._fitting(left), min(self.window, MODEST))

    def _whole(self) -> int:
        """Bytes of the weights when all of them are there."""
        source = self.engine.source
        return source.size if source.packed is None else max(source.packed.nbytes, source.size)

    def _fitting(self, room: int) -> int:
        """The longest context that fits beside the weights."""
        low, high = 1, self.window
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._need(*parts(middle)) <= room else (low, middle - 1)
        return low

    def _need(self, tokens: int, most: int) -> int:
        return min(p.total for p in self.engine.plans(tokens, most))

    def check(self, tokens: int, most: int) -> None:
        need = self._need(tokens, most)
        if need > self._room:
            raise BudgetError(self._room, need, who="the server", why=f"{tokens} tokens, {most} of answer")

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
        tokens, self._key, self._tokens = self._tokens, None, iter(())
        tokens.close()  # type: ignore[attr-defined]
        del tokens
        release()

    def memory(self) -> Memory:
        cache = self.engine.cache
        held = {} if cache is None else tiers(cache)
        full = 0 if cache is None else cache.get_seq_length() * self.engine.shape.token
        return Memory(self.weights, held, full, self.engine.memory)

    def close(self) -> None:
        if self._key is not None:
            self._end()


def parts(context: int) -> tuple[int, int]:
    """A context as a prompt and an answer."""
    answer = min(ANSWER, context // 2)
    return context - answer, max(1, answer)


def window(engine: Engine) -> int:
    """Tokens that the model was made for."""
    config = json_file(engine.source.files, "config.json")
    told = config.get("text_config", config).get("max_position_embeddings")
    return told if isinstance(told, int) and told > 1 else UNTOLD


def weight_bytes(net: Any) -> int:
    """Bytes of a model's weights as they are held, packed or not; shared ones once."""
    held: dict[int, int] = {}
    for tensor in [*net.parameters(), *net.buffers()]:
        held[tensor.data_ptr()] = max(tensor.nbytes, held.get(tensor.data_ptr(), 0))
    for module in net.modules():
        held |= {id(part): part.nbytes for part in getattr(module, "parts", ()) if hasattr(part, "nbytes")}
    return sum(held.values())


def tiers(cache: Any) -> dict[str, int]:
    """Bytes of a cache by the precision in which its entries are held."""
    found: dict[str, int] = {}
    for layer in list(cache.layers):
        state = getattr(layer, "state", None)
        entries = state.entries if state is not None else None
        if state is None and getattr(layer, "keys", None) is not None:
            found["whole"] = found.get("whole", 0) + layer.keys.nbytes + layer.values.nbytes
        elif entries is not None:
            for name, size in _entry_tiers(entries).items():
                found[name] = found.get(name, 0) + size
    return found


def _entry_tiers(entries: Any) -> dict[str, int]:
    told = getattr(entries, "tiers", None)
    if callable(told):
        return dict(told())
    return {"kept" if not entries.whole else "whole": entries.nbytes}


def _available() -> int:
    """What this machine could still give without anybody being killed for it."""
    import psutil

    return int(0.9 * psutil.virtual_memory().available)
