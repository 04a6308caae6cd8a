"""The contract of the room: states of training into a folder, each whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdall.budget import Budget
from holdall.errors import BadInput, BudgetError
from holdall.kinds import Spend, Store


@dataclass(frozen=True, kw_only=True)
class CheckpointStore(Store):
    """Keeps states of training in a folder, under any fsspec URL."""

    room: ClassVar[str] = "checkpoints"

    @classmethod
    def allowed(cls, memory: Spend, least: int, why: str) -> int | None:
        """Bytes of memory beside the state; None: as many as it takes. Shares are of no size that is known before."""
        asked = Budget.parse(memory)
        if asked is None:
            return None
        if asked.bytes is None:
            raise BadInput("memory", str(memory), 'bytes, such as "64MB"')
        if asked.bytes < least:
            raise BudgetError(asked.bytes, least, who=cls.full_name(), why=why)
        return int(asked.bytes)
