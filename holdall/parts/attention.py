"""How much attention tokens get: sums over queries of softmax weights, in blocks, so that no [T, T] ever stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_BLOCK = 256  # queries at a time
_HIDDEN = 1e30  # taken from the scores of keys that nothing may see
_WORTH = 5_000_000  # products that are worth handing heads to another thread


def mass(
    queries: Tensor, at: Tensor, keys: Tensor, where: Tensor, shown: Tensor | None = None, scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The attention that each key gets, summed over the queries: [B, H, G, T] float32, by query head of a group.

    queries [B, G*H, W, D] at the columns at [B, W] (-1: no query there); keys [B, H, T, D] at the columns
    where [B, H, T], ascending. A query sees the keys at its own column or before. shown [B, H, T]: keys that may
    be seen at all; NaN in the others leaks nowhere. scale: of the scores (None: 1/sqrt(D)); bias [B, H, T]: added to
    them. Raises BadInput where the query heads are no multiple of the key heads. Cost: W x T products, and as many
    exponentials; on a processor, none for keys after the query.
    """
    h, d = keys.shape[1], keys.shape[3]
    if queries.shape[1] % h:
        raise BadInput("query heads", queries.shape[1], f"a multiple of the {h} key/value heads")
    scale = d**-0.5 if scale is None else scale
    if keys.device.type == "cpu":
        return _by_strips(queries, at, keys, where, shown, scale, bias)
    return _by_blocks(queries, at, keys, where, shown, scale, bias)


def _by_strips(
    queries: Tensor, at: Tensor, keys: Tensor, where: Tensor, shown: Tensor | None, scale: float, bias: Tensor | None
) -> Tensor:  # fmt: skip
    """`mass` by a kernel that keeps the scores of a few queries near."""
    from holdall.parts.attention_sums import sums
    from holdall.parts.bits import flat_bits
    from holdall.parts.rows import by_rows

    (b, h, t, d), w = keys.shape, queries.shape[2]
    total, more = torch.zeros(b, h, queries.shape[1] // h, t), torch.zeros(b * h, 0)
    if shown is not None or bias is not None:
        more = torch.zeros(b, h, t) if bias is None else bias.detach().float().expand(b, h, t)
        more = (more if shown is None else more.masked_fill(~shown, -_HIDDEN)).reshape(b * h, t).contiguous()
    columns = at[:, None].expand(b, h, w).to(where.dtype).contiguous()
    sees = torch.searchsorted(where.contiguous(), columns, right=True).view(b * h, w)
    (q, q_brain, q_steps), (k, k_brain, k_steps) = flat_bits(queries), flat_bits(keys)
    steps = np.array([(h, *q_steps), (h, *k_steps)], np.int64)
    args = (q, q_brain, steps[0], k, k_brain, steps[1], d, np.float32(scale), sees.numpy(), more.numpy())
    by_rows(sums, b * h, total.numel() * w * d / _WORTH, *args, total.flatten(0, 1).numpy())
    return total


def _by_blocks(
    queries: Tensor, at: Tensor, keys: Tensor, where: Tensor, shown: Tensor | None, scale: float, bias: Tensor | None
) -> Tensor:  # fmt: skip
    """`mass` in terms of torch, for other devices."""
    (b, h, t, d), w = keys.shape, queries.shape[2]
    total = torch.zeros(b, h, queries.shape[1] // h, t, device=keys.device)
    keys = keys.float() if shown is None else keys.float().masked_fill(~shown[..., None], 0)
    first = where.amin((0, 1))  # [T] the earliest column that any head has here
    for start in range(0, w, _BLOCK):
        columns = at[:, start : start + _BLOCK]  # [B, N]
        n = columns.shape[1]
        end = int((first <= columns.max()).sum())  # later keys are not seen by this block
        asked = queries[:, :, start : start + n].float().reshape(b, h, -1, d)  # [B, H, G*N, D]
        scores = (asked @ keys[:, :, :end].transpose(2, 3) * scale).view(b, h, -1, n, end)
        if bias is not None:
            scores += bias[:, :, None, None, :end]
        visible = where[:, :, None, :end] <= columns[:, None, :, None]  # [B, H, N, end]
        if shown is not None:
            visible = visible & shown[:, :, None, :end]
        weights = scores.masked_fill_(~visible[:, :, None], -torch.inf).softmax(
            dim=-1
        )  # fp32: bf16 would tie
        real = visible.any(-1)[:, :, None, :, None]  # a padding query sees nothing and its softmax is NaN
        total[..., :end] += weights.masked_fill(~real, 0.0).sum(3)
    return total


def looks(at: Tensor, where: Tensor) -> Tensor:
    """How many of the queries at the columns at [B, W] (-1: none) can see each key: [B, H, T], int64."""
    b, h, t = where.shape
    columns = at.sort(dim=1).values.contiguous()  # [B, W]
    before = torch.searchsorted(columns, where.reshape(b, h * t).to(columns.dtype).contiguous())
    return at.shape[1] - before.view(b, h, t)


def naive_mass(
    queries: Tensor, at: Tensor, keys: Tensor, where: Tensor, shown: Tensor | None = None, scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`mass`, one query at a time."""
    b, h, t, d = keys.shape
    groups = queries.shape[1] // h
    total = torch.zeros(b, h, groups, t)
    for row in range(b):
        for head in range(groups * h):
            mine = head // groups
            for i in range(queries.shape[2]):
                sees = where[row, mine] <= at[row, i]
                if shown is not None:
                    sees = sees & shown[row, mine]
                if not sees.any():
                    continue
                picked = keys[row, mine, sees].float()
                scores = picked @ queries[row, head, i].float() * (d**-0.5 if scale is None else scale)
                if bias is not None:
                    scores = scores + bias[row, mine, sees]
                total[row, mine, head % groups, sees] += scores.softmax(0)
    return total
