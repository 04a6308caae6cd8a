"""Entries: what one layer of a KV cache holds, or is asked to give up."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch = lazy("torch", extra="kv")
    functional = lazy("torch.nn.functional", extra="kv")

POSITION_BYTES = 4  # int32, an entry


@dataclass(frozen=True, eq=False, kw_only=True)
class Entries:
    """Keys and values of one layer, in the order of their positions, and what a method may look at to choose.

    Held by the cache, and counted by `nbytes`: keys [B, H, T, D] and values [B, H, T, E] of the H key/value
    heads; positions [B, H, T] int32, the column of each entry in the (padded) sequence, ascending; None where
    the entries are all the columns from `first` on, which is so until a method drops something; bias [B, H, T], added
    to the scores of an entry (the logarithm of how many tokens it stands for); mass [B, H, T], the attention that an
    entry got so far, where the method goes on judging while it generates.
    Shown to the method and then forgotten: queries [B, G*H, W, D], the last W queries after any rotation, and
    their columns query_positions [B, W] (-1: no query there); valid [B, H, T], False where the latest query may
    not look (padding, out of a sliding window); scale, the factor of the scores (None: 1/sqrt(D)).
    seen: tokens that went by, dropped ones included (None: first + T). reach: how many of the last tokens a new
    one may look back at (a sliding window less one; None: all). layer: which layer of the model this is.
    """

    beside: ClassVar[tuple[str, ...]] = ("bias", "mass")  # what is held of each entry besides, [B, H, T]

    keys: Tensor
    values: Tensor
    positions: Tensor | None = None
    bias: Tensor | None = None
    mass: Tensor | None = None
    queries: Tensor | None = None
    query_positions: Tensor | None = None
    valid: Tensor | None = None
    scale: float | None = None
    first: int = 0
    seen: int | None = None
    reach: int | None = None
    layer: int = 0

    def __post_init__(self) -> None:
        if self.keys.ndim != 4 or self.keys.shape[:3] != self.values.shape[:3]:
            got = f"keys {tuple(self.keys.shape)}, values {tuple(self.values.shape)}"
            raise BadInput(
                "KV entries", got, "both [batch, heads, tokens, dimension], alike but for the last"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """[B, H, T]: of the scores."""
        b, h, t = self.keys.shape[:3]
        return b, h, t

    @property
    def count(self) -> int:
        """Entries that a head holds."""
        return self.keys.shape[2]

    @property
    def whole(self) -> bool:
        """Whether nothing was dropped yet."""
        return self.positions is None and self.first == 0

    @property
    def elements(self) -> int:
        """Numbers in one entry of every head and row together."""
        return self.shape[0] * self.shape[1] * (self.keys.shape[3] + self.values.shape[3])

    @property
    def each(self) -> int:
        """Bytes of one kept entry of every head and row together, its positions included, without bias and mass."""
        return self.elements * self.keys.element_size() + self.shape[0] * self.shape[1] * POSITION_BYTES

    @property
    def tokens(self) -> int:
        """Tokens that went by, dropped ones included."""
        return self.first + self.count if self.seen is None else self.seen

    @property
    def original(self) -> int:
        """Bytes that a cache which keeps every token within reach would have now."""
        tokens = self.tokens if self.reach is None else min(self.tokens, self.reach)
        return tokens * self.elements * self.keys.element_size()

    @property
    def nbytes(self) -> int:
        """Bytes held: what decoding needs."""
        held = (self.keys, self.values, self.positions, *self.besides().values())
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def besides(self) -> dict[str, Tensor]:
        """What is held of each entry besides key, value and position, as far as there is any."""
        return {name: held for name in self.beside if (held := getattr(self, name)) is not None}

    def where(self) -> Tensor:
        """The column of each entry, [B, H, T]."""
        if self.positions is not None:
            return self.positions
        columns = torch.arange(self.count, dtype=torch.int32, device=self.keys.device) + self.first
        return columns.expand(self.shape)

    def query_columns(self) -> Tensor:
        """The columns of the queries, also where they were not given (the last ones then), [B, W]."""
        assert self.queries is not None
        if self.query_positions is not None:
            return self.query_positions
        w, end = self.queries.shape[2], self.tokens
        return torch.arange(end - w, end, device=self.keys.device).expand(self.shape[0], w)

    def asked(self, last: int, share: float) -> Self:
        """With the last real queries only, and a share of the earlier ones; none at all if neither is wanted."""
        if self.queries is None:
            return self
        kept, columns = chosen(self.query_columns(), last, share)
        if kept.shape[1] == self.queries.shape[2]:  # all of them
            return self.but(query_positions=columns)
        at = kept[:, None, :, None].expand(-1, self.queries.shape[1], -1, self.queries.shape[3])
        return self.but(queries=self.queries.gather(2, at), query_positions=columns)

    def shown(self) -> Tensor:
        """`valid`, also where it was not given, [B, H, T]."""
        if self.valid is not None:
            return self.valid.expand(self.shape)
        return torch.ones((), dtype=torch.bool, device=self.keys.device).expand(self.shape)

    def take(self, kept: Tensor) -> Self:
        """The entries at the indices `kept` [B, H, C] (ascending), copied: the large tensors can be freed."""
        b, h, c = kept.shape
        at = kept[..., None]
        shown = None if self.valid is None else self.shown().gather(2, kept)
        keys = self.keys.gather(2, at.expand(b, h, c, self.keys.shape[3]))  # [B, H, C, D]
        values = self.values.gather(2, at.expand(b, h, c, self.values.shape[3]))  # [B, H, C, E]
        if shown is not None:  # a hidden entry has weight 0, but 0 * NaN is NaN
            keys.masked_fill_(~shown[..., None], 0)
            values.masked_fill_(~shown[..., None], 0)
        beside = {name: held.gather(2, kept) for name, held in self.besides().items()}
        where = self.where().gather(2, kept)
        return self.but(keys=keys, values=values, positions=where, valid=shown, seen=self.tokens, **beside)

    def within_reach(self) -> Self:
        """Without the oldest entries that no later token can look at; itself if there are none of these."""
        dead = 0 if self.reach is None else self.count - self.reach
        if dead <= 0 or self.positions is not None:
            return self
        return self.but(
            keys=self.keys[:, :, dead:].clone(),
            values=self.values[:, :, dead:].clone(),
            valid=None if self.valid is None else self.shown()[:, :, dead:],
            **{name: held[:, :, dead:].clone() for name, held in self.besides().items()},
            first=self.first + dead,
            seen=self.tokens,
        )

    def copy(self) -> Self:
        """The same, sharing no memory."""
        tensors = {k: v.clone() for k, v in vars(self).items() if hasattr(v, "clone")}
        return self.but(**tensors, seen=self.tokens)

    def held(self) -> Self:
        """Only what a cache must hold, without what was shown to the method."""
        return self.but(queries=None, query_positions=None, valid=None)

    def append(self, keys: Tensor, values: Tensor) -> Self:
        """With newer entries behind, at the columns that follow the last token seen."""
        new = keys.shape[2]
        where = None
        if self.positions is not None:
            columns = torch.arange(self.tokens, self.tokens + new, dtype=torch.int32, device=keys.device)
            where = torch.cat([self.positions, columns.expand(*self.shape[:2], new)], dim=2)
        beside = {name: functional.pad(held, (0, new)) for name, held in self.besides().items()}
        return self.but(
            keys=torch.cat([self.keys, keys], dim=2),
            values=torch.cat([self.values, values], dim=2),
            positions=where,
            seen=self.tokens + new,
            **beside,
        )

    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys [B, H, T, D] and values [B, H, T, E] as numbers that can be computed with, in the order of `where`."""
        return self.keys, self.values

    def plain(self) -> Entries:
        """The same without packed tiers."""
        return self

    def attend(self, queries: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Attention of queries [B, H, N, D], those of a head's group one after the other: [B, H, N, E].

        mask [B, H, N, T]: True, or what is added to the scores, where a query may look; None: everywhere.
        """
        keys, values = self.dense()
        if self.bias is not None:
            more = self.bias[:, :, None].to(queries.dtype)  # [B, H, 1, T]
            if mask is not None and mask.dtype == torch.bool:
                more = torch.where(mask, more, -torch.inf)
            elif mask is not None:
                more = more + mask
            mask = more.expand(*queries.shape[:3], self.count)
        return functional.scaled_dot_product_attention(queries, keys, values, mask, scale=scale)

    def weighted(self, scores: Tensor) -> Tensor:
        """What the softmax of the eager path is taken of, from masked scores [B, H, N, T]."""
        return scores if self.bias is None else scores + self.bias[:, :, None].to(scores.dtype)

    def rows(self, change: Any) -> Self:
        """`change` applied to each tensor's first axis, the batch."""
        return self.but(**{k: change(v) for k, v in vars(self).items() if hasattr(v, "index_select")})

    def but(self, **fields: Any) -> Self:
        """The same with some fields changed."""
        return dataclasses.replace(self, **fields)


def chosen(columns: Tensor, last: int, share: float) -> tuple[Tensor, Tensor]:
    """The last real queries of each row and a share of its earlier ones, by their columns [B, N] (-1: no query).

    Returns their indices and their columns, [B, W], -1 where a row has fewer. The lot falls on columns, so the same
    queries are drawn however a prompt was cut in chunks.
    """
    newest = columns.argsort(dim=1, descending=True).argsort(dim=1)  # 0: the latest
    lot = (columns.long() * 2654435761 >> 7) % 65536
    wanted = (columns >= 0) & ((newest < last) | (lot < share * 65536))
    count = int(wanted.sum(1).max()) if columns.numel() else 0
    kept = wanted.int().argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values  # [B, W]
    return kept, columns.masked_fill(~wanted, -1).gather(1, kept)
