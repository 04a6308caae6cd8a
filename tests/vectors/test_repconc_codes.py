"""RepCONC's pieces: tables that add up, lists of codes, gradients straight through, the loss and the cache."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from holdall.vectors import IVFPQ, RepCONC
from holdall.vectors.building import built
from holdall.vectors.quality import naive_search, real, recall
from holdall.vectors.repconc_cache import Cached
from holdall.vectors.repconc_codes import Quantiser
from holdall.vectors.repconc_kernels import naive_pairs, naive_scan
from holdall.vectors.repconc_loss import contrastive, masked, scores
from holdall.vectors.repconc_pairs import Pairs
from holdall.vectors.repconc_tables import Tables, learned


def test_gradients_go_straight_through_to_entries_and_vectors():
    draw = torch.Generator().manual_seed(0)
    quantiser = Quantiser(Tables(torch.randn(4, 1, 8, 2, generator=draw).numpy()))
    x = torch.randn(5, 8, generator=draw, requires_grad=True)
    codes = quantiser.nearest(x)
    weight = torch.randn(5, 8, generator=draw)
    values = quantiser.through(x, codes)
    torch.testing.assert_close(values, quantiser.values(codes))
    (values * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)
    wanted = torch.zeros(4, 8, 2)
    for row, code in zip(weight.view(5, 4, 2), codes, strict=True):
        for m in range(4):
            wanted[m, code[m]] += row[m]
    torch.testing.assert_close(quantiser.entries.grad, wanted)


def test_cached_gradients_are_those_of_one_large_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.0), nn.Linear(9, 4))
    other, x, y = copy.deepcopy(net), torch.randn(37, 6), torch.randn(37, 4)
    (net(x) @ y.T).logsumexp(1).mean().backward()
    cached = Cached(other, x, torch.arange(37), chunk=5)
    (cached.found @ y.T).logsumexp(1).mean().backward()
    cached.back()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    dropping = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5))
    cached = Cached(dropping, x, torch.arange(37), chunk=8)
    (0.5 * cached.found.square().sum()).backward()
    cached.back()  # dropout is as it was: a weight's gradient is of exactly the numbers that were kept
    torch.testing.assert_close(dropping[0].bias.grad, 2 * cached.found.detach().sum(0))


def test_the_loss_masks_other_answers_and_duplicates_and_keeps_the_hardest():
    pairs = Pairs([[0, 3], [0, 5], [1, 3], [2, 7]], 3, 9)
    documents, own = torch.tensor([3, 3, 7, 5, 8, 8]), torch.arange(3)
    out = masked(documents, own, pairs.relevant(torch.arange(3), documents))
    wanted = [[0, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1]]
    assert out.int().tolist() == wanted  # columns: own or an answer too, and every second copy
    found = torch.tensor([[1.0, 9, 2, 9, 3, 9], [9, 1, 0, 4, 5, 9], [1, 9, 1, 2, 0, 9]])
    best = contrastive(found, own, out, most=1)
    by_hand = np.mean([np.log1p(np.exp(3 - 1.0)), np.log1p(np.exp(5 - 1.0)), np.log1p(np.exp(2 - 1.0))])
    assert abs(float(best) - by_hand) < 1e-5
    whole = contrastive(found, own, out, most=None)
    rest = np.log(np.exp(1) + np.exp(2) + np.exp(3)) - 1
    more = [rest, np.log(np.exp([1, 0, 4, 5]).sum()) - 1, np.log(np.exp([1, 1, 2, 0]).sum()) - 1]
    assert abs(float(whole) - np.mean(more)) < 1e-5
    q, d = torch.randn(4, 6), torch.randn(5, 6)
    l2 = -torch.cdist(q, d).square()
    torch.testing.assert_close(scores(q, d, "l2"), l2 + q.square().sum(1, keepdim=True))


def test_frozen_codes_are_what_the_index_has_and_additions_get():
    """Stage 2 moves entries, not codes: documents that come later are coded by the entries from before."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 8)).astype(np.float32)
    old = learned(x, 4, 1, 16, 5)
    moved = Tables(old.entries + draw.normal(0, 0.5, old.entries.shape).astype(np.float32), None, old.entries)
    assert np.array_equal(moved.encode(x), old.encode(x))
    assert not np.array_equal(Tables(moved.entries).encode(x), old.encode(x))
    method = RepCONC(parts=4, entries=16, lists=1)

    def made(change, given):
        method.filled(change, given, moved, None, x)

    with built(method, x[:200], None, None, None, None, made) as index:
        index.add(x[200:])
        assert np.array_equal(index.codes, old.encode(x))
        tables = np.square(moved.entries[:, 0] - x[7].reshape(4, 1, 2)).sum(-1)
        keys, rows = naive_scan(tables, index.codes, 9)
        hits = index.search(x[7], 9)
        np.testing.assert_allclose(hits.distances[0], np.sqrt(keys), rtol=1e-4)
        assert np.array_equal(hits.ids[0], rows)


def test_pairs_of_entries_are_the_nearest_but_for_few():
    vectors, _ = real()
    tables = learned(vectors, 8, 2, 64, 3)
    cut = tables.ready(vectors).reshape(len(vectors), 4, -1)
    codes = tables.encode(tables.ready(vectors)).reshape(len(vectors), 4, 2)
    for g in range(4):
        wanted = naive_pairs(cut[:200, g], tables.entries[g])
        assert (codes[:200, g] == wanted).all(1).mean() > 0.9
        values = tables.entries[g]
        away = [np.square(cut[:200, g] - values[0][c[:, 0]] - values[1][c[:, 1]]).sum(1)
                for c in (codes[:200, g], wanted)]  # fmt: skip
        assert away[0].mean() <= 1.01 * away[1].mean()


@pytest.mark.parametrize(("metric", "layers"), [("l2", 2), ("l2", 1), ("ip", 2), ("cosine", 2), ("ip", 1)])
def test_estimates_are_distances_to_what_is_decoded(metric, layers):
    """Against the definition, on the decoded vectors, with lists, after additions and removals."""
    vectors, queries = real()
    method = RepCONC(metric=metric, layers=layers, parts=10, lists=15, probes=1.0, rounds=2, entries=64)
    with method.build(vectors[:1200]) as index:
        index.add(vectors[1200:])
        index.remove(np.arange(0, 1600, 3))
        back = index.decoded()
        asked = queries / np.linalg.norm(queries, axis=1, keepdims=True) if metric == "cosine" else queries
        away, rows = naive_search(back, index.tables.ready(asked), 20, "l2" if metric == "l2" else "ip")
        hits = index.search(queries, 20)
        told, wanted = hits.distances.astype(float), away + (metric == "cosine")
        if metric == "l2":  # what is added is known to half a step
            told, wanted = told**2, wanted**2
        step = index.folder.arrays["grid"][1] if metric == "l2" else 0
        np.testing.assert_allclose(told, wanted, atol=0.51 * step + 1e-3 * abs(wanted).max(), rtol=0)
        assert recall(hits.ids, index.ids.at(index.rows[rows])) > 0.9


def test_codes_that_add_up_find_more_than_product_codes_of_as_many_bytes():
    vectors, queries = real()
    _, wanted = naive_search(vectors, queries, 10, "l2")
    found = {}
    for name, method in {
        "added": RepCONC(parts=8, probes=1.0), "one": RepCONC(parts=8, layers=1, probes=1.0),
        "faiss": IVFPQ(parts=8, probes=10**6),
    }.items():  # fmt: skip
        with method.build(vectors) as index:
            found[name] = recall(index.search(queries, 10).ids, wanted)
    assert found["added"] > found["one"] + 0.02 and found["added"] > found["faiss"] + 0.02, found


def test_dimensions_need_no_dividers():
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(600, 9)) @ draw.normal(size=(9, 23))).astype(np.float32)
    _, wanted = naive_search(x, x[:60], 5, "l2")
    for rotation in ("opq", "none"):
        with RepCONC(parts=14, lists=1, rotation=rotation, entries=64, rounds=3).build(x) as index:
            assert recall(index.search(x[:60], 5).ids, wanted) > 0.75
