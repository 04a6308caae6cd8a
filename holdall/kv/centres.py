"""Folding tokens into the ones that stay: every head at once, though each head folds another number of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from holdall.kv.entries import Entries
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch = lazy("torch", extra="kv")
    functional = lazy("torch.nn.functional", extra="kv")

E = TypeVar("E", bound=Entries)


def candidates(score: Tensor, kept: Tensor, most: int, share: float) -> tuple[Tensor, Tensor]:
    """The next best after `kept` [B, H, C]: their indices [B, H, N], best first, and which are wanted.

    score [B, H, T], infinite for what is neither centre nor candidate. Wanted are the first up to the one with which
    centres and candidates hold `share` of the finite score, so a head whose score is concentrated wants few.
    """
    finite = score.masked_fill(~score.isfinite(), 0.0)
    rest = score.scatter(2, kept, -torch.inf).sort(dim=-1, descending=True, stable=True)
    most = min(score.shape[2] - kept.shape[2], most)
    at, value = rest.indices[..., :most], rest.values[..., :most]
    real = value.isfinite()
    value = value.masked_fill(~real, 0.0)
    ahead = finite.gather(2, kept).sum(-1, keepdim=True) + value.cumsum(-1) - value  # of those before it
    return at, real & (ahead < share * finite.sum(-1, keepdim=True))


def folded(
    x: E, score: Tensor, kept: Tensor, at: Tensor, wanted: Tensor, tau: float, weigh: str | None = None,
    values_only: bool = False, counts: str = "none",
) -> E:  # fmt: skip
    """`x.take(kept)` with the `wanted` among the entries `at` folded into the centres that their keys resemble.

    Centres are those of `kept` with a finite score. weigh: None, by the score, or "cosine": exp of it, e for a centre.
    counts: the bias of a centre: "none"; "tokens", the logarithm of how many it stands for; "mass", of how much
    attention it takes over, as far as `votes` tell, and no more than their number. Mass and votes add up.
    """
    y, others = x.take(kept), x.take(at)
    own, value = score.gather(2, kept), score.gather(2, at)
    centre = own.isfinite()
    cosine, best = _nearest(others.keys, y.keys, centre)
    into = torch.where(wanted & (cosine >= tau), best + 1, 0)  # class 0: nowhere
    if weigh == "cosine":
        own, value = torch.full_like(own, torch.e), cosine.clamp(min=-1).exp()
    own, value = own.masked_fill(~centre, 1.0), value.masked_fill(into == 0, 0.0)
    c = kept.shape[2]
    weight = summed(value[..., None], into, c)[..., 0]  # [B, H, C]
    keys = y.keys if values_only else _mean(y.keys, own, others.keys, value, into, weight)
    fields = {name: held + _added(getattr(others, name), into, c) for name, held in y.besides().items()}
    fields.pop("bias", None)
    if counts != "none":
        fields["bias"] = _bias(y, others, into, by_mass=counts == "mass")
    return y.but(keys=keys, values=_mean(y.values, own, others.values, value, into, weight), **fields)


def summed(things: Tensor, into: Tensor, slots: int) -> Tensor:
    """Sums of things [B, H, N, E] by slot: [B, H, slots, E] float32.

    into [B, H, N]: 1 + the slot. Class 0 is for those that go nowhere: whatever they hold, NaN too, counts as zero, so
    all heads have the same shapes and there is no loop over heads.
    """
    b, h, n, e = things.shape
    parts = things.float().masked_fill((into == 0)[..., None], 0.0)
    total = parts.new_zeros(b, h, slots + 1, e)
    return total.scatter_add_(2, into[..., None].expand(b, h, n, e), parts)[:, :, 1:]


def _added(held: Tensor, into: Tensor, slots: int) -> Tensor:
    return summed(held[..., None], into, slots)[..., 0]


def _nearest(keys: Tensor, centres: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """For each of keys [B, H, N, D] the allowed centre [B, H, C, D] of the largest cosine: it and the index."""
    a, c = (functional.normalize(t.float(), dim=-1) for t in (keys, centres))
    best = (a @ c.transpose(2, 3)).masked_fill_(~allowed[:, :, None], -torch.inf).max(-1)
    return best.values, best.indices


def _mean(base: Tensor, own: Tensor, more: Tensor, value: Tensor, into: Tensor, weight: Tensor) -> Tensor:
    """Weighted means; a centre to which nothing came stays bit for bit."""
    extra = summed(more.float() * value[..., None], into, base.shape[2])
    mean = (base.float() * own[..., None] + extra) / (own + weight).clamp(min=1e-30)[..., None]
    return torch.where((weight > 0)[..., None], mean.to(base.dtype), base)


def _bias(y: Entries, others: Entries, into: Tensor, by_mass: bool) -> Tensor:
    """What each centre stands for now, as a 16-bit logarithm, [B, H, C]."""
    c = y.count
    before, theirs = (torch.zeros(1) if t.bias is None else t.bias.float() for t in (y, others))
    tokens = before.exp() + _added(theirs.exp().expand(into.shape), into, c)
    bias = tokens.log()
    mine, other = (getattr(t, "votes", None) for t in (y, others))
    if by_mass and mine is not None and other is not None:
        taken = torch.log1p(_added(other, into, c) / mine.clamp(min=1e-12)) + before
        bias = torch.minimum(bias, taken)
    return bias.half()


def naive_folded(
    x: Entries, score: Tensor, kept: Tensor, at: Tensor, wanted: Tensor, tau: float, weigh: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Keys and values of `folded`, head by head and token by token."""
    keys, values = (t.float().clone() for t in (x.take(kept).keys, x.take(kept).values))
    for row in range(x.shape[0]):
        for head in range(x.shape[1]):
            stays = kept[row, head].tolist()
            centres = [i for i in stays if score[row, head, i].isfinite()]
            groups: dict[int, list[tuple[int, float]]] = {}
            for i, use in zip(at[row, head].tolist(), wanted[row, head].tolist(), strict=True):
                if use and centres:
                    key = x.keys[row, head, i].float()
                    cos = [
                        float(functional.cosine_similarity(key, x.keys[row, head, j].float(), 0))
                        for j in centres
                    ]
                    if max(cos) >= tau:
                        weight = float(score[row, head, i]) if weigh is None else max(cos)
                        groups.setdefault(centres[cos.index(max(cos))], []).append((i, weight))
            for j, members in groups.items():
                _naive_mean(
                    x, row, head, j, members, (float(score[row, head, j]), weigh), keys, values, stays
                )
    return keys, values


def _naive_mean(
    x: Entries, row: int, head: int, centre: int, members: list[tuple[int, float]], own: tuple[float, str | None],
    keys: Tensor, values: Tensor, stays: list[int],
) -> None:  # fmt: skip
    score, weigh = own
    pairs = [(centre, score if weigh is None else 1.0), *members]
    factors = torch.tensor([w for _, w in pairs])
    factors = factors if weigh is None else factors.exp()
    for mine, theirs in ((keys, x.keys), (values, x.values)):
        picked = theirs[row, head, [i for i, _ in pairs]].float()
        mine[row, head, stays.index(centre)] = (factors[:, None] * picked).sum(0) / factors.sum()
