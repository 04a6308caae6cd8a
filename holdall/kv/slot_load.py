"""A load for slots: requests that arrive by chance and want contexts of very different lengths; and what it costs.

Arrivals are Poisson, lengths log-normal, as in the traces of real servers: most are short, a few are very long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdall.budget import Budget
from holdall.errors import BudgetError
from holdall.kinds import Spend
from holdall.kv.pages import Geometry
from holdall.kv.slots import Slots
from holdall.kv.vattention import VAttention
from holdall.report import Report, provenance

_SPREAD = 0.8  # of the logarithm of lengths


@dataclass(frozen=True)
class Arrival:
    """A request: the step in which it comes, and the tokens of its prompt and of its answer."""

    at: int
    prompt: int
    answer: int

    @property
    def length(self) -> int:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Moment:
    """One step: slots whose request has ended since the last one, how long each is now, and how many wait."""

    ended: tuple[int, ...]
    lengths: tuple[int, ...]
    waiting: int


def arrivals(count: int, longest: int, mean: float, gap: float, seed: int = 0) -> list[Arrival]:
    """`count` requests of `mean` tokens on average and `longest` at most, one every `gap` steps on average."""
    lot = np.random.default_rng(seed)
    at = np.floor(np.cumsum(lot.exponential(gap, count))).astype(int)
    sizes = np.exp(lot.normal(0, _SPREAD, count))
    low, high = 0.0, float(longest)
    for _ in range(60):  # the factor at which the mean is right once the longest are cut
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(sizes * middle, 4, longest).mean() < mean else (low, middle)
    lengths = np.clip(np.rint(sizes * low), 4, longest).astype(int)
    answers = np.maximum(1, np.rint(lengths * lot.uniform(0.2, 0.8, count))).astype(int)
    return [Arrival(*map(int, row)) for row in zip(at, lengths - answers, answers, strict=True)]


def replay(
    load: Sequence[Arrival], slots: int, fits: Callable[[Sequence[Arrival]], bool] = lambda _: True
) -> Iterator[Moment]:
    """Step by step, until all are answered. fits: whether these requests can be held together, to their ends.

    A request takes the lowest inactive slot; its prompt is read in one step, and each further step adds a token.
    """
    coming, waiting = deque(sorted(load, key=lambda a: a.at)), deque[Arrival]()
    running: dict[int, Arrival] = {}
    lengths, step = [0] * slots, 0
    while coming or waiting or running:
        ended = tuple(i for i, a in running.items() if lengths[i] == a.length)
        for i in ended:
            del running[i]
            lengths[i] = 0
        while coming and coming[0].at <= step:
            waiting.append(coming.popleft())
        for i in running:
            lengths[i] += 1
        free = [i for i in range(slots) if i not in running]
        while waiting and free and fits([*running.values(), waiting[0]]):
            running[free[0]] = waiting.popleft()
            lengths[free[0]] = running[free[0]].prompt + 1
            free.pop(0)
        step += 1
        yield Moment(ended, tuple(lengths), len(waiting))


def within(slots: Slots) -> Callable[[Sequence[Arrival]], bool]:
    """For `replay`: what the budget of these slots can hold to the end."""
    return lambda requests: sum(slots.cost(a.length) for a in requests) <= slots.budget


def follow(slots: Slots, moment: Moment) -> None:
    """One step of a replay."""
    for slot in moment.ended:
        slots.release(slot)
    slots.step(moment.lengths)


def measure(
    method: VAttention,
    budget: Spend = None,
    *,
    model: str | None = None,
    on: str | None = None,
    quick: bool = False,
) -> Report:
    """64 requests (quick: 16) with contexts of a fifth of the longest on average: memory as the kernel counts it.

    model: whose keys and values (smollm2). Rows: "static", every slot at its full length, as a cache that is
    reserved once; the method's. Columns: resident_bytes, the most in any step; needed_bytes, the most that the tokens
    there took; steps until all were answered; waited, steps that a request stood in the queue, all together; maps, page
    groups mapped or unmapped for each token; map_seconds, in the thread or in the step.
    """
    from holdall.weights.model import Model

    geometry = Geometry.of(Model.read(model or "smollm2").skeleton().config)
    load = arrivals(16 if quick else 64, method.length, method.length / 5, gap=20)
    spend = Budget.parse(budget)
    rows = {"static": _row(method, geometry, load, None, full=True)}
    rows[method.full_name()] = _row(method, geometry, load, spend)
    facts = provenance(
        method=method.to_dict(), budget=str(spend), model=model or "smollm2", requests=len(load)
    )
    return Report(rows, baseline="static", provenance=facts)


def _row(
    method: VAttention, geometry: Geometry, load: Sequence[Arrival], budget: Budget | None, full: bool = False
) -> dict[str, float]:
    with method.open(geometry, budget) as slots:
        longest = max(slots.cost(a.length) for a in load)
        if longest > slots.budget:
            raise BudgetError(
                slots.budget, longest, who=method.full_name(), why="the longest request of the load"
            )
        found: dict[str, Any] = {"resident_bytes": 0, "needed_bytes": 0, "steps": 0, "waited": 0, "tokens": 0}
        if full:
            slots.step([method.length] * method.slots)
        most = 0
        for moment in replay(load, method.slots, within(slots)):
            if not full:
                follow(slots, moment)
            found["steps"] += 1
            found["waited"] += moment.waiting
            found["needed_bytes"] = max(found["needed_bytes"], sum(moment.lengths) * geometry.token)
            held = slots.nbytes
            if held > most:  # the kernel is asked where it matters: that takes a while
                most, found["resident_bytes"] = held, max(found["resident_bytes"], slots.resident())
        found["tokens"] = sum(a.length for a in load)
        went = slots.traffic()
        groups = (went["mapped"] + went["unmapped"]) * went["page_groups"]
        return {**found, "maps": groups / found["tokens"], "map_seconds": went["map_seconds"]}
