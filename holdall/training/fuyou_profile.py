"""The first step with batches of a shape: blocks are measured one by one, and the next steps are planned."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from holdall.errors import BudgetError
from holdall.optional import lazy
from holdall.parts.paging import Arena
from holdall.training.fuyou_activations import Activations
from holdall.training.fuyou_memory import Memory
from holdall.training.fuyou_pager import Pager
from holdall.training.fuyou_plan import Layer, Plan, Rates, choose
from holdall.training.fuyou_update import Updater

if TYPE_CHECKING:
    from holdall.training.fuyou import Fuyou

torch = lazy("torch", extra="training")
counter = lazy("torch.utils.flop_counter", extra="training")


class Profile:
    """Blocks recompute all until a batch of that shape was measured; then there is a plan for it."""

    def __init__(
        self, recipe: Fuyou, memory: Memory, pager: Pager, acts: Activations, arena: Arena, updater: Updater
    ):
        self._recipe, self._memory, self._pager, self._acts = recipe, memory, pager, acts
        self._arena, self._updater = arena, updater
        self._kinds: dict[Any, tuple[Layer, float]] = {}
        self._now: dict[int, tuple[Any, Layer, float]] = {}
        self._plans: dict[Any, Plan] = {}
        self.rest = 0  # bytes that are saved outside of blocks
        self.plan: Plan | None = None
        acts.before = self._before

    def close(self) -> None:
        self._acts.before = None
        self._kinds.clear()

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward pass whose loss is trained on: sees what is saved outside of blocks."""
        self._now = {}
        if self.plan is not None or not self._memory.blocks:
            yield
        else:
            saved = _Saved()
            with saved:
                yield
            inputs = sum(layer.input for layer in self.layers())  # of blocks that recompute: seen here, too
            self.rest = max(saved.nbytes - inputs, 0)

    def planned(self) -> None:
        """After a step: from what was seen in it, how the next ones with such batches are done."""
        if len(self._now) < len(self._memory.blocks) or not self._now:
            return
        key = tuple(self._now[i][0] for i in sorted(self._now))
        if key not in self._plans:
            self._plans[key] = self._made()
        self.plan = plan = self._plans[key]
        self._acts.modes = dict.fromkeys(plan.kept, "keep") | dict.fromkeys(plan.on_disk, "disk")
        if self._memory.paged:
            pageable = {g.block for g in self._memory.pageable}
            self._pager.staying = {b for b in plan.staying if b in pageable}

    def layers(self) -> list[Layer]:
        return [self._now[i][1] for i in sorted(self._now)]

    def rates(self) -> Rates:
        told = self._arena.traffic()
        busy = sum(t for _, _, t in self._now.values())
        flops = sum(layer.flops for layer in self.layers())
        write = told["written_bytes"] / max(told["write_seconds"], 1e-9)
        read = told["read_bytes"] / told["read_seconds"] if told["read_seconds"] else write
        adam = self._updater.count / self._updater.busy if self._updater.busy else float("inf")
        return Rates(flops / max(busy, 1e-9), read, write, adam, halves=True)

    def _made(self) -> Plan:
        layers = self.layers()
        free = float("inf")
        if self._memory.limit is not None:
            free = self._memory.limit - self._working(layers)
            if not self._memory.paged:  # parameters are in memory already, whatever is kept
                free += sum(layer.parameters for layer in layers)
        states = sum(g.count for g in self._memory.groups)
        stay = not self._memory.paged
        return choose(layers, self.rates(), states, free, self._recipe.swap, all_stay=stay)

    def _working(self, layers: list[Layer]) -> float:
        """What a step holds that keeps nothing: inputs of blocks, one block worked out again, and what is outside."""
        one = max(layer.activations for layer in layers)
        return self._memory.fixed + sum(x.input for x in layers) + 2 * one + 2 * self.rest

    def _before(self, i: int, real: Any, args: Any, named: Any) -> None:
        if not torch.is_grad_enabled():
            return
        shapes = tuple(tuple(x.shape) for x in (*args, *named.values()) if isinstance(x, torch.Tensor))
        kind = (type(self._memory.blocks[i]), self._sizes(i), shapes)
        if kind not in self._kinds:
            self._acts.modes = {}  # nothing is known of such a batch: the safest way
            self.plan = None
            self._kinds[kind] = self._measured(i, real, args, named)
        self._now[i] = (kind, *self._kinds[kind])
        least = self._working([layer for _, layer, _ in self._now.values()])
        if self.plan is None and self._memory.limit is not None and least > self._memory.limit:
            raise BudgetError(
                self._memory.limit, int(least), who="training.fuyou", why="one block's activations"
            )

    def _sizes(self, i: int) -> tuple[Any, ...]:
        return tuple(p.shape for p in self._memory.blocks[i].parameters())

    def _measured(self, i: int, real: Any, args: Any, named: Any) -> tuple[Layer, float]:
        """One more forward pass of one block, to see what it saves, and another for its time."""
        self._pager.need(i, 1)
        args = tuple(_apart(x) for x in args)
        named = {k: _apart(v) for k, v in named.items()}
        kept = [b.clone() for b in self._memory.blocks[i].buffers()]
        saved = _Saved({p.untyped_storage().data_ptr() for p in self._memory.blocks[i].parameters()})
        with torch.random.fork_rng(devices=[]):
            with saved, counter.FlopCounterMode(display=False) as flops:
                real(*args, **named)
            start = time.perf_counter()
            real(*args, **named)
            seconds = time.perf_counter() - start
        with torch.no_grad():
            for b, was in zip(self._memory.blocks[i].buffers(), kept, strict=True):
                b.copy_(was)
        given = sum(x.nbytes for x in (*args, *named.values()) if isinstance(x, torch.Tensor))
        parameters = sum(4 * p.numel() for p in self._memory.blocks[i].parameters())
        work = flops.get_total_flops() or saved.nbytes / 4  # one operation a number where none is counted
        return Layer(float(work), max(saved.nbytes - given, 0), parameters, given), seconds


class _Saved:
    """Counts the bytes that autograd saves, each storage once."""

    def __init__(self, own: set[int] | None = None):
        self._own, self._found = own or set(), dict[int, int]()
        self._hooks: Any = None

    @property
    def nbytes(self) -> int:
        return sum(self._found.values())

    def __enter__(self) -> None:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._seen, lambda x: x)
        self._hooks.__enter__()

    def __exit__(self, *told: Any) -> None:
        self._hooks.__exit__(*told)

    def _seen(self, x: Any) -> Any:
        if not (x.is_leaf and x.requires_grad) and x.untyped_storage().data_ptr() not in self._own:
            self._found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x if x.is_leaf else x.detach()


def _apart(x: Any) -> Any:
    """A tensor as autograd sees it, without the graph that it comes from."""
    return x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x
