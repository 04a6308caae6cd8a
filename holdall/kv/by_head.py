"""Heads that hold different things: some many tokens in many bits, others a few, all in one layer of a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from holdall.kv.entries import Entries
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

Heads = tuple[int, ...]
Part = tuple[str, Heads, Entries]  # what a method calls them, some heads, and their entries


def of_heads(x: Entries, heads: Sequence[int]) -> Entries:
    """Some heads of plain entries by themselves, with what is shown to a method of them."""
    at = list(heads)
    some = {name: held[:, at] for name, held in x.besides().items()}
    return x.but(
        keys=x.keys[:, at],
        values=x.values[:, at],
        positions=None if x.positions is None else x.positions[:, at],
        **some,
        **_told(x, at, None),
    )


def _told(x: Entries, at: list[int], count: int | None) -> dict[str, Any]:
    """What is shown to a method of some heads, of which each has `count` entries."""
    h = x.shape[1]
    told: dict[str, Any] = {
        "query_positions": x.query_positions,
        "scale": x.scale,
        "queries": None,
        "valid": None,
    }
    if x.queries is not None:
        grouped = x.queries.unflatten(1, (h, -1))
        told["queries"] = grouped[:, at].flatten(1, 2)
    if x.valid is not None:
        told["valid"] = x.shown()[:, at, :count]
    return told


@dataclass(frozen=True, eq=False, kw_only=True)
class ByHead(Entries):
    """Entries of which each group of heads is held by itself, as many and in the form that its budget allows.

    groups: the heads of each, and their entries; names: what a method calls each. keys and values hold nothing and
    tell type and sizes. Where a head has fewer entries than another, `where` and `dense` have zeros behind its own.
    """

    groups: tuple[tuple[Heads, Entries], ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, x: Entries, groups: Sequence[Part]) -> ByHead:
        """Groups that were made of the heads of `x`, by name."""
        keys, values = (t[:, :, :0].clone() for t in (x.keys, x.values))
        return cls(
            keys=keys, values=values, groups=tuple((heads, some.held()) for _, heads, some in groups),
            names=tuple(name for name, _, _ in groups), first=x.first, seen=x.tokens, reach=x.reach, layer=x.layer,
        )  # fmt: skip

    def parts(self) -> list[Part]:
        """The groups with their names, each with what is shown to a method of its heads."""
        told = zip(self.names, self.groups, strict=True)
        return [(name, heads, g.but(**_told(self, list(heads), g.count))) for name, (heads, g) in told]

    def each_group(self, change: Callable[[Heads, Entries], Entries], **fields: Any) -> Self:
        """The same with every group changed."""
        return self.but(groups=tuple((heads, change(heads, g)) for heads, g in self.groups), **fields)

    @property
    def count(self) -> int:
        return max(g.count for _, g in self.groups)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.keys.shape[0], self.keys.shape[1], self.count

    @property
    def whole(self) -> bool:
        return False

    @property
    def nbytes(self) -> int:
        return sum(g.nbytes for _, g in self.groups)

    def _spread(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor of all heads, [B, H, T, ...], from those of the groups."""
        b, h, t = self.shape
        out = parts[0].new_zeros((b, h, t, *parts[0].shape[3:]))
        for (heads, g), part in zip(self.groups, parts, strict=True):
            out[:, list(heads), : g.count] = part
        return out

    def where(self) -> Tensor:
        return self._spread([g.where() for _, g in self.groups])

    def dense(self) -> tuple[Tensor, Tensor]:
        made = [g.dense() for _, g in self.groups]
        return self._spread([k for k, _ in made]), self._spread([v for _, v in made])

    def shown(self) -> Tensor:
        """What may be looked at, [B, H, T]; never what a head does not have."""
        own = self._spread(
            [torch.ones(g.shape, dtype=torch.bool, device=g.keys.device) for _, g in self.groups]
        )
        return own if self.valid is None else own & self.valid.expand(self.shape)

    def plain(self) -> Entries:
        """One plain group of all heads where they have alike many entries; else the groups, each of them plain."""
        if all(g.count == self.count for _, g in self.groups):
            keys, values = self.dense()
            gone = self.count < self.tokens - self.first
            return Entries(
                keys=keys, values=values, positions=self.where() if gone else None, first=self.first, seen=self.tokens,
                reach=self.reach, layer=self.layer, queries=self.queries, query_positions=self.query_positions,
                valid=self.valid, scale=self.scale,
            )  # fmt: skip
        return self.each_group(lambda _, g: g.plain())

    def append(self, keys: Tensor, values: Tensor) -> Self:
        new = keys.shape[2]

        def longer(heads: Heads, g: Entries) -> Entries:
            return g.append(keys[:, list(heads)], values[:, list(heads)])

        return self.each_group(longer, seen=self.tokens + new)

    def within_reach(self) -> Self:
        return self.each_group(lambda _, g: g.but(reach=self.reach).within_reach())

    def held(self) -> Self:
        return self.each_group(lambda _, g: g.held(), queries=None, query_positions=None, valid=None)

    def copy(self) -> Self:
        return self.each_group(lambda _, g: g.copy())

    def rows(self, change: Any) -> Self:
        return self.each_group(
            lambda _, g: g.rows(change), keys=change(self.keys), values=change(self.values)
        )

    def attend(self, queries: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        out = queries.new_empty((*queries.shape[:3], self.values.shape[3]))
        for heads, g in self.groups:
            at = list(heads)
            some = None if mask is None else mask[:, at, :, : g.count]
            out[:, at] = g.attend(queries[:, at], some, scale).to(out.dtype)
        return out

    def weighted(self, scores: Tensor) -> Tensor:
        scores = scores.masked_fill(~self.but(valid=None).shown()[:, :, None], -torch.inf)
        for heads, g in self.groups:
            at = list(heads)
            scores[:, at, :, : g.count] = g.weighted(scores[:, at, :, : g.count])
        return scores


def two_groups(x: Entries, first: Heads, names: tuple[str, str]) -> list[Part]:
    """The heads `first` under the first name, all others under the second.

    Groups that there are already stay as they are; heads that leave the first become plain and a group of their own.
    """
    if not isinstance(x, ByHead):
        x, rest = x.plain(), tuple(i for i in range(x.shape[1]) if i not in first)
        told = zip(names, (first, rest), strict=True)
        return [(name, heads, of_heads(x, heads)) for name, heads in told if heads]
    found: list[Part] = []
    for name, heads, some in x.parts():
        gone = tuple(i for i in heads if name == names[0] and i not in first)
        if not gone:
            found.append((name, heads, some))
            continue
        plain, stay = some.plain(), tuple(i for i in heads if i not in gone)
        told = zip(names, (stay, gone), strict=True)
        found += [(n, some, of_heads(plain, [heads.index(i) for i in some])) for n, some in told if some]
    return found
