"""The kernels that pack say what torch says, but for rounding: odd sizes, padding, NaN where nobody looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from holdall import BadInput
from holdall.kv.affine import Codes
from holdall.kv.codes import (
    by_channel,
    by_token,
    channels_in_torch,
    keys_by_token,
    keys_in_torch,
    tokens_in_torch,
)  # fmt: skip


def case(
    b: int, h: int, n: int, d: int, dtype: torch.dtype, padded: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lot = torch.Generator().manual_seed(n)
    x = torch.randn(b, h, n, d, generator=lot) * torch.randn(d, generator=lot).exp() + 1
    shown = torch.rand(b, h, n, generator=lot) > (0.3 if padded else -1)
    x = x.masked_fill(~shown[..., None], 0)
    s, z = torch.rand(b, h, d, generator=lot) + 0.5, torch.randn(b, h, d, generator=lot)
    return x.to(dtype), shown, s, z


def alike(fast: Codes, slow: Codes, numbers: Tensor, shown: Tensor) -> None:
    """The same bytes but for a few, and those are about as good."""
    mine, truth = fast.tensors(), slow.tensors()
    assert {k: (v.shape, v.dtype) for k, v in mine.items()} == {
        k: (v.shape, v.dtype) for k, v in truth.items()
    }
    for k, v in mine.items():
        assert v.is_contiguous()
        near = torch.isclose(v.float(), truth[k].float(), rtol=2e-3, atol=1e-5)
        assert int((~near).sum()) <= 0.05 * v.numel() + 2  # a number between two codes may move a grid
    losses: Any = [(c.numbers() - numbers.float())[shown].square().sum() for c in (fast, slow)]  # type: ignore[attr-defined]
    torch.testing.assert_close(*losses, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "d", "bits", "fit"),
    [(1, 1, 1, 0), (63, 13, 3, 2), (130, 64, 2, 3), (257, 31, 4, 0), (40, 80, 8, 2)],
)
def test_kernels_pack_what_torch_packs(
    n: int, d: int, bits: int, fit: int, dtype: torch.dtype, padded: bool
) -> None:
    x, shown, s, z = case(2, 3, n, d, dtype, padded)
    order = torch.rand(2, 3, d, generator=torch.Generator().manual_seed(1)).argsort(-1).to(torch.uint8)
    bands = ((d, bits),) if d < 4 else ((d // 4, 4), (d // 4, 1), (d - d // 4 * 2, bits))
    for group, places in ((n, None), (50, order)):
        fast, slow = (make(x, shown, bands, group, fit, places) for make in (by_channel, channels_in_torch))
        assert (fast.ends, fast.bands) == (slow.ends, slow.bands)
        alike(fast, slow, x, shown)
    half, middle = s.half(), z.half()
    for less in (None, middle):
        for joined in (True, False):
            alike(
                by_token(x, shown, bits, s, fit, joined, less),
                tokens_in_torch(x, shown, bits, half, fit, joined, less),
                x,
                shown,
            )
        slow = keys_in_torch(
            x, shown, bits, half[:, :, None], fit, None if less is None else less[:, :, None]
        )
        alike(keys_by_token(x, shown, bits, s, fit, less), slow, x, shown)


def test_nothing_at_all_has_shapes() -> None:
    x, shown, s, _ = case(2, 3, 0, 8, torch.bfloat16, False)
    assert by_channel(x, shown, ((8, 2),), 4, 2).numbers().shape == (2, 3, 0, 8)
    assert by_token(x, shown, 2, s, 2, True).numbers().shape == (2, 3, 0, 8)
    assert keys_by_token(x, shown, 2, s, 2).numbers().shape == (2, 3, 0, 8)


def test_what_nobody_sees_may_be_no_number_and_the_rest_must_be_one() -> None:
    x, shown, s, z = case(2, 3, 30, 8, torch.float32, True)
    odd = x.masked_fill(~shown[..., None], torch.nan)
    assert torch.equal(
        by_channel(odd, shown, ((8, 3),), 30, 2).s, channels_in_torch(x, shown, ((8, 3),), 30, 2).s
    )
    seen = shown.nonzero()[0]
    for bad in (torch.nan, torch.inf, 1e7):
        odd = x.clone()
        odd[tuple(seen)] = bad
        for make in (
            lambda: by_channel(odd, shown, ((8, 3),), 30, 2),  # noqa: B023
            lambda: by_token(odd, shown, 3, s, 2, True),  # noqa: B023
            lambda: keys_by_token(odd, shown, 3, s, 2, z),  # noqa: B023
        ):
            with pytest.raises(BadInput, match="quantise"):
                make()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("d", [5, 64])
def test_tokens_in_another_order_are_the_same_tokens(bits: int, d: int) -> None:
    x, shown, s, z = case(2, 3, 77, d, torch.bfloat16, False)
    keys, values = keys_by_token(x, shown, bits, s, 0, z), by_token(x, shown, bits, s, 0, False, z)
    lot = torch.Generator().manual_seed(0)
    mixed = torch.stack([torch.randperm(77, generator=lot) for _ in range(6)]).view(2, 3, 77)
    late = torch.cat([torch.arange(60), torch.arange(76, 59, -1)]).expand(2, 3, 77)
    both = keys_by_token(x[:, :, :30], shown[:, :, :30], bits, s, 0, z).joined(
        keys_by_token(x[:, :, 30:], shown[:, :, 30:], bits, s, 0, z)
    )
    for order in (mixed, late):
        at = order[..., None].expand_as(x)
        for held in (keys, both, values):
            found = held.at(order)
            assert torch.equal(found.numbers(), held.numbers().gather(2, at))
        assert keys.at(order).codes.shape == keys.codes.shape == both.at(order).codes.shape
