"""transformers: `Cache`, which holds the context of `model.generate` within a budget.

    from holdall.dropins.transformers import Cache
    from holdall.kv import SnapKV
    model.generate(**inputs, past_key_values=Cache(SnapKV(), "25%"))

The model is not touched and need not be named: the cache learns the queries from the attention itself (see
`holdall.kv.hook`). It follows the "sdpa" and "eager" attention of Llama-, Qwen-, Gemma- and GPT-2-shaped models.

When it compresses: at the end of every forward pass over more than one token, layer by layer, so that the whole
cache never stands in memory at once. A prompt that is fed in chunks is named with `prefilling()`; tokens that must
not be judged (a candidate answer, a draft) are fed under `appending()`. Generated tokens are kept, all of them. In
the next turn the new part of the prompt is added, and the whole is brought back under the budget, which then counts
all tokens of the conversation. What an earlier turn dropped is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import transformers
from torch import Tensor

from holdall.budget import Budget
from holdall.dropins.kv_layer import Layer
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.kv.hook import Step
from holdall.kv.layer import LayerState
from holdall.memory import release
from holdall.report import Report, provenance


class Cache(transformers.Cache):
    """Holds the context within a budget, by any method of the room kv.

    method: what chooses, such as `SnapKV()`; None keeps everything.
    budget: of the bytes that all tokens so far would have ("25%", "3bit"), or bytes for all layers together
        ("40MB", an int), or None for the paper's own operating point.
    floor: entries a head that a share never goes below, because a share of a short prompt leaves nothing to answer
        from; 0 holds to the share whatever it costs. A budget in bytes has no floor.

    With a budget in bytes all layers are judged together, after the forward pass that ends the prompt. Raises
    BudgetError (out of the forward pass) where the method cannot hold the prompt in the budget.
    """

    def __init__(self, method: KVSelector | None = None, budget: Spend = None, *, floor: int = 64):
        super().__init__(layers=[])
        self.layers: list[Layer]  # type: ignore[assignment]
        if method is not None and not isinstance(method, KVSelector):
            raise BadInput("cache method", repr(method), "a method of the room kv, such as SnapKV()")
        if method is None and budget is not None:
            raise BadInput(
                "cache", f"the budget {budget} and no method", "a method that can hold it, such as SnapKV()"
            )
        self.method, self.budget, self.floor = method, Budget.parse(budget), floor
        self._mode = "turns"
        self._until: int | None = None
        self._freed_at: int | None = None  # the first layer of a pass in which layers were cut

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What transformers calls: append, and give back what is to be attended to."""
        while len(self.layers) <= layer_idx:
            self.layers.append(Layer(len(self.layers)))
        state = self._states[layer_idx]
        if state.due:
            self.compress()
        if layer_idx == self._freed_at:  # the pass is over, and its large tensors are gone
            release()
            self._freed_at = None
        entries = state.append(key_states, value_states)
        new = key_states.shape[2]
        idle = self.method is None or not (self.method.follows or self._in_prompt(entries, new))
        if idle and entries.whole:
            return entries.keys, entries.values
        state.step = Step(
            entries, new, partial(self._attended, state, new)
        )  # gone with the step: no cycle holds memory
        return state.step.given()

    @contextmanager
    def prefilling(self, total: int | None = None, judge: bool = True) -> Iterator[Cache]:
        """Inside, forward passes are chunks of one prompt, which is judged once.

        total: tokens that the cache will have seen when the prompt is complete; each layer is then judged in the
        pass that reaches it (padding counts). None: when the block ends, and the whole cache stands until then.
        judge: False leaves the prompt waiting, for more chunks or for `compress` or `compressed`.
        """
        with self._in("prefill", total):
            yield self
        if judge:
            self.compress()

    @contextmanager
    def appending(self) -> Iterator[Cache]:
        """Inside, tokens are appended as if they had been generated: nothing is judged or dropped."""
        with self._in("append", None):
            yield self

    @contextmanager
    def _in(self, mode: str, until: int | None) -> Iterator[None]:
        before = self._mode, self._until
        self._mode, self._until = mode, until
        try:
            yield
        finally:
            self._mode, self._until = before

    def compress(self) -> None:
        """Judge every layer whose prompt waits for it."""
        waiting = [s for s in self._states if s.memory is not None]
        if not waiting or self.method is None:
            return
        shares = self._shares([s.judged() for s in self._states])
        for state in waiting:
            state.compress(self.method, shares[state.layer])
        release()

    def compressed(self, method: KVSelector, budget: Spend = None, *, floor: int = 0) -> Cache:
        """A smaller cache from this one, which stays as it is.

        Of the last prompt's queries it knows as many as this cache's own method looks back at.
        """
        other = Cache(method, budget, floor=floor)
        other.layers = [Layer(s.layer, s.copy()) for s in self._states]
        shares = other._shares([s.judged() for s in other._states])
        for state, share in zip(other._states, shares, strict=True):
            state.compress(method, share)
        return other

    def copy(self) -> Cache:
        """Another cache that goes on from here by itself."""
        other = Cache(self.method, self.budget, floor=self.floor)
        other.layers = [Layer(s.layer, s.copy()) for s in self._states]
        return other

    def _attended(
        self, state: LayerState, new: int, query: Tensor, mask: Tensor | None, scale: float | None
    ) -> None:
        """The attention of one layer has been done."""
        state.step = None
        if self.method is None:  # entries that it was given, as `holdall.kv.contexts` does
            return
        assert state.entries is not None
        if not self._in_prompt(state.entries, new):
            if self.method.follows and self._mode != "append":
                state.follow(query, mask, scale, self.method, self._growing(state))
            return
        state.remember(query, mask, scale, self.method)
        complete = self._mode == "turns" or (self._until is not None and state.entries.tokens >= self._until)
        if complete and self._together:
            state.due = True  # shared out among the layers, which are not all known yet
        elif complete:
            state.compress(self.method, self._share(state.judged()))
            self._freed_at = state.layer if self._freed_at is None else self._freed_at

    def _in_prompt(self, entries: Entries, new: int) -> bool:
        """Whether the `new` tokens belong to a prompt that is to be judged."""
        if self._mode == "prefill" and (self._until is None or entries.tokens - new < self._until):
            return True
        return new > 1 and self._mode != "append"

    @property
    def _together(self) -> bool:
        """Whether the budget is split among the layers when all of them have been read."""
        if self.budget is None or self.method is None:
            return False
        return self.budget.bytes is not None or self.method.portion(0) is None

    def _share(self, x: Entries) -> Budget | None:
        """One layer's budget, where it does not depend on the others."""
        if self.budget is None or self.budget.bytes is not None:
            return self.budget
        limit = self.budget.limit(x.original, x.tokens * x.elements)
        limit = limit if self.method is None else self.method.spread(x, limit)
        return Budget(bytes=max(1, limit, min(self.floor * x.each, x.original)))

    def _shares(self, layers: list[Entries]) -> list[Budget | None]:
        if not self._together:
            return [self._share(x) for x in layers]
        assert self.budget is not None and self.method is not None
        total = self.budget.bytes
        if total is None:
            total = sum(share.bytes for x in layers if (share := self._share(x)) is not None and share.bytes)
        least = sum(self.method.smallest(x) for x in layers)
        if least > total:
            raise BudgetError(total, least, who=self.method.full_name(), why=self.method.why())
        return [Budget(bytes=max(1, n)) for n in self.method.share(layers, total)]

    def _growing(self, state: LayerState) -> Budget | None:
        """What a layer may hold while tokens are generated: a share grows with the conversation."""
        assert state.entries is not None
        if not self._together:
            return self._share(state.entries)
        if state.spent is None or self.budget is None:
            return None
        if self.budget.bytes is not None:
            return Budget(bytes=int(state.spent[0]))
        return Budget(bytes=max(1, int(state.spent[0] / state.spent[1] * state.entries.original)))

    @property
    def _states(self) -> list[LayerState]:
        return [layer.state for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes that the cache holds now, positions included."""
        return sum(s.entries.nbytes for s in self._states if s.entries is not None)

    @property
    def full_bytes(self) -> int:
        """Bytes that a cache which keeps everything would hold now."""
        return sum(s.entries.original for s in self._states if s.entries is not None)

    @property
    def lengths(self) -> list[int]:
        """Entries that a head holds now, by layer."""
        return [s.entries.count for s in self._states if s.entries is not None]

    @property
    def report(self) -> Report:
        """Bytes and entries a head now, beside those of the whole cache."""
        layers = max(1, len(self.lengths))
        rows: dict[str, dict[str, float]] = {
            "full": {"bytes": self.full_bytes, "entries": self.get_seq_length()}
        }
        name = self.method.full_name() if self.method else "kept"
        rows[name] = {"bytes": self.nbytes, "entries": sum(self.lengths) / layers}
        facts = provenance(method=self.method.to_dict() if self.method else None, budget=str(self.budget))
        return Report(rows, baseline="full", provenance=facts)

    def activate_past_recording(self) -> None:
        raise BadInput(
            "cache", "assisted generation", "plain generation: a draft would be judged as a prompt"
        )
