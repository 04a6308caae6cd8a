"""Four ways to keep the contexts of several requests, for benchmarks/vattention.py: all take the same steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from holdall.kv import Geometry, VAttention
from holdall.kv.slot_load import Moment, follow

SMOLLM2 = Geometry(layers=30, heads=3, dim=64)
S, B, BLOCK = 2048, 8, 16


class Static:
    """All slots at full length, written once: what a static cache reserves."""

    def __init__(self) -> None:
        shape = (B, S, SMOLLM2.heads, SMOLLM2.dim)
        self.held = [torch.zeros(shape).fill_(1) for _ in range(2 * SMOLLM2.layers)]
        self.copied = 0

    def step(self, moment: Moment, before: list[int]) -> None:
        for slot, start, end in grown(moment, before):
            for tensor in self.held:
                tensor[slot, start:end] = 1.0

    def attend(self, q: Tensor, slot: int, layer: int, t: int) -> Tensor:
        return attention(q, self.held[2 * layer][slot, :t], self.held[2 * layer + 1][slot, :t])


class Doubling:
    """Tensors of each request, doubled and copied when they are full."""

    def __init__(self) -> None:
        self.held: dict[int, list[Tensor]] = {}
        self.copied = 0

    def step(self, moment: Moment, before: list[int]) -> None:
        for slot in moment.ended:
            del self.held[slot]
        for slot, start, end in grown(moment, before):
            old = self.held.get(slot) or [torch.empty(0, SMOLLM2.heads, SMOLLM2.dim)] * (2 * SMOLLM2.layers)
            if end > len(old[0]):
                room = max(64, 1 << (end - 1).bit_length())
                self.held[slot] = []
                for i, tensor in enumerate(old):
                    new = torch.empty(room, SMOLLM2.heads, SMOLLM2.dim)
                    new[: len(tensor)] = tensor
                    self.copied += tensor.nbytes
                    self.held[slot].append(new)
                    old[i] = new
            for tensor in self.held[slot]:
                tensor[start:end] = 1.0

    def attend(self, q: Tensor, slot: int, layer: int, t: int) -> Tensor:
        return attention(q, *(h[:t] for h in self.held[slot][2 * layer : 2 * layer + 2]))


class Paged:
    """Blocks of 16 tokens from a pool, a table for each slot; attention gathers what it reads."""

    def __init__(self, blocks: int) -> None:
        self.pool = [
            torch.zeros(blocks, BLOCK, SMOLLM2.heads, SMOLLM2.dim) for _ in range(2 * SMOLLM2.layers)
        ]
        self.free = torch.randperm(blocks, generator=torch.Generator().manual_seed(0)).tolist()
        self.table: dict[int, list[int]] = {}
        self.copied = 0

    def step(self, moment: Moment, before: list[int]) -> None:
        for slot in moment.ended:
            self.free += self.table.pop(slot)
        for slot, start, end in grown(moment, before):
            mine = self.table.setdefault(slot, [])
            mine += [self.free.pop() for _ in range(-(-end // BLOCK) - len(mine))]
            at = torch.arange(start, end)
            where = torch.tensor(mine)[at // BLOCK]
            for tensor in self.pool:
                tensor[where, at % BLOCK] = 1.0

    def attend(self, q: Tensor, slot: int, layer: int, t: int) -> Tensor:
        mine = torch.tensor(self.table[slot])
        k, v = (
            p[mine].view(-1, SMOLLM2.heads, SMOLLM2.dim)[:t] for p in self.pool[2 * layer : 2 * layer + 2]
        )
        return attention(q, k, v)


class Mapped:
    """`kv.vattention`."""

    def __init__(self, budget: int | None = None, **knobs: Any) -> None:
        self.slots = VAttention(slots=B, length=S, **knobs).open(SMOLLM2, budget)
        self.copied = 0

    def step(self, moment: Moment, before: list[int]) -> None:
        follow(self.slots, moment)
        for slot, start, end in grown(moment, before):
            for tensor in (*self.slots.keys, *self.slots.values):
                tensor[slot, start:end] = 1.0

    def attend(self, q: Tensor, slot: int, layer: int, t: int) -> Tensor:
        return attention(q, self.slots.keys[layer][slot, :t], self.slots.values[layer][slot, :t])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [G*H, D] over k, v [T, H, D]."""
    grouped = q.view(1, k.shape[1], -1, k.shape[2])
    return scaled_dot_product_attention(grouped, k.transpose(0, 1)[None], v.transpose(0, 1)[None])


def grown(moment: Moment, before: list[int]) -> Iterable[tuple[int, int, int]]:
    """Slot, first and last of the tokens that this step adds."""
    for slot, n in enumerate(moment.lengths):
        start = 0 if slot in moment.ended else before[slot]
        if n > start:
            yield slot, start, n


def exact() -> dict[str, float]:
    """Random contexts in slots and in a static cache: numbers of attention that differ, and tensors that moved."""
    shape = (B, S, SMOLLM2.heads, SMOLLM2.dim)
    whole, last, apart, moved = [torch.zeros(shape) for _ in range(2 * SMOLLM2.layers)], 0, 0, 0
    with VAttention(slots=B, length=S).open(SMOLLM2) as slots:
        first = [t.data_ptr() for t in (*slots.keys, *slots.values)]
        for n in (1, 60, 61, 300):
            slots.step([n] * B)
            mine = [*slots.keys, *slots.values]
            for a, b in zip(mine, whole, strict=True):
                a[:, last:n] = b[:, last:n] = torch.randn(B, n - last, *shape[2:])
            for layer in range(SMOLLM2.layers):
                q, v = torch.randn(9, SMOLLM2.dim), SMOLLM2.layers + layer
                for slot in range(B):
                    one, other = (attention(q, t[layer][slot, :n], t[v][slot, :n]) for t in (mine, whole))
                    apart += int((one != other).sum())
            moved += sum(t.data_ptr() != p for t, p in zip(mine, first, strict=True))
            last = n
    return {"differing": apart, "moved": moved}


def lines(found: dict[str, Any], page: int = 64 << 10) -> list[dict[str, Any]]:
    """What the card of vAttention expects, from the tables; each is printed with its bar."""
    memory, fast = found["memory"], found["decode"]["vattention"]["times_as_fast_as_paged_at_1024"]
    name = "page_groups_mapped_or_unmapped_a_token"
    one, half = (
        memory["vattention, needed and a page group a tensor and slot"],
        memory["vattention, half of the need"],
    )
    pool = one["needed_bytes"] + 2 * SMOLLM2.layers * B * page
    eager = memory["vattention, no limit, unmapped at once"][name]
    rows = (
        ("1 numbers of attention that differ from a static cache's", found["exact"]["differing"], "<=", 0),
        ("2 peak resident / needed and a page group a tensor and slot", one["peak_resident_bytes"] / pool, "<=", 1),
        ("2 peak resident / static reserve", one["share_of_static"], "<=", 0.35),
        ("3 tensors that moved, and bytes copied", found["exact"]["moved"] + one["copied_bytes"], "<=", 0),
        ("4 maps a token, unmapped at once / deferred", eager / memory["vattention, no limit"][name], ">=", 5),
        ("4 the same, deferred in a pool of 35 %", eager / memory["vattention, 35 %"][name], ">=", 5),
        ("5 decode at 1,024 tokens, times as fast as gathering blocks", fast, ">=", 1.2),
        ("6 pool of half the need: peak / pool", half["peak_bytes"] / (pool // 2), "<=", 1),
        ("6 steps that requests waited there, more than with all", half["waited_steps"] - one["waited_steps"], ">=", 1),
    )  # fmt: skip
    made = []
    for what, value, sign, bar in rows:
        met = value <= bar if sign == "<=" else value >= bar
        made.append({"line": what, "figure": value, "bar": f"{sign} {bar}", "met": met})
        print(f"{what}: {value:.4g}  (bar {sign} {bar}: {'met' if met else 'NOT met'})", flush=True)
    return made
