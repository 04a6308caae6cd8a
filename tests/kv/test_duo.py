"""Duo: heads that look back are found by reading drawn tokens twice, and hold everything where others hold little."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from holdall import BadInput, Budget
from holdall.dropins.transformers import Cache
from holdall.kv import H2O, Duo, Entries, PrefixKV, SnapKV, ZipCache
from holdall.kv.by_head import ByHead, of_heads, two_groups
from holdall.kv.lookback import heads_that_look_back
from holdall.server.room import tiers
from holdall.weights.model import Model

LAYERS, HEADS = 3, 4


def entries(t: int = 500, layer: int = 0, h: int = HEADS, dtype: torch.dtype = torch.bfloat16) -> Entries:
    lot = torch.Generator().manual_seed(layer)
    keys, values = torch.randn(2, 1, h, t, 64, generator=lot).to(dtype).unbind(0)
    queries = torch.randn(1, 2 * h, t, 64, generator=lot).to(dtype)
    return Entries(keys=keys, values=values, queries=queries, layer=layer)


def looking(*which: tuple[int, int]) -> tuple[float, ...]:
    """How much each head looks back: those named a lot, the first of them the most."""
    found = [0.01] * (LAYERS * HEADS)
    for i, (layer, head) in enumerate(which):
        found[layer * HEADS + head] = 0.9 - 0.1 * i
    return tuple(found)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return Model.read("smollm2").build(torch.bfloat16)


@pytest.mark.slow
def test_reading_drawn_tokens_twice_finds_the_heads_that_look_back(model: torch.nn.Module) -> None:
    """A few heads of SmolLM2 do, the same ones whatever was drawn."""
    one, two = (heads_that_look_back(model, seed) for seed in (0, 1))
    assert len(one) == 90 and all(0 <= v <= 1 for v in one)
    best = [set(sorted(range(90), key=lambda i: -found[i])[:8]) for found in (one, two)]
    assert len(best[0] & best[1]) >= 7
    assert max(one) > 0.5 and sorted(one)[45] < 0.05


@pytest.mark.slow
def test_a_head_that_looks_back_is_what_recall_hangs_on(model: torch.nn.Module) -> None:
    """Read twice, a lot of drawn tokens is foretold; without the eight heads that look back it is not, without
    eight others that look back least it still is. All else is held whole."""
    found = heads_that_look_back(model)
    order = sorted(range(90), key=lambda i: -found[i])
    ids = torch.randint(1000, 40_000, (1, 160), generator=torch.Generator().manual_seed(5))

    def foretold(gone: list[int]) -> float:
        cache = Cache(SnapKV())
        with cache.prefilling(judge=False), torch.inference_mode():
            model(ids, past_key_values=cache)
        for i, layer in enumerate(cache.layers):
            x = layer.state.judged()
            some = tuple(n % 3 for n in gone if n // 3 == i)
            pieces = two_groups(x, some, ("gone", "whole"))
            cut = [(n, h, y.take(_ends(y)) if n == "gone" else y) for n, h, y in pieces]
            layer.state.entries, layer.state.memory = ByHead.of(x, cut), None
        with cache.appending(), torch.inference_mode():
            logits = model(ids, past_key_values=cache).logits[0, :-1]
        return float((logits.argmax(-1) == ids[0, 1:]).float().mean())

    whole, without, others = foretold([]), foretold(order[:8]), foretold(order[-8:])
    assert whole > 0.5 and others > 0.8 * whole and without < 0.3 * whole, (whole, without, others)


def _ends(x: Entries) -> Tensor:
    """The first four entries and the last eight."""
    at = torch.cat([torch.arange(4), torch.arange(x.count - 8, x.count)])
    return at.expand(*x.shape[:2], -1)


def test_heads_that_look_back_hold_every_token_and_the_others_few() -> None:
    layers = [entries(layer=i) for i in range(LAYERS)]
    method = Duo(heads=looking((1, 2), (1, 0), (2, 3)))
    total = sum(x.original for x in layers) * 12 // 100
    held = [method.select(x, n) for x, n in zip(layers, method.share(layers, total), strict=True)]
    tokens = {}
    for i, y in enumerate(held):
        assert isinstance(y, ByHead)
        for name, heads, some in y.parts():
            tokens |= {(i, h): (name, some.count) for h in heads}
    assert {k for k, (name, _) in tokens.items() if name == "far"} == {(1, 2)}  # as many as half of 12 % buys
    assert tokens[1, 2][1] == 500 and tokens[0, 0][1] < 200
    assert sum(y.nbytes for y in held) <= total
    assert sum(y.nbytes for y in held) > 0.85 * total


def test_more_bytes_let_more_heads_hold_all() -> None:
    x = entries()
    method = Duo(heads=looking((0, 1), (0, 2), (0, 3), (0, 0), (1, 1)))
    many = []
    for share in ("5%", "20%", "33%"):
        y = method.select(x, share)
        assert isinstance(y, ByHead)
        many.append(sum(len(h) for name, h, _ in y.parts() if name == "far"))
    assert many[0] < many[1] < many[2]
    assert not isinstance(method.select(x, "45%"), ByHead)  # all alike: nothing needs to be dropped


def test_what_groups_hold_is_attended_to_as_a_whole() -> None:
    """Groups in full give the attention of the whole; groups of their own sizes that of each head alone."""
    x = entries(90, dtype=torch.float32)
    queries = torch.randn(1, HEADS, 2, 64)
    y = ByHead.of(x, two_groups(x, (1, 3), ("a", "b")))
    torch.testing.assert_close(y.attend(queries, None, None), x.attend(queries, None, None))
    assert torch.equal(y.dense()[0], x.keys) and torch.equal(y.where(), x.where())
    cut = ByHead.of(x, [(n, h, some.take(_ends(some)) if n == "a" else some) for n, h, some in y.parts()])
    assert cut.shown().sum(-1)[0].tolist() == [90, 12, 90, 12]
    alone = of_heads(x, [1]).take(_ends(of_heads(x, [1])))
    torch.testing.assert_close(
        cut.attend(queries, None, None)[:, 1:2], alone.attend(queries[:, 1:2], None, None)
    )
    mask = torch.zeros(1, HEADS, 2, 90)
    mask[..., 40:] = -torch.inf
    masked = cut.attend(queries, mask.gather(3, cut.where().long()[:, :, None].expand(1, HEADS, 2, 90)), None)
    torch.testing.assert_close(masked[:, :1], of_heads(x, [0]).attend(queries[:, :1], mask[:, :1], None))


def test_a_later_turn_goes_on_from_groups_within_the_budget() -> None:
    method = Duo(heads=looking((0, 1), (0, 2)))
    first = method.select(entries(400), Budget(fraction=0.14))
    assert isinstance(first, ByHead)
    new = torch.randn(2, 1, HEADS, 300, 64).bfloat16()
    queries = torch.randn(1, 2 * HEADS, 300, 64).bfloat16()
    longer = first.append(new[0], new[1]).but(queries=queries, query_positions=torch.arange(400, 700)[None])
    assert longer.tokens == 700 and longer.count == 700
    second = method.select(longer, Budget(fraction=0.14))
    assert isinstance(second, ByHead) and second.nbytes <= 0.14 * second.original
    assert {n: h for n, h, _ in second.parts()}["far"] == (1,)


def test_a_head_that_no_longer_gets_all_leaves_its_group() -> None:
    method = Duo(heads=looking((0, 1), (0, 2)))
    wide = method.select(entries(600), "30%")
    assert isinstance(wide, ByHead) and {n: h for n, h, _ in wide.parts()}["far"] == (1, 2)
    queries = entries(600).queries
    small = method.select(wide.but(queries=queries), "17%")
    assert isinstance(small, ByHead) and small.nbytes <= 0.17 * small.original
    held = {h: (n, some.count) for n, heads, some in small.parts() for h in heads}
    assert held[1][0] == "far" and held[1][1] == 600 and held[2][0] == "near" and held[2][1] < 600


def test_within_a_model_both_attentions_see_the_same() -> None:
    """What sdpa and eager attention give over groups is alike, and like one step after another."""
    source = Model.read("smollm2")
    ids = torch.randint(0, 40_000, (1, 360), generator=torch.Generator().manual_seed(1))
    heads = tuple(0.9 if i % 7 == 0 else 0.01 for i in range(6))
    out = []
    for how in ("sdpa", "eager"):
        net = source.build()
        net.model.layers = net.model.layers[:2]
        net.config._attn_implementation = how
        cache = Cache(Duo(heads=heads), "20%", floor=0)
        with torch.inference_mode():
            net(ids, past_key_values=cache)
            assert any(isinstance(s.entries, ByHead) for s in (layer.state for layer in cache.layers))
            assert cache.nbytes <= 0.2 * cache.full_bytes
            with cache.appending():
                out.append(net(ids[:, :5], past_key_values=cache).logits[0].float())
            out.append(net(ids[:, 5:6], past_key_values=cache).logits[0].float())
    torch.testing.assert_close(out[0], out[2], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(out[1], out[3], atol=2e-3, rtol=1e-3)


def test_long_answers_are_packed_group_by_group() -> None:
    net = Model.read("smollm2").build()
    net.model.layers = net.model.layers[:2]
    cache = Cache(Duo(heads=(0.9, 0.01, 0.01, 0.01, 0.8, 0.01)), "20%")
    ids = torch.randint(0, 40_000, (1, 360), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        net(ids, past_key_values=cache)
        for i in range(230):
            net(ids[:, i : i + 1], past_key_values=cache)
    for layer in cache.layers:
        x = layer.state.entries
        assert isinstance(x, ByHead) and x.tokens == 590
        whole = {name: some.count for name, _, some in x.parts()}
        assert whole.get("far", 590) == 590  # no token was lost or came twice
        where = x.where()[0, 0][x.shown()[0, 0]]
        assert bool((where.diff() > 0).all())


def test_the_server_tells_what_groups_hold() -> None:
    x = entries(400)
    cache = Cache(Duo())
    cache.update(x.keys, x.values, 0)
    cache.layers[0].state.entries = held = Duo(heads=looking((0, 1))).select(x, "20%")
    found = tiers(cache)
    assert sum(found.values()) == held.nbytes and "4 bit" in found and "kept" in found


def test_not_prepared_all_heads_are_held_alike() -> None:
    x = entries()
    a, b = (m.select(x, "20%") for m in (Duo(), ZipCache()))
    assert all(torch.equal(p, q) for p, q in zip(a.dense(), b.dense(), strict=True))


def test_preparing_is_done_once() -> None:
    method = Duo(heads=(0.5,) * 12)
    assert method.prepared(None) is method and SnapKV().prepared(None) == SnapKV()


def test_bad_input() -> None:
    with pytest.raises(BadInput, match="all heads up to those of layer 2"):
        Duo(heads=(0.5,) * 8).select(entries(layer=2), "12%")
    with pytest.raises(BadInput, match="leave the layers' budgets alone"):
        Duo(near=PrefixKV())
    with pytest.raises(BadInput, match="shares"):
        Duo(part=1.0)
    assert Duo(near=H2O()).near == H2O()
