"""The room's measures tell good from bad, and SnapKV finds needles in a real model."""

from __future__ import annotations

import math

import pytest
import torch

from holdall import BadInput
from holdall.kv import Everything, KVSelector, Random, Recent, SnapKV, quality
from holdall.kv.asking import Subjects, recall, summary
from holdall.kv.needles import frame, haystack
from holdall.weights.model import Model
from holdall.weights.texts import held_out_text


@pytest.fixture(scope="module")
def smollm2() -> Model:
    return Model.read("smollm2")


def test_loss_is_nothing_for_everything_and_grows_as_entries_go() -> None:
    x = quality.real()
    assert quality.loss(x, Everything().select(x)) == 0
    losses = [quality.loss(x, SnapKV().select(x, b)) for b in ("80%", "50%", "25%", "10%")]
    assert losses == sorted(losses) and 0 < losses[0] < 0.05 < losses[-1]


@pytest.mark.parametrize("budget", ["10%", "25%", "50%"])
def test_snapkv_loses_less_than_the_floors_on_a_real_layer(budget: str) -> None:
    x = quality.real()
    snap, lot, late = (quality.loss(x, m.select(x, budget)) for m in (SnapKV(), Random(), Recent()))
    assert snap < 0.8 * late and snap < 0.3 * lot


def test_a_real_models_heads_keep_different_entries() -> None:
    x = quality.real()
    where = SnapKV().select(x, "25%").where()[0]
    sets = [set(h.tolist()[:-32]) for h in where]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[:i]]
    assert sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs) < 0.9


def test_the_haystack_holds_every_fact_once_and_has_the_size_asked_for(smollm2: Model) -> None:
    tok = smollm2.tokenizer()
    hay = haystack(tok, held_out_text(), 1024, seed=4)
    text = tok.decode(hay.context)
    assert len(hay.context) == 1024 and len(hay.after) == 128 and len(hay.probes) == 10
    for probe in hay.probes:
        fact = tok.decode(probe.stem) + tok.decode([probe.words[probe.right]])
        assert text.count(tok.decode(probe.stem)) == 1 and fact in text
        assert len(set(probe.words)) == 6
    assert hay.context == haystack(tok, held_out_text(), 1024, seed=4).context
    assert hay.context != haystack(tok, held_out_text(), 1024, seed=5).context
    head, tail = frame(tok)
    chat = tok.decode(head + tok.encode("Hi") + tail, special=True)
    assert chat == tok.decode(tok.chat([{"role": "user", "content": "Hi"}]), special=True)
    with pytest.raises(BadInput, match="tokens of text"):
        haystack(tok, "too short", 1024)


def test_a_text_that_cannot_be_read_is_named() -> None:
    with pytest.raises(BadInput, match="no/such/file"):
        quality.measure(SnapKV(), "10%", on="/no/such/file")


@pytest.mark.slow
def test_needles_are_found_at_a_tenth_where_the_floors_lose_them(smollm2: Model) -> None:
    methods: dict[str, KVSelector] = {"snap": SnapKV(), "lot": Random(), "late": Recent()}
    subjects: Subjects = {f"{n} 10%": (m, "10%") for n, m in methods.items()}
    subjects |= {
        "snap 25%": (SnapKV(), "25%"),
        "alone 5%": (SnapKV(kernel=1), "5%"),
        "snap 5%": (SnapKV(), "5%"),
    }
    net, tok = smollm2.build(), smollm2.tokenizer()
    row = summary([recall(net, haystack(tok, held_out_text(), 1280, seed=1), subjects, SnapKV())])
    full = row["full"]
    assert full["recall"] >= 0.8
    for share in (25, 10, 5):
        snap = row[f"snap {share}%"]
        assert share == 5 or snap["recall"] >= 0.9 * full["recall"]
        assert 0.985 * share <= 100 * snap["bytes"] / full["bytes"] <= share
    for floor in ("lot 10%", "late 10%"):
        assert row[floor]["recall"] < 0.6 * full["recall"]
    alone, pooled = (row[n]["greedy"] + row[n]["recall"] for n in ("alone 5%", "snap 5%"))
    assert alone < pooled, "pooling keeps phrases together"
    assert full["perplexity"] < row["snap 25%"]["perplexity"] < 0.6 * row["lot 10%"]["perplexity"]
    assert full["copy"] > row["snap 25%"]["copy"] > row["lot 10%"]["copy"]
    assert row["snap 10%"]["recall_outside"] > row["late 10%"]["recall_outside"] + 0.3
    assert row["snap 5%"]["recall_late"] < row["snap 5%"]["recall"], "the known weakness shows"


def test_an_entry_that_stands_for_two_is_judged_as_two() -> None:
    x = quality.specimens()["odd63"]
    twice = x.but(keys=x.keys.repeat_interleave(2, 2), values=x.values.repeat_interleave(2, 2), queries=None)
    bias = torch.full(x.shape, math.log(2))
    assert quality.loss(twice, x.but(bias=bias)) < 1e-6
    bias[..., :5] = 0
    assert quality.loss(twice, x.but(bias=bias)) > 1e-3
