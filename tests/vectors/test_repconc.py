"""RepCONC: codes that are used alike, gradients straight through them, and ranks that come near the encoder's own."""

import copy
import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from holdall.errors import BadInput, BudgetError
from holdall.parts.transport import entropy, imbalance
from holdall.vectors import RepCONC
from holdall.vectors.repconc_codes import Balancer, Quantiser
from holdall.vectors.repconc_joint import Joint
from holdall.vectors.repconc_tables import learned
from holdall.weights.texts import calibration_text, held_out_text

DIM, ENTRIES, PARTS = 64, 32, 8


@cache
def task():
    """Paragraphs of Python's language reference as counts of words, squeezed; queries have 40 % of the words."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    whole = f"{calibration_text()}\n\n{held_out_text()}".split("\n\n")
    texts = [t for t in whole if len(t.split()) >= 15]
    draw = np.random.default_rng(0)
    asked = [
        [" ".join(w for w in t.split() if draw.random() < 0.4) for t in texts for _ in range(each)]
        for each in (6, 1)
    ]
    words, thin = TfidfVectorizer(sublinear_tf=True, stop_words="english"), TruncatedSVD(DIM, random_state=0)
    documents = thin.fit_transform(words.fit_transform(texts))
    learn, ask = (thin.transform(words.transform(a)) for a in asked)
    pairs = np.stack([np.arange(len(learn)), np.repeat(np.arange(len(texts)), 6)], 1)
    return *(torch.tensor(x, dtype=torch.float32) for x in (documents, learn, ask)), pairs


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(DIM, 128), nn.ReLU(), nn.Linear(128, 32))
        self.straight = nn.Linear(DIM, 32, bias=False)

    def forward(self, x):
        x = nn.functional.normalize(x, dim=-1)
        return 5 * nn.functional.normalize(self.net(x) + self.straight(x), dim=-1)


@cache
def encoder():
    documents, queries, _, pairs = task()
    made = Encoder()
    adam = torch.optim.AdamW(made.parameters(), 1e-3)
    for rows in itertools.chain(*(torch.randperm(len(pairs)).split(512) for _ in range(6))):
        own = torch.as_tensor(pairs)[rows, 1]
        found = made(queries[rows]) @ made(documents[own]).T
        same = (own[:, None] == own) & ~torch.eye(len(own), dtype=torch.bool)
        loss = nn.functional.cross_entropy(found.masked_fill(same, -1e4), torch.arange(len(own)))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return made.eval()


METHOD = RepCONC(metric="ip", parts=PARTS, entries=ENTRIES, lists=20, probes=1.0)
HOW = Joint(
    batch=512, chunk=256, epochs=5, second=4, rate=3e-4, entries_rate=1e-2, pull=0.05, negatives=None, pool=50
)


@cache
def runs(**more):
    documents, queries, _, pairs = task()
    return METHOD.train(encoder(), queries, documents, pairs, HOW, **more)


def rank(trained, **search):
    """MRR@10 of queries that nothing was learned from."""
    documents, _, asked, _ = task()
    with trained.index(documents) as index:
        hits = index.search(trained.vectors(asked), 10).ids
    right = hits == np.arange(len(documents))[:, None]
    return float(np.where(right.any(1), 1 / (right.argmax(1) + 1), 0).mean())


def dense(made):
    documents, _, asked, _ = task()
    with torch.no_grad():
        hits = (made(asked) @ made(documents).T).topk(10).indices
    right = hits == torch.arange(len(documents))[:, None]
    return float(torch.where(right.any(1), 1 / (right.double().argmax(1) + 1), 0.0).mean())


def test_training_closes_the_gap_between_opq_and_the_dense_encoder():
    """The card's (1), small."""
    opq, joint = rank(runs(epochs=0, second=0)), rank(runs())
    whole = dense(encoder())
    assert whole - opq > 0.05 and joint - opq >= 0.5 * (whole - opq), (opq, joint, whole)


def test_codes_are_used_alike_with_the_constraint_and_not_without():
    """The card's (2): from code books of which half are far away, as they are when training has gone astray."""
    documents, _, _, _ = task()
    with torch.no_grad():
        x = encoder()(documents)[:1024]
    tables = learned(x.numpy(), PARTS, 1, ENTRIES, 5)
    tables.entries[:, :, ENTRIES // 2 :] += 3.0
    quantiser = Quantiser(tables)
    free = quantiser.nearest(x)
    even = Balancer(0.003, 100, 1.0, 8)(quantiser, x)
    assert imbalance(free.T, ENTRIES).min() > 0.5 and imbalance(even.T, ENTRIES).max() < 0.1
    assert entropy(even.T, ENTRIES).min() > 0.99 * 5 > entropy(free.T, ENTRIES).max() + 0.5


def test_trained_codes_are_balanced_and_reported():
    told = runs().report.rows
    assert next(iter(told)) == "opq" and runs().best in told
    assert all(row["imbalance"] < 0.1 for name, row in told.items() if name.startswith("joint"))
    assert told["joint 5"]["bits"] >= 0.9 * np.log2(ENTRIES)


def test_small_batches_are_balanced_along_with_earlier_ones():
    """32 vectors for 32 codes at a time: each batch alone would be spread over all of them at random."""
    documents, _, _, _ = task()
    with torch.no_grad():
        x = encoder()(documents)[:1024]
    quantiser = Quantiser(learned(x.numpy(), PARTS, 1, ENTRIES, 5))
    apart = {}
    for least in (0, 16):
        balancer = Balancer(0.003, 100, 1.0, least)
        codes = torch.cat([balancer(quantiser, part) for part in x.split(32)])
        apart[least] = float((codes != quantiser.nearest(x)).float().mean())
    assert apart[16] < apart[0] - 0.1, apart


def test_inverted_lists_keep_ranks_at_a_quarter_of_the_work():
    """The card's (3): a tenth of the lists."""
    trained, (documents, _, asked, _) = runs(), task()
    wanted = np.arange(len(documents))

    def mrr(share):
        recipe = trained.recipe.but(probes=share, lists=None)
        with dataclasses.replace(trained, recipe=recipe).index(documents) as index:
            hits = index.search(trained.vectors(asked), 10).ids == wanted[:, None]
            return np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0).mean(), index.traffic()["distances"]

    whole, all_of_them = mrr(1.0)
    some, few = mrr(0.1)
    assert all_of_them == len(asked) * len(documents)
    assert some >= 0.95 * whole and all_of_them >= 4 * few, (some, whole, few / all_of_them)


def test_files_are_the_codes_and_the_tables(tmp_path):
    """The card's (4)."""
    trained, (documents, _, _, _) = runs(), task()
    with trained.index(documents, to=str(tmp_path / "v.index")) as index:
        tables = trained.tables
        kept = [tables.entries, tables.rotation, tables.coding, np.zeros((20, 32), np.float32)]
        fixed = sum(a.nbytes for a in kept if a is not None)
        size = sum(p.stat().st_size for p in (tmp_path / "v.index").iterdir())
        count = len(documents)
        assert (
            count * PARTS + fixed + count <= size <= count * PARTS + fixed + count + 2048
        )  # a byte for its list
        assert (
            index.nbytes
            == count * (PARTS + 4) + fixed - (0 if tables.coding is None else tables.coding.nbytes) + 168
        )


def test_lambda_is_raised_where_training_and_searching_disagree():
    documents, queries, _, pairs = task()
    how = HOW.but(epochs=2, second=0, pull=0.001, entries_rate=1.0, rate=1e-5)
    with pytest.warns(UserWarning, match="lambda is"):
        told = METHOD.train(encoder(), queries, documents, pairs, how).report.rows
    assert told["joint 1"]["apart"] > 0.3 and told["joint 2"]["pull"] == pytest.approx(0.003)


def test_training_leaves_the_encoder_and_gives_the_same_again():
    documents, queries, asked, pairs = task()
    before = {n: p.clone() for n, p in encoder().state_dict().items()}
    how = HOW.but(epochs=1, second=1)
    two = (encoder(), copy.deepcopy(encoder()))
    a, b = (METHOD.train(two, {"x": queries}, {"x": documents}, pairs, how) for _ in range(2))
    assert all(torch.equal(p, before[n]) for n, p in encoder().state_dict().items())
    assert np.array_equal(a.vectors({"x": asked}), b.vectors({"x": asked}))
    assert np.array_equal(a.tables.entries, b.tables.entries) and a.report.rows == b.report.rows


def test_what_it_cannot_work_with_is_named():
    documents, queries, _, pairs = task()
    for wrong in (
        lambda: RepCONC(entries=100), lambda: RepCONC(layers=3), lambda: RepCONC(probes=0),
        lambda: RepCONC(rotation="x"),
        lambda: Joint(room=0.5), lambda: Joint(held=1.0), lambda: METHOD.train(len, queries, documents, pairs),
        lambda: METHOD.train(encoder(), queries, documents, [[0, 10**6]]),
        lambda: METHOD.but(parts=5).train(encoder(), queries, documents, pairs),
        lambda: METHOD.train(encoder(), queries, documents, np.zeros((3, 3), int)),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            wrong()
    with pytest.raises(BudgetError) as told:
        runs().index(documents, 100)
    with runs().index(documents, int(told.value.least)) as index:
        assert index.nbytes <= index.limit
