"""Packed tiers: codes are what they say, attention over them is that over their numbers, order and bytes are true."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from holdall import BadInput
from holdall.kv import Entries
from holdall.kv.balance import Balance, tokenwise
from holdall.kv.codes import by_channel, by_token, cut, keys_by_token
from holdall.kv.packed_attention import key_scores, mixed_values, naive_mix, naive_scores
from holdall.kv.tiering import edges, extend, most, split
from holdall.kv.tiers import Tier, Tiered


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shown(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:3], dtype=torch.bool)


def make(bits: int, group: int = 16) -> object:
    def made(tier: int, x: Entries, behind: Tier | None) -> Tier:
        see, d = x.shown(), x.keys.shape[3]
        keys = by_channel(x.keys, see, ((d, bits),), group, 0)
        one = torch.ones(*x.values.shape[:2], x.values.shape[3])
        return Tier(keys=(keys,), values=(by_token(x.values, see, bits, one, 0, True),))

    return made


def tiered(t: int = 61, bits: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Entries, Tiered]:
    x = Entries(keys=numbers(2, 3, t, 13).to(dtype), values=numbers(2, 3, t, 9, seed=1).to(dtype))
    tier = torch.stack([torch.randperm(t, generator=torch.Generator().manual_seed(i)) % 3 for i in range(6)])
    return x, split(x, tier.view(2, 3, t), make(bits))  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n,d,g", [(1, 1, 1), (3, 5, 2), (63, 13, 3), (130, 64, 4), (257, 80, 9)])
def test_products_with_codes_are_those_with_their_numbers(bits: int, n: int, d: int, g: int) -> None:
    x, queries, weights = numbers(2, 3, n, d), numbers(2, 3, g, d, seed=1), numbers(2, 3, g, n, seed=2)
    see, s, z = shown(x), numbers(2, 3, d, seed=3).abs() + 0.1, numbers(2, 3, d, seed=4)
    order = numbers(2, 3, d, seed=5).argsort(-1).to(torch.uint8)
    bands = ((d, bits),) if d < 4 else ((d // 4, 4), (d - d // 4, bits))
    for keys in (
        by_channel(x, see, bands, 50, 0, order),
        keys_by_token(x, see, bits, s, 0),
        keys_by_token(x, see, bits, s, 0, z),
    ):
        truth = naive_scores(keys.numbers().flatten(0, 1).numpy(), queries.flatten(0, 1).numpy())
        found = key_scores((keys,), queries).flatten(0, 1).numpy()
        np.testing.assert_allclose(found, truth, atol=1e-5 * max(1.0, abs(truth).max()))
    for values in (by_token(x, see, bits, s, 0, True), by_token(x, see, bits, s, 0, False, z)):
        truth = naive_mix(values.numbers().flatten(0, 1).numpy(), weights.flatten(0, 1).numpy())
        found = mixed_values((values,), weights).flatten(0, 1).numpy()
        np.testing.assert_allclose(found, truth, atol=4e-5 * max(1.0, abs(truth).max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_attention_over_tiers_is_that_over_dense_entries(dtype: torch.dtype, masked: str | None) -> None:
    _, y = tiered(dtype=dtype)
    y = y.append(numbers(2, 3, 5, 13, seed=7).to(dtype), numbers(2, 3, 5, 9, seed=8).to(dtype))
    queries = numbers(2, 3, 4, 13, seed=9).to(dtype)
    mask = None
    if masked:
        mask = torch.rand(2, 3, 4, y.count, generator=torch.Generator().manual_seed(0)) < 0.6
        mask = mask if masked == "bool" else torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -1e4)
    keys, values = (t.float() for t in y.dense())
    truth = functional.scaled_dot_product_attention(
        queries.float(), keys, values, mask.float() if masked == "float" else mask, scale=0.3
    )
    found = y.attend(queries, mask, 0.3)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), truth, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)
    many = queries.repeat(1, 1, 40, 1)  # too many for the kernel
    wide = None if mask is None else mask.repeat(1, 1, 40, 1)
    torch.testing.assert_close(
        y.attend(many, wide, 0.3)[:, :, :4].float(),
        truth,
        atol=1e-5 if dtype == torch.float32 else 3e-2,
        rtol=0,
    )


def test_dense_entries_stand_in_the_order_of_the_text() -> None:
    x, y = tiered()
    keys, values = y.dense()
    assert torch.equal(y.where(), x.where()) and y.count == 61 and not y.whole
    torch.testing.assert_close(keys, x.keys, atol=0.02, rtol=0)
    torch.testing.assert_close(values, x.values, atol=0.02, rtol=0)
    exact = (y.tier_of() == 0)[..., None]
    assert torch.equal(keys.masked_select(exact), x.keys.masked_select(exact))
    y = y.append(x.keys[:, :, :2], x.values[:, :, :2])
    assert y.count == y.tokens == 63 and y.where()[1, 2, -2:].tolist() == [61, 62]
    assert torch.equal(y.dense()[0][:, :, -2:], x.keys[:, :, :2])


def test_every_buffer_counts_and_copies_share_nothing() -> None:
    _, y = tiered()
    mine = [y.keys, y.values, *y.packed()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in mine if t.numel()}
    assert y.nbytes == sum(held.values())
    other = y.copy()
    theirs = {t.data_ptr() for t in (other.keys, other.values, *other.packed())}
    assert not theirs & {t.data_ptr() for t in mine}
    swapped = y.rows(lambda t: t.index_select(0, torch.tensor([1, 0, 1])))
    assert swapped.shape == (3, 3, 61) and torch.equal(swapped.dense()[0], y.dense()[0][[1, 0, 1]])
    kept = torch.arange(0, 61, 2).expand(2, 3, -1)
    some = y.take(kept)
    assert type(some) is Entries and torch.equal(some.where(), kept.int())
    assert torch.equal(some.keys, y.dense()[0][:, :, ::2])


def test_entries_move_to_tiers_and_none_is_lost() -> None:
    x, y = tiered()
    new = numbers(2, 3, 30, 13, seed=5), numbers(2, 3, 30, 9, seed=6)
    y = y.append(*new)
    moves = torch.zeros(2, 3, y.full, dtype=torch.long)
    moves[:, :, -28:-4:2], moves[:, :, -27:-4:2] = 1, 2
    before = [t.count for t in y.tiers]
    y = extend(y, moves, make(8))  # type: ignore[arg-type]
    assert [t.count - n for t, n in zip(y.tiers, before, strict=True)] == [12, 12] and y.count == 91
    torch.testing.assert_close(y.dense()[0], torch.cat([x.keys, new[0]], 2), atol=0.03, rtol=0)
    torch.testing.assert_close(y.dense()[1], torch.cat([x.values, new[1]], 2), atol=0.03, rtol=0)
    assert torch.equal(y.where()[0, 0], torch.arange(91, dtype=torch.int32)) and y.buffered == 0


def test_a_tier_of_grids_by_token_is_sorted_when_older_entries_join() -> None:
    x = Entries(keys=numbers(1, 2, 20, 8), values=numbers(1, 2, 20, 8, seed=1))
    how = Balance(torch.ones(1, 2, 8), torch.ones(1, 2, 8), None, None)

    def made(tier: int, some: Entries, behind: Tier | None) -> Tier:
        return tokenwise(some, 8, how, 4, 0)

    y = split(x, torch.tensor([0, 2] * 10).expand(1, 2, 20), made)
    y = extend(y, torch.tensor([0, 0, 2, 2, 2, 0, 0, 0, 0, 2]).expand(1, 2, 10), made)
    assert [t.count for t in y.tiers] == [0, 14]
    torch.testing.assert_close(y.dense()[0], x.keys, atol=0.03, rtol=0)
    torch.testing.assert_close(y.dense()[1], x.values, atol=0.03, rtol=0)


def test_what_was_dropped_before_stays_dropped() -> None:
    x, _ = tiered()
    some = x.take(torch.arange(5, 55, 3).expand(2, 3, -1))
    y = split(some, (torch.arange(17) % 3).expand(2, 3, 17), make(8))  # type: ignore[arg-type]
    assert torch.equal(y.where(), some.where()) and y.tokens == 61
    y = y.append(x.keys[:, :, :2], x.values[:, :, :2])
    assert y.where()[0, 0, -3:].tolist() == [53, 61, 62]
    torch.testing.assert_close(y.dense()[0][:, :, :17], some.keys, atol=0.02, rtol=0)


def test_a_sliding_window_lets_the_oldest_go() -> None:
    x, y = tiered()
    y = y.but(reach=20).within_reach()
    assert y.where()[0, 0].tolist() == list(range(41, 61))
    torch.testing.assert_close(y.keys, x.keys[:, :, 41:], atol=0.02, rtol=0)


def test_parts_edges_and_counts() -> None:
    assert cut(0, 10) == [] and cut(3, 10) == [3] and cut(25, 10) == [10, 25] and cut(26, 10) == [10, 20, 26]
    see = torch.ones(1, 2, 10, dtype=torch.bool)
    see[:, 0, :4] = False
    found = edges(see, 2, 1)
    assert found.sum(-1).tolist() == [[3, 3]]
    assert found[0, 0].nonzero()[:, 0].tolist() == [4, 5, 9] and found[0, 1].nonzero()[:, 0].tolist() == [
        0,
        1,
        9,
    ]
    assert (
        most(10, lambda n: 5 * n, 24) == 4
        and most(10, lambda n: 3 + n, 2) is None
        and most(3, lambda n: n, 99) == 3
    )


def test_numbers_that_are_none_are_refused() -> None:
    x, _ = tiered()
    bad = x.keys.clone()
    bad[0, 1, 7, 3] = torch.nan
    with pytest.raises(BadInput, match="keys"):
        split(x.but(keys=bad), torch.ones(2, 3, 61, dtype=torch.long), make(4))  # type: ignore[arg-type]
