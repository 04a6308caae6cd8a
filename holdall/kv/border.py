"""Between what was kept of a prompt and what was generated: where one entry goes for each that comes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdall.kv.entries import Entries
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="kv")


@dataclass(frozen=True, eq=False, kw_only=True)
class Bordered(Entries):
    """Entries with the index at which one goes for each that comes; None: no border yet."""

    border: int | None = None

    @classmethod
    def of(cls, x: Entries, distance: int) -> Bordered:
        """What was kept of a prompt, with the border `distance` from its end, or in the middle if it is shorter."""
        border = x.count + distance
        fields = {f.name: getattr(x, f.name) for f in dataclasses.fields(Entries)}
        return cls(**fields, border=border if border >= 1 else x.count // 2)


def without(x: Entries, over: int, distance: int) -> Entries:
    """`x` without the `over` entries from the border on."""
    border = x.border if isinstance(x, Bordered) else None
    border = max(1, x.count - over + distance) if border is None else border
    border = min(border, x.count - over)
    index = torch.arange(x.count, device=x.keys.device)
    stays = index[(index < border) | (index >= border + over)]
    return x.take(stays.expand(*x.shape[:2], -1).contiguous())
