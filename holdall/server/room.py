"""How much memory there is beside the weights, how long a context fits into it, and what is in it now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdall.dropins.tokenizer import json_file
from holdall.engine import Engine
from holdall.errors import BadInput

ANSWER = 256  # tokens of a context with a kv method that are planned as answer
MODEST = 1024  # a context for which weights may be held coarser than they are
UNTOLD = 1 << 17  # the window of a model that does not tell it


@dataclass(frozen=True)
class Room:
    """beside: bytes for contexts and workspace; context: tokens of the longest prompt with its answer."""

    beside: int
    context: int

    @classmethod
    def make(cls, engine: Engine, context: int | None = None) -> Room:
        """Open the engine's weights beside a context as long as fits; BudgetError with the least that would do.

        context: None takes the model's window, or what the memory holds; weights are held coarser than they are
        only where not even `MODEST` tokens would fit.
        """
        widest = window(engine)
        if context is not None and not 2 <= context <= widest:
            raise BadInput("context", context, f"2 to {widest} tokens (the model's window)")
        if engine.memory is None:
            engine.prepare(*parts(engine, context or min(widest, MODEST)))
            return cls(room := available(), context or fitting(engine, room, widest))
        left = engine.memory - engine.used - _whole(engine)
        engine.prepare(*parts(engine, context or max(fitting(engine, left, widest), min(widest, MODEST))))
        engine.beside = max(engine.beside, left)  # weights that are there whole leave all the rest
        return cls(engine.beside, context or fitting(engine, engine.beside, widest))


def parts(engine: Engine, context: int) -> tuple[int, int]:
    """A context as the prompt and answer that it is planned for."""
    answer = 1 if engine.kv is None else max(1, min(ANSWER, context // 2))
    return context - answer, answer


def need(engine: Engine, tokens: int, most: int) -> int:
    """Bytes beside the weights for such a prompt and answer."""
    return min(p.total for p in engine.plans(tokens, most))


def fitting(engine: Engine, room: int, widest: int) -> int:
    """The longest context that fits."""
    low, high = 2, widest
    while low < high:
        middle = (low + high + 1) // 2
        fits = need(engine, *parts(engine, middle)) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def window(engine: Engine) -> int:
    """Tokens that the model was made for."""
    config = json_file(engine.source.files, "config.json")
    told = config.get("text_config", config).get("max_position_embeddings")
    return told if isinstance(told, int) and told > 1 else UNTOLD


def _whole(engine: Engine) -> int:
    """Bytes of the weights when all of them are there."""
    source = engine.source
    return source.size if source.packed is None else max(source.packed.nbytes, source.size)


def available() -> int:
    """What this machine could still give without anybody being killed for it."""
    import psutil

    return int(0.8 * psutil.virtual_memory().available)


def weight_bytes(net: Any) -> int:
    """Bytes of a model's weights as they are held, packed or not; shared ones once."""
    held: dict[int, int] = {}
    for tensor in [*net.parameters(), *net.buffers()]:
        held[tensor.data_ptr()] = max(tensor.nbytes, held.get(tensor.data_ptr(), 0))
    for module in net.modules():
        held |= {id(part): part.nbytes for part in getattr(module, "parts", ()) if hasattr(part, "nbytes")}
    return sum(held.values())


def tiers(cache: Any) -> dict[str, int]:
    """Bytes of a cache by how its entries are held: all of them, those that were kept, those in fewer bits."""
    found: dict[str, int] = {}
    if not hasattr(cache, "layers"):  # of the lean decoder
        return {"whole": cache.nbytes}
    for layer in list(cache.layers):
        state = getattr(layer, "state", None)
        if state is None and getattr(layer, "keys", None) is not None:
            found["whole"] = found.get("whole", 0) + layer.keys.nbytes + layer.values.nbytes
        elif state is not None and state.entries is not None:
            for name, size in _by_tier(state.entries).items():
                found[name] = found.get(name, 0) + size
    return found


def _by_tier(entries: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for _, group in getattr(entries, "groups", ()):  # heads that are held by themselves
        for name, size in _by_tier(group).items():
            found[name] = found.get(name, 0) + size
    if found:
        return found
    for tier in getattr(entries, "tiers", ()):
        name = f"{tier.values[0].bits} bit"
        found[name] = found.get(name, 0) + sum(t.nbytes for t in tier.tensors())
    kept = entries.nbytes - sum(found.values())
    return {"whole" if entries.whole and not found else "kept": kept, **found}
