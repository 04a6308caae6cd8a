"""The attention that keys get, beside its slow form."""

from __future__ import annotations

import pytest
import torch

from holdall import BadInput
from holdall.parts import attention


def case(b: int, h: int, g: int, t: int, w: int, d: int = 8, seed: int = 0) -> tuple[torch.Tensor, ...]:
    lot = torch.Generator().manual_seed(seed)
    keys, queries = torch.randn(b, h, t, d, generator=lot), torch.randn(b, g * h, w, d, generator=lot)
    return queries, torch.arange(t - w, t).expand(b, w), keys, torch.arange(t).expand(b, h, t)


@pytest.mark.parametrize(("t", "w"), [(1, 1), (3, 3), (63, 63), (63, 5), (300, 300)])
def test_strips_and_blocks_are_one_query_at_a_time(t: int, w: int) -> None:
    x = case(2, 2, 3, t, w)
    torch.testing.assert_close(attention.mass(*x), attention.naive_mass(*x))
    torch.testing.assert_close(attention._by_blocks(*x, None, 8**-0.5, None), attention.naive_mass(*x))
    assert attention.mass(*x).sum() == pytest.approx(2 * 6 * w, rel=1e-5)  # every query spends 1


def test_heads_may_hold_different_columns_and_hidden_keys_get_nothing() -> None:
    queries, at, keys, _ = case(2, 2, 2, 40, 12)
    lot = torch.Generator().manual_seed(7)
    where = torch.stack([torch.randperm(90, generator=lot)[:40].sort().values for _ in range(4)]).view(
        2, 2, 40
    )
    at = torch.randperm(90, generator=lot)[:24].view(2, 12).clone()
    at[1, :3] = -1
    shown = torch.rand(2, 2, 40, generator=lot) > 0.3
    bias = torch.rand(2, 2, 40, generator=lot) * 3
    found = attention.mass(
        queries, at, keys.masked_fill(~shown[..., None], torch.nan), where, shown, 0.7, bias
    )
    torch.testing.assert_close(found, attention.naive_mass(queries, at, keys, where, shown, 0.7, bias))
    assert not torch.allclose(found, attention.naive_mass(queries, at, keys, where, shown, 0.7))
    blocks = attention._by_blocks(queries, at, keys, where, shown, 0.7, bias)
    torch.testing.assert_close(found, blocks)
    assert (found[~shown[:, :, None].expand_as(found)] == 0).all() and not found.isnan().any()


@pytest.mark.parametrize("size", [1e-3, 40.0])
def test_sums_hold_for_faint_and_for_sharp_attention(size: float) -> None:
    queries, at, keys, where = case(1, 1, 2, 131, 77, d=13)
    x = (queries.bfloat16() * size, at, keys.bfloat16(), where)
    found = attention.mass(*x)
    torch.testing.assert_close(found, attention.naive_mass(*x), rtol=2e-5, atol=2e-5)
    nothing = attention.mass(queries[:, :, :0], at[:, :0], keys, where)
    assert nothing.shape == found.shape and not nothing.any()


def test_looks_counts_the_queries_that_come_at_or_after_a_key() -> None:
    where = torch.tensor([[[0, 4, 9], [2, 5, 7]], [[0, 1, 2], [0, 1, 2]]])
    at = torch.tensor([[5, 4, 9, -1], [-1, -1, 1, 0]])
    slow = [[[int((at[b] >= c).sum()) for c in where[b, h]] for h in range(2)] for b in range(2)]
    assert attention.looks(at, where).tolist() == slow == [[[3, 3, 1], [3, 2, 1]], [[2, 1, 0], [2, 1, 0]]]


def test_query_heads_must_share_the_key_heads() -> None:
    queries, at, keys, where = case(1, 2, 2, 4, 4)
    with pytest.raises(BadInput, match="multiple of the 2"):
        attention.mass(queries[:, :3], at, keys, where)
