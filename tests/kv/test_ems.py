"""EMS: global and local scores, three classes, one batched merge for all heads, and judging while it generates."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch.nn import functional

from holdall import BadInput, Budget, BudgetError
from holdall.dropins.transformers import Cache
from holdall.kv import EMS, Entries, quality
from holdall.kv.centres import candidates, folded, naive_folded
from holdall.kv.judged import Judged

PLAIN = {"combine": "max", "counts": "none", "values_only": False, "probes": 1.0, "slack": 0}


def entries(b: int = 1, t: int = 90, seed: int = 0, strength: float = 1.0) -> Entries:
    lot = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, b, 2, t, 16, generator=lot).unbind(0)
    return Entries(keys=keys, values=values, queries=torch.randn(b, 6, t, 16, generator=lot) * strength)


def attention(x: Entries) -> torch.Tensor:
    """[B, H, G, T, T], causal."""
    (b, h, t), d = x.shape, x.keys.shape[3]
    scores = x.queries.view(b, h, -1, t, d) @ x.keys[:, :, None].transpose(3, 4) / d**0.5
    return scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -torch.inf).softmax(-1)


def error(x: Entries, y: Entries, queries: torch.Tensor) -> float:
    """Relative error of attention outputs, for queries [B, H, N, D] behind all entries."""
    truth, got = (z.attend(queries, None, None) for z in (x, y))
    return float((got - truth).norm() / truth.norm())


@pytest.mark.parametrize("weigh", [None, "cosine"])
@pytest.mark.parametrize(("t", "c", "tau"), [(63, 20, 0.2), (90, 33, -1.0), (31, 15, 0.0), (40, 9, 0.4)])
def test_all_heads_at_once_give_what_a_loop_over_heads_gives(
    t: int, c: int, tau: float, weigh: str | None
) -> None:
    x, method = entries(b=2, t=t), EMS(window=4, **PLAIN)
    x = x.but(valid=torch.arange(t) >= torch.tensor([0, 3])[:, None, None])
    x = x.but(keys=x.keys.masked_fill(~x.shown()[..., None], torch.nan))
    w = method.weighed(x)
    score = method.score(w)
    kept = score.sort(dim=-1, descending=True, stable=True).indices[..., :c].sort(-1).values
    at, wanted = candidates(score, kept, t, 0.9)
    assert len(set(wanted.sum(-1).flatten().tolist())) > 1, "heads differ in how many they fold"
    y = folded(w, score, kept, at, wanted, tau, weigh)
    keys, values = naive_folded(w, score, kept, at, wanted, tau, weigh)
    torch.testing.assert_close(y.keys, keys, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(y.values, values, atol=1e-6, rtol=1e-6)


def test_the_score_is_attention_per_query_that_can_look_and_of_the_last_queries() -> None:
    x, w = entries(), 8
    every = attention(x).mean(2)  # [B, H, T, T]
    wide = every.sum(2) / torch.arange(90, 0, -1)
    votes = functional.max_pool1d(every[:, :, -w:].sum(2)[..., :-w], 5, stride=1, padding=2)
    near, wide = (s / s.sum(-1, keepdim=True) for s in (votes, wide[..., :-w]))
    for combine, truth in (("max", torch.maximum(0.3 * wide, near)), ("sum", 0.3 * wide + 0.7 * near)):
        score = EMS(window=w, balance=0.3, normal=True, **{**PLAIN, "combine": combine}).score(x)
        assert (score[..., -w:] == torch.inf).all()
        got = score[..., :-w]
        torch.testing.assert_close(got / got.sum(-1, keepdim=True), truth / truth.sum(-1, keepdim=True))


def test_without_norming_early_entries_win() -> None:
    x = entries(t=200, strength=0.1)  # all looked at alike
    knobs = {**PLAIN, "combine": "sum"}
    raw, normed = (EMS(window=8, balance=1.0, normal=n, **knobs).score(x) for n in (False, True))
    early, late = (float(raw[..., at].mean() / normed[..., at].mean()) for at in (slice(20), slice(150, 170)))
    assert early > 3 * late


def test_probes_estimate_the_sums_of_all_queries() -> None:
    x = entries(t=1500)
    truth, some = (EMS(probes=p).weighed(x.asked(32, p)).mass for p in (1.0, 0.25))
    assert truth is not None and some is not None
    every = attention(x).mean(2).sum(2)
    torch.testing.assert_close(truth, every, atol=1e-4, rtol=1e-4)
    ratio = (some / truth)[..., :1000]
    assert abs(float(ratio.mean()) - 1) < 0.05 and float(ratio.std()) < 0.3


def test_three_classes_centres_merged_and_dropped() -> None:
    """Six tokens besides the window: 0 and 1 matter, 2 looks like 0, 3 like nothing, 4 and 5 get no attention."""
    keys = torch.eye(8)[None, None, [0, 1, 0, 2, 0, 1, 7, 7]]  # [1, 1, 8, 8]
    votes = torch.tensor([[[8.0, 8.0, 3.0, 3.0, 0.0, 0.0, 0.0, 0.0]]])
    x = Judged(keys=keys, values=torch.eye(8)[None, None], votes=votes, mass=votes)
    knobs = {"window": 2, "kernel": 1, "balance": 0.0, "held": 0.99, "tau": 0.5, **PLAIN}
    y = EMS(**{**knobs, "counts": "tokens"}).select(x, 4 * EMS(**{**knobs, "counts": "tokens"}).each(x))
    assert y.where()[0, 0].tolist() == [0, 1, 6, 7]
    assert torch.equal(y.keys[0, 0], keys[0, 0, [0, 1, 6, 7]])
    torch.testing.assert_close(y.values[0, 0, 0], 8 / 11 * torch.eye(8)[0] + 3 / 11 * torch.eye(8)[2])
    assert torch.equal(y.values[0, 0, 1:], torch.eye(8)[[1, 6, 7]]), "4, 5 and 3 went nowhere"
    assert y.bias is not None and y.bias[0, 0].tolist() == pytest.approx([math.log(2), 0, 0, 0], abs=1e-3)
    half = EMS(**{**knobs, "counts": "mass"}).select(x, 4 * EMS(**{**knobs, "counts": "mass"}).each(x))
    assert half.bias is not None and float(half.bias[0, 0, 0]) == pytest.approx(math.log(11 / 8), abs=1e-3)


def test_heads_that_look_at_little_merge_little() -> None:
    flat, sharp = torch.ones(60), torch.full((60,), 1e-3)
    sharp[:10] = 100
    score = torch.stack([flat, sharp])[None]
    kept = torch.arange(10).expand(1, 2, 10)
    _, wanted = candidates(score, kept, 50, 0.9)
    assert wanted.sum(-1)[0].tolist() == [44, 0]
    assert candidates(score, kept, 20, 0.9)[1].sum(-1)[0].tolist() == [20, 0]


def test_a_share_of_what_is_kept_is_the_latest_bit_for_bit() -> None:
    x = entries(t=200, strength=3.0)
    for recent, latest in ((0.0, 8), (0.1, 8), (0.5, 30)):
        method = EMS(window=8, recent=recent, tau=-1.0, values_only=False)
        y = method.select(x, 60 * method.each(x))
        columns = list(range(200 - latest, 200))
        for head in range(2):
            where = y.where()[0, head].tolist()
            assert set(columns) <= set(where)
            assert not set(range(170, 180)) <= set(where) or recent == 0.5
    assert y.bias is not None and float(y.bias.max()) > 0, "others are merged"
    assert torch.equal(y.keys[:, :, -8:], x.keys[:, :, -8:])
    with pytest.raises(BadInput):
        EMS(recent=1.1)


def test_twins_merge_without_a_trace_when_counts_are_kept() -> None:
    half, queries = entries(t=60), torch.randn(1, 2, 5, 16)
    order = torch.arange(60).repeat_interleave(2)
    twins = Entries(keys=half.keys[:, :, order], values=half.values[:, :, order],
                    queries=half.queries[:, :, order])  # fmt: skip
    knobs = {**PLAIN, "window": 2, "kernel": 3, "balance": 0.0, "tau": 0.999, "held": 1.0}
    for counts in ("tokens", "mass"):
        method = EMS(**{**knobs, "counts": counts})
        x = method.weighed(twins)
        score = method.score(x)
        kept = torch.cat([torch.arange(0, 118, 2), torch.tensor([118, 119])]).expand(1, 2, 61)
        at, wanted = candidates(score, kept, 120, 1.0)
        y = folded(x, score, kept, at, wanted, 0.999, None, False, counts)
        assert y.count == 61 and error(twins, y, queries) < 1e-3
    bare = folded(x, score, kept, at, wanted, 0.999)
    assert error(twins, bare, queries) > 0.01


@pytest.mark.slow
def test_output_error_falls_with_the_budget_and_with_merging() -> None:
    x = quality.real()
    ours, dropped = [], []
    for budget in ("12%", "25%", "50%", "75%"):
        ours.append(quality.loss(x, EMS(slack=0).select(x, budget)))
        dropped.append(quality.loss(x, EMS(slack=0, tau=2.0).select(x, budget)))
    assert ours == sorted(ours, reverse=True) and dropped == sorted(dropped, reverse=True)
    assert ours[0] < dropped[0] and ours[1] < dropped[1], (ours, dropped)


def test_all_stays_bit_for_bit_when_all_fits() -> None:
    x = entries()
    y = EMS(window=8).select(x, "100%")
    assert torch.equal(x.keys, y.keys) and y.positions is None and y.nbytes == x.nbytes
    assert EMS().select(x).count == 90 and EMS(slack=0).select(entries(t=400)).count == 256


def test_generated_tokens_are_judged_every_few_steps_within_the_budget() -> None:
    x, method = entries(t=200), EMS(window=8, slack=10, tau=2.0)
    limit = 60 * method.each(x)
    y = method.select(x, limit).held()
    assert y.count == 60 and y.mass is not None
    spot = 12
    column, sizes = int(y.where()[0, 0, spot]), []
    y = y.but(keys=y.keys.index_fill(2, torch.tensor([spot]), 3.0))
    for step in range(40):
        y = y.append(*torch.randn(2, 1, 2, 1, 16).unbind(0))
        query = torch.full((1, 6, 1, 16), 3.0)  # all heads look at that entry
        y = y.but(queries=query, query_positions=torch.tensor([[200 + step]]))
        y = method.settle(y, Budget(bytes=limit)).held()
        sizes.append(y.count)
        assert y.nbytes <= limit and y.where()[0, 0, -8:].tolist() == list(range(193 + step, 201 + step))
    assert sizes[0] == 50 and max(sizes) == 60 and sizes.count(50) == 4
    at = y.where()[0, 0].tolist().index(column)
    votes, mass = y.votes[0, 0], y.mass[0, 0]  # type: ignore[union-attr]
    assert float(votes[at]) == pytest.approx(8 * (1 - (1 - 1 / 8) ** 40), abs=0.2) == float(votes.max())
    assert float(mass[at]) > 39


def test_merged_entries_bring_their_scores_along() -> None:
    x = entries(t=120)
    method = EMS(window=8, tau=-1.0, held=1.0, multiple=50.0, probes=1.0)
    y = method.select(x, 40 * method.each(x))
    before = method.weighed(x)
    assert y.mass is not None and before.mass is not None
    torch.testing.assert_close(y.mass.sum(-1), before.mass.sum(-1))
    assert y.bias is not None and float(y.bias.float().exp().sum(-1).mean()) == pytest.approx(120, rel=0.01)


def test_a_long_answer_keeps_to_its_memory() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=101, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    net, ids = transformers.LlamaForCausalLM(config).eval(), torch.randint(1, 101, (2, 100))
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    for budget, most in (("30%", None), ("10kB", 10_000)):
        cache = Cache(EMS(window=8, slack=8), budget, floor=0)
        net.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=20, do_sample=False)
        assert cache.nbytes <= (most or 0.3 * cache.full_bytes) and cache.get_seq_length() == 119
        told = torch.randint(1, 101, (2, 20))
        with torch.no_grad():  # a second turn
            net(told, attention_mask=torch.cat([mask, torch.ones(2, 39, dtype=torch.long)], 1),
                past_key_values=cache)  # fmt: skip
        cache.compress()
        assert cache.nbytes <= (most or 0.3 * cache.full_bytes)


def test_too_small_a_budget_names_the_least_that_does() -> None:
    with pytest.raises(BudgetError, match=r"kv\.ems can hold is .*32-token window") as caught:
        EMS().select(entries(), "10%")
    assert EMS().select(entries(), caught.value.least).count == 33


@pytest.mark.parametrize(
    "knobs",
    [{"window": 0}, {"kernel": 4}, {"probes": 1.1}, {"combine": "mean"}, {"counts": "all"}, {"multiple": -1.0},
     {"held": -0.1}, {"slack": -1}, {"weights": "x"}, {"pooling": "sum"}],
)  # fmt: skip
def test_knobs_are_checked(knobs: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        EMS(**knobs)  # type: ignore[arg-type]
