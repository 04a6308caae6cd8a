"""Keys and values become packed codes: grids by channel or by token, and what they cost.

Each way is here twice: in terms of torch, for any device, and by the kernels of `holdall.kv.code_kernels`, which
differ from it by the rounding of sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput
from holdall.kv.affine import Bands, ByChannel, ByToken, pack_bands
from holdall.optional import lazy
from holdall.parts.quant import _MOST, cut, encode, grid, lengths, pack, width
from holdall.parts.rows import by_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")


_WORTH = 200_000  # numbers that are worth handing heads to another thread


def channel_bytes(count: int, channels: int, bands: Bands, group: int) -> int:
    """Bytes of keys by channel of one head, without `order`."""
    return sum(4 * channels + sum(n * width(t, b) for n, b in bands) for t in lengths(cut(count, group)))


def by_channel(
    x: Tensor, shown: Tensor, bands: Bands, group: int, fit: int, order: Tensor | None = None
) -> ByChannel:
    """Keys [B, H, N, D] with a grid for each channel in parts of `group` tokens; shown [B, H, N] have a say.

    order [B, H, D]: which channel gets which place in the bands.
    """
    if not _near(x):
        return channels_in_torch(x, shown, bands, group, fit, order)
    from holdall.kv.code_kernels import by_channel as kernel

    (b, h, n, d), ends = x.shape, cut(x.shape[2], group)
    made = ByChannel(
        codes=torch.empty(b, h, channel_bytes(n, d, bands, group) - 4 * d * len(ends), dtype=torch.uint8),
        ends=tuple(ends), bands=bands, order=order, **_empty(("s", "z"), b, h, len(ends), d),
    )  # fmt: skip
    codes, cuts, stops, places, s, z, _, _ = made.arrays
    rounds = np.array([_rounds(fit, bits) for _, bits in bands], np.int64)
    peaks, work = np.zeros(b * h, np.float32), x.numel() / _WORTH
    by_rows(kernel, b * h, work, *_read(x, shown), places, cuts, rounds, stops, codes, s, z, peaks)
    _fits(peaks)
    return made


def channels_in_torch(
    x: Tensor, shown: Tensor, bands: Bands, group: int, fit: int, order: Tensor | None = None
) -> ByChannel:
    """`by_channel` in terms of torch."""
    x = x.float()
    if order is not None:
        x = x.gather(3, order.long()[:, :, None].expand_as(x))
    ends, start = cut(x.shape[2], group), 0
    codes = [torch.zeros(*x.shape[:2], 0, dtype=torch.uint8, device=x.device)]
    grids = [torch.zeros(2, *x.shape[:2], 0, x.shape[3], dtype=torch.float16, device=x.device)]
    while ends and start < ends[-1]:
        n = next(e for e in ends if e > start) - start
        many = lengths(ends).count(n)
        end = start + n * many  # parts of one length, at once
        part = x[:, :, start:end].unflatten(2, (many, n))  # [B, H, P, n, D]
        see = shown[:, :, start:end].unflatten(2, (many, n))[..., None]
        packed, params = _bands(part, see, bands, fit)
        codes.append(packed)
        grids.append(params)
        start = end
    s, z = torch.cat(grids, dim=3)
    return ByChannel(codes=torch.cat(codes, dim=2), ends=tuple(ends), bands=bands, s=s, z=z, order=order)


def _bands(part: Tensor, see: Tensor, bands: Bands, fit: int) -> tuple[Tensor, Tensor]:
    """Bytes [B, H, P * bytes] and grids [2, B, H, P, D] of parts [B, H, P, n, D]."""
    codes, grids, place = [], [], 0
    for count, bits in bands:
        some = part[..., place : place + count]
        step, low = grid(some, bits, 3, fit=_rounds(fit, bits), shown=see)
        codes.append(encode(some, step, low, bits).masked_fill_(~see, 0))
        grids.append(torch.stack([step[..., 0, :], low[..., 0, :]]))
        place += count
    return pack_bands(torch.cat(codes, dim=4), bands), torch.cat(grids, dim=4)


def by_token(
    x: Tensor, shown: Tensor, bits: int, s: Tensor, fit: int, joined: bool, z: Tensor | None = None
) -> ByToken:
    """Values [B, H, N, D], less z and divided by s [B, H, D], with a grid for each token, of one head or `joined`."""
    s, z = s.half(), None if z is None else z.half()
    if not _near(x):
        return tokens_in_torch(x, shown, bits, s, fit, joined, z)
    from holdall.kv.code_kernels import by_token as kernel

    b, h, n, d = x.shape
    codes = torch.empty(b, h, n, width(d, bits), dtype=torch.uint8)
    made = ByToken(codes=codes, bits=bits, s=s, z=z, **_empty(("a", "m"), b, 1 if joined else h, n))
    rows, heads = (b, h) if joined else (b * h, 1)
    flat, brain, see = _read(x, shown)
    codes_, a, m, s_, z_ = made.arrays
    flat, see, codes_, s_, z_ = (
        t.reshape(rows, heads, *(t.shape[1:] if t.size else [0] * (t.ndim - 1)))
        for t in (flat, see, codes_, s_, z_)
    )
    peaks = np.zeros(rows * n, np.float32)
    by_rows(kernel, rows * n, x.numel() / _WORTH, flat, brain, see, bits, fit, s_, z_, codes_, a, m, peaks)
    _fits(peaks)
    return made


def tokens_in_torch(
    x: Tensor, shown: Tensor, bits: int, s: Tensor, fit: int, joined: bool, z: Tensor | None = None
) -> ByToken:
    """`by_token` in terms of torch; s and z in halves."""
    y = x.float() if z is None else x.float() - z.float()[:, :, None]
    y = y.masked_fill(~shown[..., None], 0) / s.float()[:, :, None]
    a, m = token_grid(y, shown, bits, fit, joined)
    q = encode(y, a[..., None], m[..., None], bits).masked_fill(~shown[..., None], 0)
    return ByToken(codes=pack(q, bits), bits=bits, a=a, m=m, s=s, z=z)


def keys_by_token(
    x: Tensor, shown: Tensor, bits: int, s: Tensor, fit: int, z: Tensor | None = None
) -> ByChannel:
    """Keys [B, H, N, D], less z, divided by s [B, H, D], with a grid for each token, packed by channel in one part."""
    s, z = s.half()[:, :, None], None if z is None else z.half()[:, :, None]
    if not _near(x):
        return keys_in_torch(x, shown, bits, s, fit, z)
    from holdall.kv.code_kernels import keys_by_token as kernel

    b, h, n, d = x.shape
    codes = torch.empty(b, h, d * width(n, bits), dtype=torch.uint8)
    made = ByChannel(codes=codes, ends=(n,), bands=((d, bits),), s=s, z=z, **_empty(("a", "m"), b, h, n))
    codes_, _, _, _, s_, z_, a, m = made.arrays
    s_, z_ = (t.reshape(b * h, t.shape[1] * t.shape[2]) for t in (s_, z_))
    peaks, rounds = np.zeros(b * h, np.float32), _rounds(fit, bits)
    by_rows(kernel, b * h, x.numel() / _WORTH, *_read(x, shown), bits, rounds, s_, z_, codes_, a, m, peaks)
    _fits(peaks)
    return made


def keys_in_torch(
    x: Tensor, shown: Tensor, bits: int, s: Tensor, fit: int, z: Tensor | None = None
) -> ByChannel:
    """`keys_by_token` in terms of torch; s and z in halves, [B, H, 1, D]."""
    y = x.float() if z is None else x.float() - z.float()
    y = y.masked_fill(~shown[..., None], 0) / s.float()
    a, m = token_grid(y, shown, bits, _rounds(fit, bits), joined=False)
    q = encode(y, a[..., None], m[..., None], bits).masked_fill(~shown[..., None], 0)
    bands = ((x.shape[3], bits),)
    return ByChannel(
        codes=pack_bands(q[:, :, None], bands), ends=(x.shape[2],), bands=bands, s=s, z=z, a=a, m=m
    )


def _rounds(fit: int, bits: int) -> int:
    """Least squares cut off extremes, which in keys are often what queries look for: only where bits are few."""
    return fit if bits < 3 else 0


def token_grid(y: Tensor, shown: Tensor, bits: int, fit: int, joined: bool) -> tuple[Tensor, Tensor]:
    """(a, m), [B, H or 1, N]."""
    b, h, n, d = y.shape
    if not joined:
        step, low = grid(y, bits, 3, fit=fit, shown=shown[..., None])
        return step[..., 0], low[..., 0]
    side = y.transpose(1, 2).reshape(b, n, h * d)
    see = shown.transpose(1, 2)[..., None].expand(b, n, h, d).reshape(b, n, h * d)
    step, low = grid(side, bits, 2, fit=fit, shown=see)
    return step[:, None, :, 0], low[:, None, :, 0]


def _near(x: Tensor) -> bool:
    """Whether the kernels can pack numbers: on a processor, and all finite (also those that nobody may see)."""
    if x.device.type != "cpu":
        return False
    return not x.numel() or bool(torch.isfinite(x.sum(dtype=torch.float32)))


def _read(x: Tensor, shown: Tensor) -> tuple[np.ndarray, bool, np.ndarray]:
    """What the kernels read: numbers [B*H, N, D], whether they are bfloat16, and what is shown [B*H, N]."""
    from holdall.parts.bits import bits_of

    see = shown.flatten(0, 1)
    if bool(shown.all()):
        see = torch.empty(x.shape[0] * x.shape[1], 0, dtype=torch.bool)
    return *bits_of(x), see.contiguous().numpy()


def _empty(names: tuple[str, str], *shape: int) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=torch.float16) for name in names}


def _fits(peaks: np.ndarray) -> None:
    if peaks.size and peaks.max() > _MOST:
        raise BadInput("numbers to quantise", f"a grid up to {peaks.max():.3g}", f"at most {_MOST:g}")
