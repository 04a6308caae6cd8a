"""Entries that remember who looked at them: by all queries so far, and by the latest ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdall.kv.entries import Entries
from holdall.optional import lazy
from holdall.parts.attention import looks, mass

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged(Entries):
    """Entries with `votes` [B, H, T]: the attention that the latest queries paid to each."""

    beside: ClassVar[tuple[str, ...]] = ("bias", "mass", "votes")

    votes: Tensor | None = None

    @classmethod
    def of(cls, x: Entries) -> Judged:
        if isinstance(x, Judged):
            return x
        return cls(**{f.name: getattr(x, f.name) for f in dataclasses.fields(Entries)})

    def heard(self, window: int, probes: float) -> Judged:
        """With the attention of the queries that it is shown added, which are then used up.

        The last `window` queries vote; earlier ones are a share `probes` of all. Mass is an estimate of the sums over
        all queries since the entry came: each probe stands for 1 / probes queries. Older votes fade, the more the
        more queries vote now, and are gone when a whole window does.
        """
        if self.queries is None:
            return self
        latest = self.asked(window, 0.0)
        local, seen = _looked_at(latest)
        total, views, mine, every = local, seen.float(), latest.query_columns(), self.query_columns()
        if probes and every.shape[1] > mine.shape[1]:
            last = (every[:, :, None] == mine[:, None]).any(-1)  # [B, N]
            more, also = _looked_at(self.but(query_positions=every.masked_fill(last, -1)))
            total, views = total + more / probes, views + also / probes
        since = 0 if self.mass is None else every.masked_fill(every < 0, self.tokens).amin(1)[:, None, None]
        span = self.tokens - torch.maximum(
            self.where(), torch.as_tensor(since, device=local.device)
        )  # [B, H, T]
        got = total / views.clamp(min=1e-9) * span
        fade = (1 - (mine >= 0).sum(1)[:, None, None] / window).clamp(min=0)  # [B, 1, 1]
        before = 0.0 if self.mass is None else self.mass
        votes = 0.0 if self.votes is None else self.votes * fade
        return self.but(mass=before + got, votes=votes + local, queries=None, query_positions=None)


def _looked_at(x: Entries) -> tuple[Tensor, Tensor]:
    """The attention that the shown queries pay to each entry, heads of a group averaged, and how many can see it."""
    assert x.queries is not None
    at, where = x.query_columns(), x.where()
    got = mass(x.queries, at, x.keys, where, x.valid, x.scale, x.bias).mean(2)  # [B, H, T]
    return got, looks(at, where)


def summed_attention(x: Entries) -> Tensor:
    """The attention that each entry got of all queries, as far as those shown tell, [B, H, T] float32.

    Each shown query that can see an entry stands for as many as could: exact where all queries are shown.
    """
    assert x.queries is not None
    at, where = x.query_columns(), x.where()
    found = mass(x.queries, at, x.keys, where, x.valid, x.scale, x.bias).sum(2)
    return found * (span(at, where) / looks(at, where).clamp(min=1))


def span(at: Tensor, where: Tensor) -> Tensor:
    """How many queries could see each entry since the first of those at [B, W] (-1: none) was asked, [B, H, T].

    Where all queries are at hand that is what `looks` counts; where some were drawn, what they stand for.
    """
    first = at.masked_fill(at < 0, torch.iinfo(at.dtype).max).amin(1)[:, None, None]
    return (at.amax(1)[:, None, None] + 1 - torch.maximum(where, first.to(where.dtype))).clamp(min=0)
