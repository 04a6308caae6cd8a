"""Sets of tokens that become one entry: which of them gives it its place, and what each of them weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdall.kv.centres import summed
from holdall.kv.entries import Entries
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")


def pivots(runs: Tensor, score: Tensor) -> Tensor:
    """For each token the index of the best (the first of these) of its run, [B, H, T]; itself where it is in none.

    runs [B, H, T]: the number of its run, -1 in none.
    """
    t = runs.shape[2]
    index, into = torch.arange(t, device=runs.device).expand(runs.shape), runs.clamp(min=0)
    score = score.masked_fill(runs < 0, -torch.inf)
    top = torch.full_like(score, -torch.inf).scatter_reduce_(2, into, score, "amax")
    first = index.masked_fill((score < top.gather(2, into)) | (runs < 0), t)
    pivot = torch.full_like(index, t).scatter_reduce_(2, into, first, "amin").gather(2, into)
    return torch.where(runs < 0, index, pivot)


def merged(x: Entries, kept: Tensor, pivot: Tensor, kernel: str, values: str, most: int) -> Entries:
    """`x.take(kept)`, each with the tokens whose pivot [B, H, T] it is; one that stands alone stays bit for bit.

    kernel, values, most: what KVMerger's knobs `kernel`, `values` and `longest` say.
    """
    y, c = x.take(kept), kept.shape[2]
    slot = torch.zeros_like(pivot)
    slot.scatter_(2, kept, torch.arange(1, c + 1, device=kept.device).expand(kept.shape))
    into = slot.gather(2, pivot).masked_fill(~x.shown(), 0)  # [B, H, T], 0: nowhere
    size = _sums(torch.ones(x.shape, device=kept.device), into, c)  # [B, H, C]
    weight = _weights(x.keys.float(), pivot, into, size, kernel)
    total = _sums(weight, into, c).clamp(min=1e-30)[..., None]
    key, value = (summed(t.float() * weight[..., None], into, c) / total for t in (x.keys, x.values))
    if values == "sum":
        value = value * size.clamp(max=most)[..., None]
    several = (size > 1)[..., None]
    y = y.but(
        keys=torch.where(several, key.to(y.keys.dtype), y.keys),
        values=torch.where(several, value.to(y.values.dtype), y.values),
    )
    if values != "bias":
        return y
    stand = torch.ones_like(weight) if x.bias is None else x.bias.float().exp()  # tokens behind each
    return y.but(bias=_sums(stand, into, c).clamp(min=1).log().half())


def _weights(keys: Tensor, pivot: Tensor, into: Tensor, size: Tensor, kernel: str) -> Tensor:
    """exp(-|k_p - k|^2 / (2 sigma^2)) of each token in its set, 1 for the pivot, [B, H, T] float32."""
    far = (keys - keys.gather(2, pivot[..., None].expand(keys.shape))).square().sum(-1)
    if kernel == "even":
        return torch.ones_like(far)
    if kernel == "pivot":
        return (pivot == torch.arange(pivot.shape[2], device=pivot.device)).float()
    c, at = size.shape[2], (into - 1).clamp(min=0)
    width = (
        (_sums(far, into, c) / size.clamp(min=1)).gather(2, at).clamp(min=1e-30)
    )  # 2 sigma^2, the first time
    weight = torch.exp(-far / width)
    if kernel == "once":
        return weight
    sigma = _sums(weight, into, c) / (2**0.5 * size.clamp(min=1))
    return torch.exp(-far / (2 * sigma.square()).gather(2, at).clamp(min=1e-30))


def _sums(things: Tensor, into: Tensor, slots: int) -> Tensor:
    return summed(things[..., None], into, slots)[..., 0]
