"""ZipCache: which tokens are salient, cheap grids that cost little, the budget in real bytes, packing as it goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from holdall import BadInput, Budget, BudgetError
from holdall.kv import EMS, Entries, SnapKV, ZipCache
from holdall.kv.codes import by_token
from holdall.kv.entries import chosen
from holdall.kv.quality import loss, real
from holdall.kv.rungs import factors
from holdall.kv.tiers import Tiered

PAPER: dict[str, Any] = {
    "ladder": False, "group": 0, "fit": 0, "centred": False, "sinks": 0, "recent": 0, "heavy": 0,
}  # fmt: skip


def entries(
    t: int = 400, d: int = 64, b: int = 1, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> Entries:
    """Channels of very different sizes, as real keys and values have, and queries of all tokens."""
    lot = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, b, 2, t, d, generator=lot).unbind(0)
    sizes = torch.randn(2, 1, 2, 1, d, generator=lot).exp()
    queries = torch.randn(b, 6, t, d, generator=lot)
    return Entries(
        keys=(keys * sizes[0] + 2 * sizes[0].roll(1)).to(dtype), values=(values * sizes[1]).to(dtype),
        queries=queries.to(dtype),
    )  # fmt: skip


def full_matrix(x: Entries) -> Tensor:
    """The causal attention matrix summed over a group's heads, [H, T, T]."""
    assert x.queries is not None
    b, h, t = x.shape
    asked = x.queries.float().reshape(b, h, -1, t, x.queries.shape[3])
    scores = asked @ x.keys.float()[:, :, None].transpose(3, 4) / x.keys.shape[3] ** 0.5
    return scores.masked_fill(~torch.ones(t, t).tril().bool(), -torch.inf).softmax(-1).sum(2)[0]


def test_saliency_is_the_mean_of_a_column_over_the_probes_that_see_it() -> None:
    x = entries(100, 16)
    at = chosen(torch.arange(100)[None], *ZipCache().asks(100))[1]
    assert at.shape[1] < 30 and at[0, -5:].tolist() == [95, 96, 97, 98, 99]
    rows = full_matrix(x)[:, at[0]]  # [H, W, T]
    seen = (torch.arange(100)[None] <= at[0][:, None]).sum(0)
    score = ZipCache().score(x.asked(*ZipCache().asks(100)))
    torch.testing.assert_close(score[0], rows.sum(1) / seen)
    plain = ZipCache(normalise=False).score(x.asked(*ZipCache().asks(100)))
    torch.testing.assert_close(plain[0], rows.sum(1))


def test_without_normalising_late_tokens_are_missed() -> None:
    x = entries(400, 16)
    keys, queries = torch.zeros_like(x.keys), torch.zeros(1, 6, 200, 16, dtype=torch.bfloat16)
    keys[:, :, 300:340, 0], queries[..., 0] = 4.0, 0.7  # who sees these looks at them twice as much
    x = x.but(keys=keys, queries=queries, query_positions=torch.arange(200, 400)[None])
    found = {}
    for normalise in (True, False):
        m = ZipCache(normalise=normalise, probes=1.0, ratio=0.1, sinks=0, recent=0, heavy=0)
        tier = m.select(x).tier_of()[0, 0]  # type: ignore[attr-defined]
        found[normalise] = int((tier[300:340] == 1).sum())
    assert found[True] == 40 and found[False] == 0


def test_probes_find_what_all_queries_find() -> None:
    x = entries(1000, 32)
    lot = torch.Generator().manual_seed(3)
    heavy = torch.randperm(1000, generator=lot)[:300]
    direction = functional.normalize(torch.randn(32, generator=lot), dim=0).bfloat16()
    keys, queries = x.keys.clone(), x.queries.clone() + 6 * direction  # type: ignore[union-attr]
    keys[:, :, heavy] += 6 * direction
    x = x.but(keys=keys, queries=queries)
    sets = []
    for probes in (0.05, 1.0):
        m = ZipCache(probes=probes, ladder=False, sinks=0, recent=0, heavy=0, ratio=0.3)
        sets.append(set((m.select(x).tier_of()[0, 0] == 1).nonzero()[:, 0].tolist()))  # type: ignore[attr-defined]
    assert len(sets[0] & sets[1]) >= 0.85 * len(sets[1])


@pytest.mark.parametrize("bits", [2, 4])
def test_values_scaled_by_channel_lose_less_than_plain_tokens_and_cost_less_than_groups(bits: int) -> None:
    x = entries(500, 64)
    v, (s, none) = x.values.float(), factors(x, centred=False)
    see, one = torch.ones(v.shape[:3], dtype=torch.bool), torch.ones(1, 2, 64)
    assert none is None
    torch.testing.assert_close(s, v.abs().amax(2).sqrt())

    def loss(codes: Any) -> float:
        return float((codes.numbers() - v).square().mean() / v.square().mean())

    cst, plain = by_token(v, see, bits, s, 0, True), by_token(v, see, bits, one, 0, True)
    assert loss(cst) < 0.8 * loss(plain)
    grouped = 2 * 500 * 2 * (128 // 32) * 2  # bytes of float16 pairs for groups of 32
    assert sum(t.nbytes for k, t in cst.tensors().items() if k != "codes") < 0.4 * grouped


def test_the_papers_setting_is_four_and_a_half_times_smaller_in_real_arrays() -> None:
    x = entries(1200, 64)
    y = ZipCache(**PAPER).select(x)
    assert isinstance(y, Tiered) and [t.count for t in y.tiers] == [720, 480] and y.full == 0
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in y.packed() if t.numel()}
    assert y.nbytes == sum(held.values())
    assert x.nbytes / y.nbytes >= 4.5


def test_the_account_is_what_the_arrays_take() -> None:
    for t, d, b in ((63, 8, 2), (200, 64, 1), (777, 80, 1)):
        x = entries(t, d, b)
        for m in (ZipCache(), ZipCache(**PAPER), ZipCache(group=32, centred=False)):
            for budget in ("20%", "40%", "60%"):
                try:
                    pair, salient = m.plan(x, int(budget[:-1]) * x.nbytes // 100)
                except BudgetError as fault:
                    assert int(budget[:-1]) * x.nbytes // 100 < m.select(x, fault.least).nbytes <= fault.least
                    continue
                assert (
                    m.select(x, budget).nbytes
                    == m.size(x, salient, pair)
                    <= int(budget[:-1]) * x.nbytes // 100
                )


def test_a_budget_is_used_up_and_more_of_it_loses_less() -> None:
    x = entries(1000, 64)
    truth, losses = x.keys.float(), []
    for share in (0.12, 0.16, 0.2, 0.25, 0.35, 0.5):
        y = ZipCache().select(x, share)
        assert 0.97 * share * x.nbytes < y.nbytes <= share * x.nbytes
        losses.append(float((y.dense()[0].float() - truth).norm() / truth.norm()))
    assert losses == sorted(losses, reverse=True)


def test_answers_are_packed_by_the_hundred_and_no_token_is_lost() -> None:
    x = entries(300, 16, dtype=torch.float32)
    m, lot = ZipCache(), torch.Generator().manual_seed(5)
    y = m.select(x, "40%").held()
    told = [x.keys]
    for step in range(300):
        new = torch.randn(2, 1, 2, 1, 16, generator=lot)
        told.append(new[0])
        y = y.append(new[0], new[1])
        asked = torch.randn(1, 6, 1, 16, generator=lot)
        y = m.settle(
            y.but(queries=asked, query_positions=torch.tensor([[300 + step]])), Budget(bytes=1)
        ).held()
        assert isinstance(y, Tiered) and y.count == 301 + step and y.buffered < 100
    assert torch.equal(y.where()[0, 0], torch.arange(600, dtype=torch.int32))
    keys, truth = y.dense()[0], torch.cat(told, 2)
    assert float((keys - truth).norm() / truth.norm()) < 0.2
    near = torch.cdist(keys[0, 1, 300:], truth[0, 1, 300:]).argmin(1)
    assert float((near == torch.arange(300)).float().mean()) > 0.98  # each is nearest to itself: none moved
    assert sum(t.count for t in y.tiers) == 600 - y.full and y.full < 130


def test_a_second_turn_keeps_the_budget_of_both() -> None:
    x = entries(500, 64)
    y = ZipCache().select(x, "25%").held()
    more = entries(200, 64, seed=1)
    y = y.append(more.keys, more.values)
    at = torch.arange(500, 700)[None]
    for share in (0.25, 0.15):
        z = ZipCache().select(y.but(queries=more.queries, query_positions=at), share)
        assert z.count == 700 and z.nbytes <= share * 700 * 2 * 2 * 64 * 2


@pytest.mark.parametrize(
    "knobs", [{"low": 5}, {"low": 4}, {"ratio": 1.5}, {"probes": 0.0}, {"gap": 0}, {"group": -1}]
)
def test_knobs_are_checked(knobs: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        ZipCache(**knobs)


def test_too_little_names_the_least_and_no_queries_are_said() -> None:
    x = entries()
    with pytest.raises(BudgetError, match=r"kv\.zipcache can hold"):
        ZipCache().select(x, "5%")
    with pytest.raises(BadInput, match="queries"):
        ZipCache().select(x.but(queries=None), "25%")


def test_what_another_method_drops_leaves_bits_to_the_others() -> None:
    """In the same bytes SnapKV's choice in four bits is several times as many tokens as in full, and loses less."""
    x = real()
    inner = SnapKV(window=16)
    small, alone = ZipCache(inner=inner).select(x, "10%"), inner.select(x, "10%")
    assert isinstance(small, Tiered)
    assert max(small.nbytes, alone.nbytes) <= 0.1 * x.original
    assert small.count > 3 * alone.count
    assert loss(x, small) < 0.7 * loss(x, alone)


def test_merged_entries_keep_what_they_stand_for() -> None:
    x = real()
    small = ZipCache(inner=EMS(window=16)).select(x, "10%")
    assert small.bias is not None
    assert float(small.bias.max()) > 0
    assert small.nbytes <= 0.1 * x.original


def test_the_least_is_that_of_both_methods() -> None:
    x, method = entries(), ZipCache(inner=SnapKV(window=16))
    least = method.smallest(x)
    assert least < ZipCache().smallest(x)
    assert method.select(x, Budget(bytes=least)).nbytes <= least
    with pytest.raises(BudgetError):
        method.select(x, Budget(bytes=least - 1))
