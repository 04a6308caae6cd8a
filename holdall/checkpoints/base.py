"""The contract of the room: states of training into a folder, each whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdall.kinds import Store


@dataclass(frozen=True, kw_only=True)
class CheckpointStore(Store):
    """Keeps states of training in a folder, under any fsspec URL."""

    room: ClassVar[str] = "checkpoints"
