"""Many answers at a time: continuous batching over mapped slots, for contexts that are kept whole."""

from __future__ import annotations

import numpy as np

from holdall.batching import Batch, Request
from holdall.engine import Engine
from holdall.engine_plan import CHUNK
from holdall.engine_text import Chooser
from holdall.errors import BudgetError
from holdall.kv.pages import Geometry
from holdall.kv.vattention import VAttention
from holdall.kv.virtual import SMALLEST
from holdall.server.protocol import Event, Job, Memory
from holdall.server.room import Room, weight_bytes

_F32 = np.float32
PAGE = 64 << 10  # bytes of a page group, where the pool is large enough for some in each slot


def compiled() -> None:
    """Compile the kernels of a step, once after an installation (some ten seconds), or load them.

    Before memory is measured: theirs is no model's. And before anybody asks: no request must wait for it.
    """
    from holdall.kv.slot_attention import attend, write
    from holdall.weights.kernels import few

    one, place, none = np.zeros((1, 1, 16), _F32), np.zeros(1, np.int64), np.zeros(1, np.int64)
    for kind in (_F32, np.uint16):
        rows = np.zeros((4, 16), kind)
        few(rows, one[0], np.zeros((1, 4), _F32), 0, 4)
        write(rows.reshape(-1), rows.reshape(-1), rows[:1], rows[:1], place)
        flat, steps = rows.reshape(-1), np.array([16, 16])
        attend(one, flat, flat, place, steps, none, none + 1, 1.0, np.zeros_like(one), 0, 1)


class Batched:
    """Up to `slots` answers share each pass over the weights; their contexts share what is left beside these.

    A job is admitted when its prompt and its longest answer are certain to fit beside what is promised to others.
    A prompt that begins as another context does is read from there on only.
    """

    def __init__(self, engine: Engine, context: int | None = None, slots: int = 8):
        room = Room.make(engine, context)
        self.engine, self.slots = engine, slots
        shape, net = engine.shape, engine.net
        work = engine.plan(room.context, 1, CHUNK).workspace + slots * 8 * shape.vocabulary
        pool = max(0, room.beside - work)
        geometry = Geometry.of(net.config, str(net.dtype).removeprefix("torch."))
        page = PAGE
        while page > SMALLEST and slots * 2 * geometry.layers * page > pool // 4:
            page //= 2
        method = VAttention(slots=slots, length=room.context, page=page)
        pool = min(pool, method.whole(geometry))
        chunk = max(1, CHUNK - slots)  # with a token of everybody else it is what the workspace is for
        self.batch = Batch(net, method.open(geometry, pool), engine.tokenizer.eos, chunk)
        self.context = self._longest(room.context)
        self._weights = weight_bytes(net)

    def _longest(self, most: int) -> int:
        """Pages are whole: the last tokens may have no place."""
        slots, low, high = self.batch.slots, 1, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if slots.cost(middle) <= slots.budget else (low, middle - 1)
        if low < 2:
            raise BudgetError(slots.budget, slots.cost(2), who="the server", why="a context of two tokens")
        return low

    def check(self, tokens: int, most: int) -> None:
        self.batch.check(tokens, most)

    def admits(self, job: Job) -> bool:
        return self.batch.admits(Request(job.ids, job.most))

    def submit(self, key: int, job: Job) -> None:
        choose = Chooser(job.temperature, job.seed, job.top_p)
        self.batch.submit(key, Request(job.ids, job.most, choose))

    def cancel(self, key: int) -> None:
        self.batch.cancel(key)

    def step(self) -> list[Event]:
        return [Event(int(str(g.key)), g.token, g.end, g.fault, g.reused) for g in self.batch.step()]

    def memory(self) -> Memory:
        slots = self.batch.slots
        needed = slots.budget - slots.free
        kept = slots.nbytes - needed
        held = {"in use": needed, "kept, for the next": kept}
        full = sum(slots.lengths) * self.engine.shape.token
        return Memory(self._weights, {k: v for k, v in held.items() if v > 0}, full, self.engine.memory)

    def close(self) -> None:
        self.batch.close()
