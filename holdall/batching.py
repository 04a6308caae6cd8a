"""Continuous batching: requests join and leave between steps, and share one pass over the weights.

    batch = Batch.open(net, "500MB", eos=tokenizer.eos)
    batch.submit("a", Request(ids, most=100))
    while batch.busy:
        for given in batch.step():
            print(given.key, given.token, given.end)

Contexts stand in the slots of `kv.vattention`, in one memory with one budget. A request is admitted when its prompt
and its longest answer are certain to fit beside what is promised to the others: once it runs it never waits for
memory, and nothing is ever recomputed. Until then it waits, in the order of arrival. A prompt that begins as another
context does, one that runs or one that ended and whose memory nobody needed since, is read from there on only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from holdall.engine_text import Chooser
from holdall.errors import BadInput, BudgetError, HoldallError
from holdall.kinds import Spend
from holdall.kv.pages import Geometry
from holdall.kv.reuse import Reuse
from holdall.kv.slot_cache import SlotCache
from holdall.kv.slots import Slots
from holdall.kv.vattention import VAttention
from holdall.weights.few_tokens import FewTokens

_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Request:
    """A prompt, and how it is to be answered.

    most: tokens of the longest answer. choose: from scores [V] to the next token (None: always the likeliest).
    stop: told each token, says whether the answer ends with it.
    """

    ids: Sequence[int]
    most: int
    choose: Callable[[torch.Tensor], int] | None = None
    stop: Callable[[int], bool] | None = None


@dataclass(frozen=True)
class Given:
    """What a step brought to one request: a token, the end ("stop" or "length"), or both, or why it cannot go on.

    An end token of the model ends an answer and is not given. reused: with the first news, tokens of the prompt that
    stood in memory already and were not read again.
    """

    key: Hashable
    token: int | None = None
    end: str | None = None
    fault: HoldallError | None = None
    reused: int = 0


@dataclass(eq=False)
class _Running:
    key: Hashable
    request: Request
    choose: Callable[[torch.Tensor], int]
    promised: int  # bytes
    slot: int = -1  # until its prompt is about to be read
    written: int = 0  # tokens in the slot; the last one given is not there yet
    reused: int = 0  # of them, those that stood there before
    given: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Tokens of the prompt that are to be read."""
        return max(0, len(self.request.ids) - self.written)

    @property
    def tokens(self) -> list[int]:
        """What is in the slot."""
        return [*self.request.ids, *self.given][: self.written]


class Batch:
    """Generates for several requests at a time over one transformers model; for one thread.

    net: a model with "sdpa" attention, as `Model.build` and packed methods give it. slots: where contexts stand. eos:
    tokens that end an answer. chunk: tokens of a prompt that are read between two tokens of the others. reuse: whether
    tokens that stand in another slot are taken from there.
    """

    def __init__(
        self, net: Any, slots: Slots, eos: Collection[int] = (), chunk: int = 256, reuse: bool = True
    ):
        kind = net.config.get_text_config()._attn_implementation
        if kind != "sdpa":
            raise BadInput("attention", kind, 'a model with attn_implementation="sdpa"')
        if chunk < 1:
            raise BadInput("chunk", chunk, "at least 1 token")
        self.net, self.slots, self.eos, self.chunk = net, slots, frozenset(eos), chunk
        self._cache, self._fast = SlotCache(slots, net.config), FewTokens(net)
        self._places, self.reuse = Reuse(slots), reuse
        self._waiting: deque[_Running] = deque()
        self._running: dict[Hashable, _Running] = {}

    @classmethod
    def open(
        cls, net: Any, budget: Spend = None, *, eos: Collection[int] = (), chunk: int = 256, reuse: bool = True,
        **knobs: Any,
    ) -> Self:  # fmt: skip
        """With slots of its own. budget: of all contexts together; knobs: those of `kv.vattention`."""
        geometry = Geometry.of(net.config, _DTYPES[net.dtype])
        return cls(net, VAttention(**knobs).open(geometry, budget), eos, chunk, reuse)

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def check(self, tokens: int, most: int) -> None:
        """BudgetError (or BadInput) if a prompt of `tokens` and an answer of `most` could not be held, ever."""
        if tokens < 1 or most < 1:
            raise BadInput("request", f"{tokens} tokens, {most} of answer", "at least one of each")
        length, cost = self.slots.method.length, self.slots.cost(tokens + most)
        if tokens + most > length:
            got = f"{tokens} tokens of prompt and {most} of answer"
            raise BadInput("request", got, f"at most {length} together")
        if cost > self.slots.budget:
            raise BudgetError(
                self.slots.budget, cost, who="the batch", why=f"{tokens} tokens, {most} of answer"
            )

    def admits(self, request: Request) -> bool:
        """Whether the request would run from the next step on."""
        free = self.slots.method.slots - len(self._running) - len(self._waiting)
        return free > 0 and not self._waiting and self._cost(request) <= self.unpromised

    @property
    def unpromised(self) -> int:
        """Bytes that no running request may still come to need."""
        return self.slots.budget - sum(r.promised for r in self._running.values())

    def submit(self, key: Hashable, request: Request) -> None:
        """Take a request; it waits until there is room. BudgetError if there never will be."""
        if key in self._running or any(w.key == key for w in self._waiting):
            raise BadInput("key", key, "one that no other request has")
        self.check(len(request.ids), request.most)
        self._waiting.append(_Running(key, request, request.choose or Chooser(), self._cost(request)))

    def cancel(self, key: Hashable) -> None:
        """Forget a request, if it is there; its memory is free for others at once."""
        self._waiting = deque(w for w in self._waiting if w.key != key)
        if key in self._running:
            self._end(self._running[key])

    def step(self) -> list[Given]:
        """Admit who fits, read a piece of one prompt, and one token more for everybody else."""
        self._admit()
        reading = next((r for r in self._running.values() if r.left), None)
        writing = [r for r in self._running.values() if r.given]
        if reading is None and not writing:
            return []
        if reading is not None and reading.slot < 0:
            self._place(reading)
        lengths = [0] * self.slots.method.slots
        for r in self._running.values():
            if r.slot >= 0:
                lengths[r.slot] = r.written + (min(self.chunk, r.left) if r is reading else bool(r.given))
        self.slots.step(lengths)
        with torch.inference_mode(), self._fast:
            return self._pass(reading, writing)

    def close(self) -> None:
        """Free everything."""
        self._waiting.clear()
        self._running.clear()
        self.slots.close()

    def _cost(self, request: Request) -> int:
        return self.slots.cost(len(request.ids) + request.most)

    def _admit(self) -> None:
        places = self.slots.method.slots
        while self._waiting and len(self._running) < places and self._waiting[0].promised <= self.unpromised:
            new = self._waiting.popleft()
            self._running[new.key] = new

    def _place(self, r: _Running) -> None:
        """A slot for a request whose turn to read has come: what those before it read may be its beginning too."""
        busy = {
            other.slot: other.tokens if self.reuse else []
            for other in self._running.values()
            if other.slot >= 0
        }
        r.slot, r.written = self._places.begin(r.request.ids, len(r.request.ids) + r.request.most, busy)
        r.reused = r.written

    def _pass(self, reading: _Running | None, writing: list[_Running]) -> list[Given]:
        """All together through the model, as one row: a piece of a prompt, and one token of everybody else."""
        piece = [] if reading is None else reading.request.ids[reading.written :][: self.chunk]
        ids = torch.tensor([[*piece, *(r.given[-1] for r in writing)]])
        rows, ends = [r.slot for r in writing], [r.written + 1 for r in writing]
        place = (
            (0, 0, 0) if reading is None else (reading.slot, reading.written, reading.written + len(piece))
        )
        call = self._cache.step(rows, ends, place)
        kept = torch.arange(max(0, len(piece) - 1), ids.shape[1])
        scores = self.net(ids, **call, logits_to_keep=kept).logits[0]  # [R, V], with the prompt's first
        for r in writing:
            r.written += 1
        if reading is not None:
            reading.written += len(piece)
            writing = [reading, *writing]
        pairs = zip(writing, scores, strict=True)
        return [given for r, mine in pairs if not r.left for given in self._chosen(r, mine)]

    def _chosen(self, r: _Running, scores: torch.Tensor) -> list[Given]:
        """The next token of a request, and whether it is the last."""
        reused = 0 if r.given else r.reused
        try:
            token = r.choose(scores)
            ends = token in self.eos
            stops = not ends and r.request.stop is not None and r.request.stop(token)
        except HoldallError as fault:
            self._end(r)
            return [Given(r.key, fault=fault)]
        if ends:
            self._end(r)
            return [Given(r.key, end="stop", reused=reused)]
        r.given.append(token)
        end = "stop" if stops else "length" if len(r.given) == r.request.most else None
        if end:
            self._end(r)
        return [Given(r.key, token, end, reused=reused)]

    def _end(self, r: _Running) -> None:
        del self._running[r.key]
        if r.slot >= 0:
            self._places.leave(r.slot, r.tokens if self.reuse else [])
