"""vAttention: contexts that grow on demand and stay contiguous, because the page table does the translating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Runtime, Spend
from holdall.kv.pages import Geometry
from holdall.kv.virtual import LARGEST, SMALLEST
from holdall.method import Paper, knob

if TYPE_CHECKING:
    from holdall.kv.slots import Slots

_RECLAIM = ("deferred", "gradual", "at once")


@dataclass(frozen=True, kw_only=True)
class VAttention(Runtime):
    """Gives many requests one memory for their contexts; each takes what it has written, and nothing is copied.

    Reserves addresses for every slot at its full length, which costs nothing, and lets the kernel put pages behind
    them a block at a time, before each step, never more than the budget. A context is then one plain tensor whose
    address never changes, and any attention works on it. Pages of a request that ended stay for the next one in its
    slot, and are taken back only when the pool is short. A prefix can be the same memory in many slots. Good where
    lengths differ and are not known before. Poor where a model is so small, or contexts so short, that a page group
    for each tensor and slot is most of them; `sliced` or smaller page groups help then.

    Shapes: keys, values [B, S, H, D] for each layer, plain views; lengths: one int a slot, 0 is inactive.
    Cost: a call to the kernel for each page group: 1.2 ms for the 60 of 64 kB that SmolLM2's next block takes, once
    in 85 tokens; 0.05 ms where the thread was there before. Waste is at most a page group a tensor and slot.
    Knobs:
        slots: requests at a time, B (paper: what the server's batch is)
        length: tokens of the longest context, S (paper: the model's window)
        page: bytes of a page group, a power of two (paper: 64 kB to 256 kB with its own driver, 2 MB without)
        sliced: all layers of a slot in one tensor, so that a page group lasts for fewer tokens (paper: tensor slicing)
        reclaim: when the pages of a request that ended go: "deferred" until they are missed, "gradual" a block a
            step, "at once" (paper: deferred)
        background: whether `step` lets a thread map what the next one needs (paper: yes)
        ahead: steps that the thread looks ahead (paper: 10)
        extra: blocks that it maps at most beyond the next step's, and keeps ready in the next slot (paper: 2)
    Differs from the paper: it is for CUDA's virtual memory (cuMemMap and its like); this is for the CPU: private
    anonymous memory without reserve, populated and given back with madvise, huge pages off unless a page group is one.
    There is no CUDA form, because none could be tested. There is no pool of page handles: the kernel has the pages,
    and the pool is a count that is checked before any is touched. A prefix is copied once into a memory file, and its
    whole page groups are mapped from there into every slot; what is to be written is copied first. A resident set
    (RSS) counts such pages once for each slot, so this measures them by their file. A page group may end inside a
    token. On a CPU sliced tensors make attention 1.4 times slower, because a token's keys lie far from the next one's.
    Example:
        >>> from holdall.kv import Geometry, VAttention
        >>> smollm2 = Geometry(layers=30, heads=3, dim=64)
        >>> with VAttention(slots=4).open(smollm2, "50%") as slots:
        ...     slots.step([100, 300])
        ...     list(slots.keys[29].shape), slots.cost(300), slots.resident() >= slots.cost(100) + slots.cost(300)
        ([4, 2048, 3, 64], 15728640, True)

    Paper: 066, Prabhu et al., vAttention: Dynamic Memory Management for Serving LLMs, ASPLOS 2025
    Test: tests/kv/test_vattention.py
    """

    name: ClassVar[str] = "vattention"
    room: ClassVar[str] = "kv"
    measured_by: ClassVar[str] = "slot_load"
    paper: ClassVar[Paper] = Paper(
        66,
        "vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention",
        "Prabhu, Nayak, Mohan, Ramjee, Panwar; ASPLOS 2025",
        "https://arxiv.org/abs/2405.04437",
    )
    doors: ClassVar[tuple[str, ...]] = ("holdall.kv.virtual.Region.map",)

    slots: int = knob(8, "requests at a time", unit="requests", other=4, changes="traffic")
    length: int = knob(2048, "longest context", unit="tokens", other=1024, changes="traffic")
    page: int = knob(64 << 10, "page group, a power of two", unit="bytes", other=16 << 10, changes="traffic")
    sliced: bool = knob(False, "all layers of a slot in one tensor", other=True, changes="traffic")
    reclaim: str = knob(
        "deferred", 'when pages go: "deferred", "gradual", "at once"', other="at once", changes="traffic"
    )
    background: bool = knob(True, "let a thread map ahead", other=False, changes="traffic")
    ahead: int = knob(10, "steps that the thread looks ahead", unit="steps", other=200, changes="traffic")
    extra: int = knob(
        2, "blocks that it maps beyond the next step's", unit="blocks", other=0, changes="traffic"
    )

    def __post_init__(self) -> None:
        for name, least in (("slots", 1), ("length", 1), ("ahead", 1), ("extra", 0)):
            if getattr(self, name) < least:
                raise BadInput(name, getattr(self, name), f"at least {least}")
        if not SMALLEST <= self.page <= LARGEST or self.page & (self.page - 1):
            raise BadInput("page", self.page, f"a power of two from {SMALLEST} to {LARGEST} bytes")
        if self.reclaim not in _RECLAIM:
            raise BadInput("reclaim", self.reclaim, ", ".join(_RECLAIM))

    def open(self, artefact: Geometry, budget: Spend = None) -> Slots:
        """Slots for a model of that geometry; a share is of what all of them would take at full length."""
        from holdall.kv.slots import Slots

        whole = self.whole(artefact)
        spend = Budget.parse(budget)
        pool = whole if spend is None else spend.limit(whole)
        block = self.page * (2 if self.sliced else 2 * artefact.layers)
        if pool < block:
            raise BudgetError(pool, block, who=self.full_name(), why="one page group in each tensor")
        return Slots(self, artefact, pool)

    def whole(self, artefact: Geometry) -> int:
        """Bytes of all slots at their full length, in whole page groups: what a static reserve takes."""
        layers = artefact.layers if self.sliced else 1
        groups = -(-self.length * artefact.row * layers // self.page)
        return 2 * artefact.layers // layers * self.slots * groups * self.page

    @classmethod
    def rehearsal(cls) -> tuple[Any, Sequence[Any]]:
        """Three requests that grow, end and come again, in up to 40 MB."""
        lengths = [[100 + 7 * i, 40 + 5 * i, 0 if i % 8 < 3 else 60 * i] for i in range(16)]
        return Geometry(layers=6, heads=3, dim=64), lengths
