"""Engine: a model that answers within a memory budget. Weights stay packed; the context is held by a kv method."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from holdall.budget import Budget
from holdall.dropins.tokenizer import Message, Tokenizer, json_file
from holdall.engine_plan import CHUNK, Plan, Shape, Source, libraries, plan, slice_mlps
from holdall.engine_stats import Stats
from holdall.engine_text import Chooser, Text
from holdall.engine_weights import Adapter, opened
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.memory import return_early
from holdall.meter import resident_bytes
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    from holdall.kv.base import KVSelector
else:
    torch = lazy("torch", extra="weights")


@dataclass
class Engine:
    """Opens a `.hold` file, or any model that `Model.read` takes, and generates text.

        engine = Engine.open("small.hold", memory="120MB", kv=SnapKV(), kv_budget="25%")
        for piece in engine.generate("Tell me a joke."):
            print(piece, end="", flush=True)
        engine.stats

    adapter: what `holdall adapters train` made for this very model; it answers with it (not by the lean decoder).
    memory: what weights, context and workspace may take, above the interpreter and its libraries. Context and
        workspace follow from the first prompt, and the weights get the rest: they are opened then. With a limit
        weights that stay packed compute in bfloat16, which halves the context; without one in float32.
    kv, kv_budget: a method of the room kv and its budget; None keeps the whole context.
    Raises BudgetError with the least that would do.
    """

    source: Source
    tokenizer: Tokenizer
    shape: Shape
    memory: int | None = None
    kv: KVSelector | None = None
    kv_budget: Budget | None = None
    stats: Stats = field(default_factory=Stats)
    net: Any = None
    lean: Any = None  # runs `net` where that is quicker, and no kv method holds the context
    cache: Any = None  # of the answer that is being given
    adapter: Adapter | None = None
    used: int = 0  # bytes that tokenizer and header took, measured
    beside: int = 0  # bytes that context and workspace may take, now that the weights are open

    @classmethod
    def open(
        cls,
        path: str,
        memory: Spend = None,
        kv: KVSelector | None = None,
        kv_budget: Spend = None,
        adapter: str | None = None,
    ) -> Self:
        limit = Budget.parse(memory)
        if limit is not None and limit.bytes is None:
            raise BadInput("memory", str(limit), 'bytes ("120MB")')
        if kv is None and kv_budget is not None:
            raise BadInput("kv budget", str(kv_budget), "a kv method that holds it (--with kv.snapkv)")
        if adapter is not None and limit is not None and not path.lower().endswith(".hold"):
            raise BadInput(
                "memory", "an adapter of a model that is not packed", "a packed model, or no limit"
            )
        libraries(path, kv)
        if limit is not None:
            return_early()
        base = resident_bytes()
        source = Source.of(path)
        item = source.item if limit is not None or source.packed is None else 4
        shape = Shape.of(json_file(source.files, "config.json"), item)
        memory_bytes = None if limit is None else limit.bytes
        engine = cls(source, Tokenizer(source.files), shape, memory_bytes, kv, Budget.parse(kv_budget))
        if adapter is not None:
            engine.adapter = Adapter.open(adapter)
        if limit is not None:
            return_early()
        engine.used = resident_bytes() - base + (engine.adapter.nbytes if engine.adapter else 0)
        return engine

    def generate(
        self,
        prompt: str | Sequence[Message],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer, piece by piece. A plain string is one user message; the same seed gives the same answer."""
        if max_new_tokens < 1:
            raise BadInput("max_new_tokens", max_new_tokens, "at least 1")
        ids = self.ids(prompt)
        text = Text(self.tokenizer)
        for token in self.tokens(ids, max_new_tokens, Chooser(temperature, seed)):
            if token is not None and (piece := text.add(token)):
                yield piece
        if piece := text.rest():
            yield piece

    def ids(self, prompt: str | Sequence[Message]) -> list[int]:
        """What the model reads."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        found = self.tokenizer.chat(messages)
        if not found:
            raise BadInput("prompt", "nothing", "some text")
        return found

    def tokens(self, ids: list[int], most: int, choose: Chooser) -> Iterator[int | None]:
        """The answer to a prompt of `ids`, token by token; None where a part of the prompt was read.

        Closing the iterator frees the context.
        """
        self.stats = Stats(len(ids))
        chunk = self.prepare(len(ids), most)
        try:
            with torch.inference_mode():
                yield from self._tokens(ids, chunk, most, choose)
        finally:
            self.cache = None

    def plan(self, tokens: int, new: int, chunk: int | None = None) -> Plan:
        """The memory beside the weights for such a prompt and answer; chunk None is one pass."""
        share = self.kv_budget
        if self.kv is not None and share is None:
            share = Budget(bytes=max(1, (getattr(self.kv, "capacity", None) or tokens) * self.shape.token))
        if self.kv is None:
            return plan(self.shape, tokens, new, None, chunk or CHUNK)
        last, lot = self.kv.asks(tokens)
        together = self.kv.portion(0) is None
        return plan(self.shape, tokens, new, share, chunk or tokens, together, last + int(lot * tokens))

    def plans(self, tokens: int, new: int) -> list[Plan]:
        """The ways to read such a prompt, the better one first."""
        plans = [self.plan(tokens, new)]
        if self.kv is not None and tokens > CHUNK:
            plans.append(self.plan(tokens, new, CHUNK))
        return plans

    def prepare(self, tokens: int, new: int) -> int:
        """Open the weights if they are not; returns the tokens of one pass over the prompt."""
        plans = self.plans(tokens, new)
        if self.memory is None:
            if self.net is None:
                self._load(None)
            return plans[0].chunk
        if self.net is not None:
            for option in plans:
                if option.total <= self.beside:
                    return option.chunk
            least = self.memory - self.beside + min(p.total for p in plans)
            raise BudgetError(self.memory, least, who="the engine", why=f"{tokens} tokens of prompt")
        return self._fit(plans, tokens)

    def _fit(self, plans: list[Plan], tokens: int) -> int:
        """The first plan that leaves the weights enough; they may be held coarser for it."""
        assert self.memory is not None
        least: list[int] = []
        for option in plans:
            try:
                self._load(max(1, self.memory - self.used - option.total))
            except BudgetError as short:
                least.append(self.used + option.total + int(str(short.least)))
                continue
            self.beside = option.total
            return option.chunk
        why = f"weights, and {tokens} tokens of prompt"
        raise BudgetError(self.memory, min(least), who="the engine", why=why)

    def _load(self, left: int | None) -> None:
        """Open the weights in what is left for them."""
        start, source = time.perf_counter(), self.source
        dtype = torch.bfloat16 if self.shape.item == 2 else torch.float32
        net = opened(source, left, dtype, self.adapter)
        self.net = net.to(dtype)
        if dtype is not torch.float32:  # what packed tables give out is float32
            self.net.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out.to(dtype))
        slice_mlps(self.net)
        self.kv = None if self.kv is None else self.kv.prepared(self.net)
        self.lean = self._leaner()
        if left is not None:
            return_early()
        self.stats.open_seconds = time.perf_counter() - start

    def _leaner(self) -> Any:
        if self.kv is not None or self.source.packed is None or self.adapter is not None:
            return None
        from holdall.weights.lean import Lean

        return Lean.of(self.net)

    def _cache(self, tokens: int, most: int) -> Any:
        if self.lean is not None:
            return self.lean.context(tokens + min(most, 4096), half=self.shape.item == 2)
        if self.kv is None:
            from transformers import DynamicCache

            return DynamicCache()
        from holdall.dropins.transformers import Cache

        budget = self.kv_budget
        if budget is not None and budget.bytes is not None and self.memory is not None:
            # A share can be held layer by layer; bytes for all layers would first need the whole context.
            budget = Budget.parse(min(1.0, budget.bytes / (tokens * self.shape.token)))
        return Cache(self.kv, budget)

    def _tokens(self, ids: list[int], chunk: int, most: int, choose: Chooser) -> Iterator[int | None]:
        """The answer's tokens, up to an end token."""
        stats, start = self.stats, time.perf_counter()
        cache = self.cache = self._cache(len(ids), most)
        for at in range(0, len(ids), chunk):
            if at:
                yield None
            scores = self._step(ids[at : at + chunk], cache)
            stats.passes += 1
        token = choose(scores)
        stats.prefill_seconds = time.perf_counter() - start
        while token not in self.tokenizer.eos:
            stats.new_tokens += 1
            self._weigh(cache, len(ids))
            yield token
            if stats.new_tokens == most:
                return
            start = time.perf_counter()
            token = choose(self._step([token], cache))
            stats.decode_seconds += time.perf_counter() - start

    def _step(self, ids: list[int], cache: Any) -> torch.Tensor:
        if self.lean is not None:
            found: torch.Tensor = self.lean.read(ids, cache)
            return found
        out = self.net(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1]

    def _weigh(self, cache: Any, prompt: int) -> None:
        full = (prompt + self.stats.new_tokens - 1) * self.shape.token
        self.stats.kv_full_bytes = full
        self.stats.kv_bytes = cache.nbytes if self.kv is not None else full
