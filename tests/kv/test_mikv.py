"""MiKV: nothing is forgotten, keys are balanced, scores run over whole numbers, tokens are demoted as it goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from holdall import BadInput, Budget, BudgetError
from holdall.kv import H2O, Entries, MiKV, SnapKV
from holdall.kv.balance import balance, balancer, tokenwise
from holdall.kv.packed_attention import key_scores
from holdall.kv.tiers import Tiered
from holdall.parts.attention import naive_mass


def entries(t: int = 300, d: int = 32, seed: int = 0, dtype: torch.dtype = torch.float32) -> Entries:
    """A few channels of keys and queries are large, the same ones."""
    lot = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, t, d, generator=lot).unbind(0)
    keys[..., :3] *= 12
    queries = torch.randn(1, 6, t, d, generator=lot) * 0.7
    queries[..., :3] *= 0.2
    return Entries(keys=keys.to(dtype), values=values.to(dtype), queries=queries.to(dtype))


def told(x: Entries, y: Entries, queries: Tensor) -> float:
    """Relative error of what queries [B, H, N, D] get from y instead of x."""
    keys, values = (t.float() for t in x.dense())
    truth = functional.scaled_dot_product_attention(queries, keys, values)
    return float((y.attend(queries, None, None) - truth).norm() / truth.norm())


def test_the_balancer_changes_no_product_and_follows_its_formula() -> None:
    x = entries()
    b = balancer(x)
    assert x.queries is not None
    asked = x.queries.view(1, 2, 3, 300, 32).abs().amax((2, 3))
    torch.testing.assert_close(b, (asked / x.keys.abs().amax(2)).sqrt())
    queries = x.queries[:, :2, -5:]
    product = (queries / b[:, :, None]) @ (x.keys * b[:, :, None]).transpose(2, 3)
    torch.testing.assert_close(product, queries @ x.keys.transpose(2, 3), rtol=1e-5, atol=1e-4)


def test_the_balancer_is_guarded() -> None:
    x = entries()
    keys, queries = x.keys.clone(), x.queries.clone()  # type: ignore[union-attr]
    keys[..., 5], queries[..., 6], keys[..., 7] = 0, 0, 1e-12
    b = balancer(x.but(keys=keys, queries=queries))
    assert torch.isfinite(b).all() and (b[..., 5:7] == 1).all() and (b[..., 7] == 100).all()


@pytest.mark.parametrize("bits", [2, 3])
def test_balanced_keys_err_less_in_products(bits: int) -> None:
    x = entries()
    assert x.queries is not None
    queries, errors = x.queries.view(1, 2, 900, 32), []
    for balanced in (True, False):
        tier = tokenwise(x, bits, balance(x, balanced, False), 0, 0)
        truth = queries @ x.keys.transpose(2, 3)
        errors.append(float((queries @ tier.numbers()[0].transpose(2, 3) - truth).norm() / truth.norm()))
    assert errors[0] < 0.8 * errors[1]


def test_scores_over_whole_numbers_are_those_of_dequantised_keys() -> None:
    x = entries(123)
    for bits in (2, 3, 4, 8):
        for sub in (0, 8, 12):
            tier = tokenwise(x, bits, balance(x, True, True), sub, 0)
            queries = x.queries.view(1, 2, -1, 32)[:, :, :7]  # type: ignore[union-attr]
            truth = queries @ tier.numbers()[0].transpose(2, 3)
            torch.testing.assert_close(key_scores(tier.keys, queries), truth, rtol=1e-5, atol=2e-4)


def test_what_eviction_forgets_is_still_there_for_late_questions() -> None:
    x = entries(500)
    lot = torch.Generator().manual_seed(9)
    found = {"mikv": 0, "h2o": 0}
    places = torch.randperm(460, generator=lot)[:20] + 10
    small = {"mikv": MiKV().select(x, "30%"), "h2o": H2O().select(x, "30%")}
    for at in places.tolist():  # each is asked for by a query that looks at it alone
        asked = functional.normalize(x.keys[:, :, at : at + 1, 3:], dim=-1) * 40
        asked = functional.pad(asked, (3, 0))
        for name, y in small.items():
            out = y.attend(asked, None, None)
            near = functional.cosine_similarity(out, x.values[:, :, at : at + 1], dim=-1)
            found[name] += int((near > 0.8).all())
    assert found["mikv"] >= 18 and found["h2o"] <= 10


def test_more_bits_for_the_important_lose_less_than_the_same_for_all() -> None:
    x = entries(400, 64, dtype=torch.bfloat16)
    keys, queries = x.keys.clone(), x.queries.clone()  # type: ignore[union-attr]
    direction = functional.normalize(
        torch.randn(64, generator=torch.Generator().manual_seed(1)), dim=0
    ).bfloat16()
    keys[:, :, 50:60] += 12 * direction
    queries += 8 * direction
    x = x.but(keys=keys, queries=queries)
    asked = queries.float().reshape(1, 2, -1, 64)[:, :, :100]
    mixed = MiKV(low=2).select(x, "30%")
    flat = (
        MiKV(low=2, oracle=SnapKV(window=1, kernel=1))
        .but(oracle=None)
        .select(x.but(queries=queries.flip(2)), "30%")
    )
    assert mixed.nbytes <= 0.3 * x.nbytes and isinstance(mixed, Tiered) and isinstance(flat, Tiered)
    assert (mixed.tier_of()[0, :, 50:60] == 0).all()
    none = MiKV(low=2, ratio=0.0).select(x)
    assert told(x, mixed, asked) < 0.7 * told(x, none, asked)


def test_all_important_is_exact_and_all_bytes_count() -> None:
    x = entries(100)
    y = MiKV(ratio=1.0).select(x)
    keys, values = y.dense()
    assert torch.equal(keys, x.keys) and torch.equal(values, x.values)
    for m in (MiKV(), MiKV(high=8), MiKV(sub=16), MiKV(centred=False), MiKV(low=4)):
        for budget in ("40%", "60%"):
            low, important = m.plan(x, int(budget[:-1]) * x.nbytes // 100)
            y = m.select(x, budget)
            assert isinstance(y, Tiered) and y.heat is not None
            mine = [y.keys, y.values, *y.packed()]
            held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in mine if t.numel()}
            assert (
                y.nbytes
                == sum(held.values())
                == m.size(x, important, low)
                <= int(budget[:-1]) * x.nbytes // 100
            )


def test_a_tenth_of_the_queries_tells_what_all_of_them_tell() -> None:
    """Sums are exact with all queries; of some, each stands for as many as could see a token; later turns too."""
    x = entries(1000)
    keys = x.keys.clone()
    keys[:, :, [20, 400, 700]] = 6 * x.queries.mean((1, 2))[:, None, None] / 0.05  # type: ignore[union-attr]
    for at in (torch.arange(1000)[None], torch.arange(600, 1000)[None]):
        y = x.but(keys=keys, queries=x.queries[:, :, at[0]], query_positions=at)  # type: ignore[index]
        truth = naive_mass(y.queries, at, keys, y.where()).sum(2)  # type: ignore[arg-type]
        torch.testing.assert_close(MiKV(probes=1.0).heat(y), truth, rtol=1e-4, atol=1e-4)
        some = y.asked(*MiKV(probes=0.1).asks(1000))
        assert some.queries is not None and 16 < some.queries.shape[2] < 0.2 * at.shape[1]
        heat = MiKV(probes=0.1).heat(some)
        assert (heat.sum(2) / truth.sum(2) - 1).abs().max() < 0.15  # not a tenth, nor ten times as much
        assert torch.corrcoef(torch.stack([heat[0, 0], truth[0, 0]]))[0, 1] > 0.8
    assert MiKV(probes=0.1, oracle=SnapKV(window=64)).asks(1000) == (64, 0.1)


def test_any_method_may_say_what_is_important() -> None:
    x = entries()
    m = MiKV(oracle=SnapKV(window=8), recent=0, sinks=0)
    tier = m.select(x, "35%").tier_of()  # type: ignore[attr-defined]
    count = int((tier[0, 0] == 0).sum())
    truth = SnapKV(window=8).score(x).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    assert torch.equal((tier == 0).nonzero()[:, 2].view(1, 2, -1), truth.sort(-1).values)


def test_the_least_important_is_demoted_and_nothing_comes_back() -> None:
    x = entries(200)
    m, lot = MiKV(gap=0), torch.Generator().manual_seed(4)
    y = m.select(x, "40%").held()
    limit = Budget(bytes=y.nbytes + 3000)
    packed: set[int] = set()
    for step in range(60):
        y = y.append(*torch.randn(2, 1, 2, 1, 32, generator=lot).unbind(0))
        asked = torch.randn(1, 6, 1, 32, generator=lot)
        y = m.settle(y.but(queries=asked, query_positions=torch.tensor([[200 + step]])), limit).held()
        assert isinstance(y, Tiered) and y.count == 201 + step and y.nbytes <= 3000 + limit.bytes  # type: ignore[operator]
        low = set((y.tier_of()[0, 0] == 2).nonzero()[:, 0].tolist())
        assert packed <= low and not low & {0, 1, 2, 3} and not low & set(range(185 + step, 201 + step))
        packed = low
    assert torch.equal(y.where()[0, 1], torch.arange(260, dtype=torch.int32))
    keys = y.dense()[0]
    assert float((keys[:, :, :200] - x.keys).norm() / x.keys.norm()) < 0.35


def test_attention_is_added_up_while_it_generates() -> None:
    x = entries(80)
    m = MiKV(low=4)
    y = m.select(x, "60%").held()
    assert isinstance(y, Tiered) and y.heat is not None
    before = y.heat
    y = y.append(*torch.ones(2, 1, 2, 1, 32).unbind(0))
    asked = torch.randn(1, 6, 1, 32)
    z = m.settle(y.but(queries=asked, query_positions=torch.tensor([[80]])), None)
    keys = y.dense()[0]
    weights = (asked.view(1, 2, 3, 32) @ keys.transpose(2, 3) / 32**0.5).softmax(-1).sum(2)
    mine = weights.gather(2, y.order()[..., : y.full])
    torch.testing.assert_close(z.heat, functional.pad(before, (0, 1)) + mine)  # type: ignore[attr-defined]


@pytest.mark.parametrize("high", [8, 16])
def test_a_second_turn_keeps_the_budget_of_both(high: int) -> None:
    x, more = entries(400, 64, dtype=torch.bfloat16), entries(100, 64, 1, torch.bfloat16)
    m = MiKV(high=high)
    y = m.select(x, "30%").held().append(more.keys, more.values)
    asked = y.but(queries=more.queries, query_positions=torch.arange(400, 500)[None])
    for share in (0.3, 0.25):
        z = m.select(asked, share)
        assert z.count == 500 and z.nbytes <= share * 500 * 2 * 2 * 64 * 2


def test_knobs_and_budgets_are_checked() -> None:
    for knobs in ({"low": 1}, {"high": 4}, {"ratio": 2.0}, {"sub": -1}):
        with pytest.raises(BadInput):
            MiKV(**knobs)  # type: ignore[arg-type]
    x: Any = entries()
    with pytest.raises(BudgetError, match=r"kv\.mikv can hold") as fault:
        MiKV().select(x, "5%")
    assert MiKV().select(x, fault.value.least).nbytes == fault.value.least
    with pytest.raises(BadInput, match="queries"):
        MiKV().select(x.but(queries=None), "50%")
