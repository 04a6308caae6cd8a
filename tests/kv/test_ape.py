"""APE: contexts read alone are one cache that is exact for one, the same in any order, and merged as the paper says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from holdall import BadInput, BudgetError, CorruptArtefact
from holdall.kv import APE
from holdall.kv.ape import answer_loss
from holdall.kv.assembled import Assembled
from holdall.kv.contexts import Contexts, cache_of
from holdall.kv.contexts_file import without
from holdall.kv.contexts_quality import documents, tiny
from holdall.kv.documents import Documents
from holdall.packed import Packed

PLAIN = APE(temperature=1.0, scale=1.0)
EXACT = 10**9  # room for the 32 bits that the model computes in
ASKED = torch.tensor([[17, 4, 90, 33, 8]])


def contexts(x: Documents, method: APE = PLAIN) -> Contexts:
    return method.decode(method.encode(x, EXACT))


def logits(net: Any, cache: Any, ids: torch.Tensor = ASKED) -> torch.Tensor:
    with torch.inference_mode():
        return net(ids, past_key_values=cache).logits[0]


def sequential(net: Any, x: Documents) -> torch.Tensor:
    before = [*x.header, *(t for ids in x.texts.values() for t in ids)]
    with torch.inference_mode():
        return net(torch.cat([torch.tensor([before]), ASKED], 1)).logits[0, len(before) :]


def naive_attention(x: Assembled, query: torch.Tensor, alpha: float) -> torch.Tensor:
    """The card's step 4 for one query [D] of the first head: two softmaxes, merged by their LSEs, in fp64."""

    def part(keys: torch.Tensor, values: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
        scores = keys.double() @ query.double() / (t * len(query) ** 0.5)
        return scores.logsumexp(0), scores.softmax(0) @ values.double()

    lse_c, out_c = part(x.context_keys[0, 0], x.context_values[0, 0], x.temperature)
    lse_o, out_o = part(x.keys[0, 0], x.values[0, 0], 1.0)
    c, o = torch.stack([alpha * lse_c, lse_o]).softmax(0)
    return c * out_c + o * out_o


@pytest.mark.parametrize("convention", ["paper", "code"])
@pytest.mark.parametrize(("t", "s"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6), (0.8, 0.9)])
def test_contexts_and_the_rest_are_merged_by_their_weights(t: float, s: float, convention: str) -> None:
    method = APE(temperature=t, scale=s, convention=convention)
    x = contexts(documents(9, 31, 7), method).layers()[1]
    lot = torch.Generator().manual_seed(1)
    query = torch.randn(1, 2, 3, 6, generator=lot) * 4
    out = x.attend(query, None, None)
    alpha = s * (t if convention == "code" else 1.0)
    for n in range(3):
        truth = naive_attention(x, query[0, 0, n], alpha)
        torch.testing.assert_close(out[0, 0, n].double(), truth, atol=1e-5, rtol=1e-5)
    if t == s == 1:
        keys, values = x.dense()
        one = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
        torch.testing.assert_close(out, one, atol=1e-5, rtol=1e-5)


def test_one_context_is_what_the_model_reads_in_a_row() -> None:
    x = documents(60)
    mine = logits(tiny(), contexts(x).cache())
    torch.testing.assert_close(mine, sequential(tiny(), x), atol=1e-4, rtol=0)
    other = logits(tiny(), contexts(x, APE(temperature=0.7)).cache())
    assert (mine - other).abs().max() > 1e-2


def test_two_contexts_are_not_what_the_model_reads_in_a_row() -> None:
    x = documents(30, 30)
    assert (logits(tiny(), contexts(x).cache()) - sequential(tiny(), x)).abs().max() > 1e-2


def test_the_order_of_contexts_changes_nothing() -> None:
    made = contexts(documents(13, 40, 21, 1), APE(temperature=0.8, scale=0.9))
    names = list(made.documents)
    one = logits(tiny(), made.cache(names))
    for order in (names[::-1], names[2:] + names[:2]):
        torch.testing.assert_close(logits(tiny(), made.cache(order)), one, atol=1e-4, rtol=0)
    assert (logits(tiny(), made.cache(names[:2])) - one).abs().max() > 1e-3


def test_positions_are_shared_and_the_query_stands_behind_the_longest() -> None:
    made = contexts(documents(13, 40, 21))
    x, p = made.layers()[0], 4
    assert made.start == p + 40 == made.cache().get_seq_length() and made.tokens == p + 74
    assert x.where()[0, 1].tolist() == [*range(p), *range(p, p + 13), *range(p, p + 40), *range(p, p + 21)]
    each = documents(13, 40, 21).texts
    alone = Documents(**{**vars(documents()), "texts": {"1.txt": each["1.txt"]}})
    torch.testing.assert_close(made.documents["1.txt"].keys, contexts(alone).documents["1.txt"].keys)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
def test_every_kind_of_model_merges_alike(kind: str, attention: str) -> None:
    """Sliding windows see by position; one context is what the model reads in a row; T and s act in both paths."""
    from dropins.test_cache import make

    net = make(kind, attention)
    x = Documents(**{**vars(documents(70)), "load": lambda: net})
    torch.testing.assert_close(logits(net, contexts(x).cache()), sequential(net, x), atol=1e-4, rtol=0)
    method, several = (
        APE(temperature=0.8, scale=0.8),
        Documents(**{**vars(documents(70, 30, 5)), "load": lambda: net}),
    )
    mine = logits(net, contexts(several, method).cache())
    net.set_attn_implementation("eager" if attention == "sdpa" else "sdpa")
    torch.testing.assert_close(mine, logits(net, contexts(several, method).cache()), atol=1e-4, rtol=1e-4)


def test_generate_goes_on_from_contexts_for_several_rows() -> None:
    made, net = contexts(documents(13, 40, 21), APE(scale=0.9)), tiny()
    ids = torch.cat([ASKED, ASKED.flip(1)])
    told = net.generate(
        **made.placed(ids), past_key_values=made.cache(), max_new_tokens=6, do_sample=False, pad_token_id=0
    )[:, made.start + 5 :]
    for row, question in zip(told, ids, strict=True):
        cache, token, by_hand = made.cache(), question[None], []
        for _ in range(6):
            token = logits(net, cache, token)[-1:].argmax(-1)[None]
            by_hand.append(int(token))
        assert row.tolist() == by_hand


def test_contexts_together_are_longer_than_the_window() -> None:
    x, window = documents(*[50] * 10), 128
    made = contexts(x)
    assert made.tokens > 3 * window and made.start + 5 < window
    assert logits(tiny(), made.cache()).isfinite().all()
    with pytest.raises(BadInput, match="128, the model's window"):
        APE().encode(documents(140))


def test_documents_that_are_there_are_not_read_again(tmp_path: Path) -> None:
    path, opened = str(tmp_path / "docs.hold"), []

    def load() -> Any:
        opened.append(1)
        return tiny()

    def add(stored: Packed | None, *names: str) -> Packed:
        x = documents(9, 31, 7)
        some = {n: ids for n, ids in x.texts.items() if n in names}
        return APE().encode(Documents(**{**vars(x), "texts": some, "load": load, "stored": stored}), to=path)

    first = add(None, "0.txt", "1.txt")
    before = {n: first.arrays[n].copy() for n in first.arrays}
    assert len(opened) == 1
    again = add(first, "0.txt")
    assert len(opened) == 1 and set(again.arrays) == set(before)
    more = add(again, "1.txt", "2.txt")
    assert len(opened) == 2 and list(APE().decode(more).documents) == ["0.txt", "1.txt", "2.txt"]
    for name, array in before.items():
        assert more.arrays[name].tobytes() == array.tobytes()
    whole = APE().decode(APE().encode(documents(9, 31, 7)))
    assert torch.equal(APE().decode(more).documents["2.txt"].keys, whole.documents["2.txt"].keys)
    fewer = without(more, ["1.txt"], path)
    assert list(APE().decode(fewer).documents) == ["0.txt", "2.txt"] and fewer.nbytes < more.nbytes
    with pytest.raises(BadInput, match=r"one of 0\.txt, 2\.txt"):
        without(fewer, ["1.txt"], path)


def test_a_changed_document_is_read_anew() -> None:
    old = APE().encode(documents(9, 31))
    x = documents(9, 31)
    changed = Documents(**{**vars(x), "texts": {"0.txt": [1, 2, 3]}, "stored": old})
    made = APE().decode(APE().encode(changed))
    assert {n: len(c) for n, c in made.documents.items()} == {"1.txt": 31, "0.txt": 3}


def test_another_model_prefix_or_no_words_are_one_clear_error() -> None:
    old, x = APE().encode(documents(9)), documents(9, 5)
    for change, method, says in (
        ({"model": "other"}, APE(), "another model"),
        ({}, APE(prefix="none"), "another prefix"),
        ({"texts": {"a": []}}, APE(), "without a word"),
    ):
        with pytest.raises(BadInput, match=says):
            method.encode(Documents(**{**vars(x), "stored": old, **change}))
    with pytest.raises(BadInput, match="temperature"):
        APE(temperature=0.0)
    with pytest.raises(BadInput, match="convention"):
        APE(convention="mine")
    with pytest.raises(CorruptArtefact):
        APE().decode(Packed({}, {"room": "kv", "method": APE().to_dict()}))
    with pytest.raises(BadInput, match="document"):
        APE().decode(old).layers(["nowhere"])


def test_the_budget_buys_precision() -> None:
    x = documents(100, 60, seed=3)
    numbers = 164 * 2 * 2 * 2 * 6  # tokens, layers, key/value heads, keys and values, dimension
    half, whole = APE().encode(x), APE().encode(x, EXACT)
    assert 2 * numbers < half.nbytes < 2 * numbers + 4096
    assert 4 * numbers < whole.nbytes < 4 * numbers + 4096
    exact = APE().decode(whole).documents["0.txt"].keys
    error = (APE().decode(half).documents["0.txt"].keys.float() - exact).abs() / exact.abs().clamp(min=1e-3)
    assert exact.dtype == torch.float32 and 0 < error.max() < 2**-10
    with pytest.raises(BudgetError) as refused:
        APE().encode(x, "25%")
    assert 2 * numbers < refused.value.least
    assert APE().encode(x, refused.value.least).nbytes <= refused.value.least


def test_bfloat16_models_keep_their_numbers() -> None:
    net = transformers.LlamaForCausalLM(tiny().config).eval()
    net.load_state_dict(tiny().state_dict())
    net = net.bfloat16()
    x = Documents(**{**vars(documents(20)), "load": lambda: net})
    made = APE().decode(APE().encode(x))
    with torch.inference_mode():
        past = net(torch.tensor([[*x.header, *x.texts["0.txt"]]])).past_key_values
    assert made.documents["0.txt"].keys.dtype == torch.bfloat16
    torch.testing.assert_close(
        made.documents["0.txt"].keys[1], past.layers[1].keys[0, :, 4:], atol=0.1, rtol=0.05
    )


def test_tuning_takes_the_best_temperature_and_then_the_best_scale() -> None:
    """Answers that come from the model itself at T = 0.6 (and s = 1) are likeliest there."""
    net, truth = tiny(), APE(temperature=0.6)
    held_out = []
    for seed in range(6):
        made = contexts(documents(20, 30, 25, 15, seed=seed))
        layers = [dataclasses.replace(x, temperature=0.6) for x in made.layers()]
        answer, token, cache = [], ASKED, cache_of(layers)
        for _ in range(8):
            token = logits(net, cache, token)[-1:].argmax(-1)[None]
            answer.append(int(token))
        held_out.append((made, ASKED[0].tolist(), answer))
    grid = (1.0, 0.8, 0.6, 0.4)
    losses = {t: sum(answer_loss(net, APE(temperature=t), q) for q in held_out) for t in grid}
    best = APE().tuned(net, held_out, grid)
    assert best.temperature == min(losses, key=lambda t: losses[t])
    assert sum(answer_loss(net, best, q) for q in held_out) <= min(losses.values())
    assert losses[0.6] < losses[1.0] and truth.temperature == best.temperature
