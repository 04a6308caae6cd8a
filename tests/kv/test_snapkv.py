"""SnapKV's mechanism: what a stub that keeps anything else would get wrong."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from holdall import BadInput, BudgetError
from holdall.kv import Entries, SnapKV


def entries(
    b: int = 1, h: int = 2, g: int = 3, t: int = 200, d: int = 16, w: int = 32, seed: int = 0
) -> Entries:
    torch.manual_seed(seed)
    keys, values = torch.randn(2, b, h, t, d).unbind(0)
    return Entries(keys=keys, values=values, queries=torch.randn(b, g * h, w, d))


def pointed(x: Entries, head: int, columns: list[int], strength: float = 40.0) -> Entries:
    """The queries of one key/value head's group all look at `columns`."""
    keys, queries = x.keys.clone(), x.queries.clone()
    group = queries.shape[1] // keys.shape[1]
    direction = functional.normalize(torch.randn(keys.shape[-1]), dim=0)
    keys[:, head, columns] = direction * strength**0.5
    queries[:, head * group : (head + 1) * group] = direction * strength**0.5 * 2
    return x.but(keys=keys, queries=queries)


def naive_votes(x: Entries, w: int) -> torch.Tensor:
    """The window's attention, one query at a time, [B, H, T]."""
    b, h, t = x.shape
    g = x.queries.shape[1] // h
    votes = torch.zeros(b, h, t)
    for row in range(b):
        for head in range(g * h):
            for i in range(w):
                end = t - w + i + 1
                scores = x.keys[row, head // g, :end] @ x.queries[row, head, i] / x.keys.shape[-1] ** 0.5
                votes[row, head // g, :end] += scores.softmax(0) / g
    return votes


def test_votes_are_the_windows_causal_attention_averaged_over_the_group() -> None:
    for t, w in ((63, 8), (9, 8), (8, 8)):
        x = entries(b=2, t=t, w=w)
        torch.testing.assert_close(SnapKV(window=w).votes(x), naive_votes(x, w))


def test_scores_are_pooled_after_the_group_was_averaged_and_exclude_the_window() -> None:
    x, w = entries(t=90, w=8), 8
    for pooling, kernel in (("avg", 5), ("max", 7), ("avg", 1)):
        votes = naive_votes(x, w)[..., :-w]
        pool = functional.avg_pool1d if pooling == "avg" else functional.max_pool1d
        truth = pool(votes, kernel, stride=1, padding=kernel // 2)
        score = SnapKV(window=w, kernel=kernel, pooling=pooling).score(x)
        torch.testing.assert_close(score[..., :-w], truth)
        assert (score[..., -w:] == torch.inf).all()


def test_heads_keep_different_entries() -> None:
    where = SnapKV().select(entries(t=400, h=4), "25%").where()[0]
    sets = [set(row.tolist()[:-32]) for row in where]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[:i]]
    assert sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs) < 0.9


@pytest.mark.parametrize("t", [33, 34, 63, 200])
def test_the_window_always_stays(t: int) -> None:
    x = entries(t=t)
    for budget in ("50%", "75%", "90%"):
        try:
            y = SnapKV().select(x, budget)
        except BudgetError as fault:
            y = SnapKV().select(x, fault.least)
        assert y.where()[..., -32:].tolist() == [[list(range(t - 32, t))] * 2]


def test_what_the_window_looks_at_stays_with_its_neighbours() -> None:
    x = pointed(pointed(entries(t=400), 0, [100]), 1, [250])
    small = SnapKV(kernel=7).select(x, 50 * x.each)
    first, second = (set(row.tolist()) for row in small.where()[0])
    assert set(range(97, 104)) <= first and set(range(247, 254)) <= second
    assert 250 not in first or 100 not in second
    alone = SnapKV(kernel=1).select(x, 34 * x.each).where()[0]
    assert alone[0, 0] == 100 or alone[0, 1] == 100
    assert not set(range(97, 104)) <= set(alone[0].tolist())


def test_kept_entries_are_the_originals_in_order() -> None:
    x = entries(b=2)
    y = SnapKV().select(x, "40%")
    for row in range(2):
        for head in range(2):
            columns = y.where()[row, head].long()
            assert (columns.diff() > 0).all()
            assert torch.equal(y.keys[row, head], x.keys[row, head, columns])
            assert torch.equal(y.values[row, head], x.values[row, head, columns])


def test_all_stays_bit_for_bit_when_all_fits() -> None:
    x = entries()
    y = SnapKV().select(x, "100%")
    assert torch.equal(x.keys, y.keys) and torch.equal(x.values, y.values) and y.positions is None
    assert y.keys.data_ptr() != x.keys.data_ptr()
    assert SnapKV().select(x).count == 200  # the paper's 1,024 are more than there are


def test_padding_changes_nothing_and_nan_in_it_does_not_leak() -> None:
    alone = entries(t=80, w=32, seed=3)
    for left in (True, False):
        room = torch.full((1, 2, 20, 16), torch.nan)
        order = (lambda a, b: [a, b]) if left else (lambda a, b: [b, a])
        keys, values = (torch.cat(order(room, t), 2) for t in (alone.keys, alone.values))
        valid = torch.ones(1, 2, 100, dtype=torch.bool)
        valid[..., :20] = not left
        valid[..., 80:] = left
        start = 20 if left else 0
        at = torch.arange(start + 48, start + 80)[None]
        padded = Entries(keys=keys, values=values, valid=valid, queries=alone.queries, query_positions=at)
        kept = 60
        a = SnapKV().select(alone, kept * alone.each)
        b = SnapKV().select(padded, kept * padded.each)
        assert torch.equal(a.where() + start, b.where())
        assert torch.equal(a.keys, b.keys) and not b.values.isnan().any()


def test_rows_shorter_than_the_window() -> None:
    x = entries(t=100, w=32)
    valid = torch.zeros(1, 2, 100, dtype=torch.bool)
    valid[..., 90:] = True
    at = torch.tensor([[-1] * 22 + list(range(90, 100))])
    queries = x.queries.clone()
    queries[:, :, :22] = torch.nan
    y = SnapKV().select(x.but(valid=valid, query_positions=at, queries=queries), "60%")
    assert y.where()[0, 0, -10:].tolist() == list(range(90, 100)) and not y.keys.isnan().any()


def test_bfloat16_votes_do_not_tie() -> None:
    x = entries(t=500, seed=5)
    half = x.but(keys=x.keys.bfloat16(), values=x.values.bfloat16(), queries=x.queries.bfloat16())
    score = SnapKV(kernel=1).score(half)
    assert score.dtype == torch.float32 and len(score[0, 0, :-32].unique()) == 468


def test_too_small_a_budget_names_the_least_that_does() -> None:
    x = entries()
    with pytest.raises(BudgetError, match=r"kv\.snapkv can hold is .*32-token window") as caught:
        SnapKV().select(x, "10%")
    y = SnapKV().select(x, caught.value.least)
    assert y.nbytes == caught.value.least and y.count == 33


def test_every_byte_counts() -> None:
    x = entries(t=1000)
    y = SnapKV().select(x, "25%")
    assert x.nbytes == 1000 * 2 * 32 * 4 == x.original
    assert (
        y.nbytes
        == sum(t.untyped_storage().nbytes() for t in (y.keys, y.values, y.positions))
        <= x.nbytes // 4
    )
    assert y.nbytes > x.nbytes // 4 - y.each


@pytest.mark.parametrize(
    "knobs", [{"window": 0}, {"kernel": 4}, {"kernel": -1}, {"pooling": "sum"}, {"group": "sum"}]
)
def test_knobs_are_checked(knobs: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        SnapKV(**knobs)


def test_without_queries_it_says_so() -> None:
    with pytest.raises(BadInput, match="queries"):
        SnapKV().select(entries().but(queries=None), "50%")
