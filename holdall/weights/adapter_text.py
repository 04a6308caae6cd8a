"""A text for a language model to learn: windows drawn from its first nine tenths, and the rest to be judged on.

Imported only where torch is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from holdall.dropins.tokenizer import Tokenizer
from holdall.engine_plan import Source
from holdall.errors import BadInput
from holdall.progress import track
from holdall.weights.opening import open as opened

_JUDGED = 8  # windows of the held-out text that are measured, at most


@dataclass(frozen=True)
class Windows:
    """`steps` batches of windows [batch, window] at starts that the seed draws; the same each time round."""

    ids: torch.Tensor
    window: int
    batch: int
    steps: int
    seed: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        draw = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            starts = torch.randint(len(self.ids) - self.window + 1, (self.batch,), generator=draw)
            yield _named(torch.stack([self.ids[s : s + self.window] for s in starts]))


@dataclass(frozen=True)
class Shown:
    """The same batches, with a bar on a terminal that says how far they are."""

    batches: Windows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(track(self.batches, "learning", total=self.batches.steps))


def _named(ids: torch.Tensor) -> dict[str, Any]:
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def parted(tokenizer: Tokenizer, text: str, window: int) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """(tokens to learn, windows to be judged on, which lie behind them)."""
    ids = torch.tensor(tokenizer.encode(text))
    apart = len(ids) * 9 // 10
    if len(ids) - apart < window:
        raise BadInput("text", f"{len(ids):,} tokens", f"at least {10 * window:,} (ten windows of {window})")
    count = min(_JUDGED, (len(ids) - apart) // window)
    starts = torch.linspace(apart, len(ids) - window, count).long()
    return ids[:apart], [_named(ids[s : s + window][None]) for s in starts]


def base(where: str) -> tuple[Any, Tokenizer]:
    """A running model, packed where its file keeps it packed, and its tokenizer."""
    source = Source.of(where)
    if source.packed is not None:
        return opened(source.packed), Tokenizer(source.files)
    from holdall.weights.model import Model

    return Model.read(where).build(), Tokenizer(source.files)
