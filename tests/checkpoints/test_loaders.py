"""The data loader resumes exactly: on as many ranks the same batches, on others the same tokens, each once."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdall.checkpoints.loaders import PackingLoader, redeal
from holdall.errors import BadInput

RNG = np.random.default_rng(0)
DOCS = [RNG.integers(0, 50_000, n) for n in (3, 17, 1, 40, 8, 9, 0, 25, 31, 2, 11, 13, 7, 19, 23)]


def loaders(dp, workers=1, length=6, batch=2):
    return [PackingLoader(DOCS, length, batch, r, dp, workers, seed=5) for r in range(dp)]


def tokens_of(batches):
    """Each (epoch, document) and how many of its tokens were given out."""
    found = Counter()
    for batch in batches:
        for epoch, document, n in batch.parts:
            found[epoch, document] += n
    return found


def held(them):
    found = Counter()
    for one in them:
        for worker in one._workers:
            for c in worker.chunks:
                found[c.epoch, c.document] += len(c.tokens)
    return found


def resumed(old, dp, workers, **named):
    new = loaders(dp, workers, **named)
    states = [one.state() for one in old]
    for one in new:
        one.restore(states)
    return new


def test_as_many_ranks_go_on_with_the_same_batches():
    old = loaders(3, 2)
    for one in old:
        for _ in range(5):
            next(one)
    new = resumed(old, 3, 2)
    for a, b in zip(old, new, strict=True):
        for _ in range(20):
            x, y = next(a), next(b)
            assert np.array_equal(x.tokens, y.tokens) and x.parts == y.parts


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 9)), min_size=2, max_size=4),
    st.data(),
)
def test_over_changes_of_ranks_every_token_of_past_epochs_comes_once(stages, data):
    given_out, them, epochs = [], None, 0
    for dp, workers, steps in stages:
        them = loaders(dp, workers) if them is None else resumed(them, dp, workers)
        for one in them:
            given_out += [
                next(one) for _ in range(data.draw(st.integers(0, steps)))
            ]  # ranks need not be in step
    epochs = max((e for e, _ in tokens_of(given_out)), default=0) + 2
    them = resumed(them, 1, 1)
    while them[0]._workers[0].spans[0].epoch < epochs:
        given_out.append(next(them[0]))
    found = tokens_of(given_out) + held(them)
    for epoch in range(epochs):
        assert {d: found[epoch, d] for d in range(len(DOCS))} == {d: len(x) for d, x in enumerate(DOCS)}


def first_epoch(them, found):
    """Batches until all of the first epoch was given out: how many of each document's tokens came."""
    for one in them:
        while any(s.epoch == 0 for w in one._workers for s in w.spans) or any(e == 0 for e, _ in held([one])):
            found.append(next(one))
    return {d: n for (e, d), n in tokens_of(found).items() if e == 0}


def test_half_the_ranks_give_the_multiset_of_an_uninterrupted_run():
    wanted = first_epoch(loaders(4), [])
    old = loaders(4)
    found = [next(one) for one in old for _ in range(2)]
    assert wanted != {d: n for (_, d), n in tokens_of(found).items()}
    assert (
        first_epoch(resumed(old, 2, 1), found) == wanted == {d: len(x) for d, x in enumerate(DOCS) if len(x)}
    )


def test_tokens_themselves_survive():
    old = loaders(2, 2)
    for one in old:
        next(one)
    for one in resumed(old, 3, 1):
        for worker in one._workers:
            for c in worker.chunks:
                assert bytes(c.tokens) in bytes(DOCS[c.document])


def test_what_is_left_stays_compact():
    docs = [np.arange(5)] * 5000
    them = [PackingLoader(docs, 5, 1, r, 4) for r in range(4)]
    for one in them:
        for _ in range(200):
            next(one)
    workers = [w for one in them for w in one._workers]
    for of in (3, 7, 2):
        workers = redeal(workers, of, len(docs))
    assert sum(len(s.loose) for w in workers for s in w.spans) == 0
    assert len(json.dumps([[s.epoch, s.loose, s.start, s.step] for w in workers for s in w.spans])) < 200


def test_faults_are_told():
    them = loaders(2)
    with pytest.raises(BadInput, match="all ranks"):
        them[0].restore([them[1].state()])
    with pytest.raises(BadInput, match="documents"):
        PackingLoader(DOCS[:4], 6).restore([one.state() for one in loaders(1)])
    with pytest.raises(BadInput, match="tokens for each"):
        next(PackingLoader(DOCS[:3], 6, rank=4, ranks=5))
    with pytest.raises(BadInput, match="loader"):
        PackingLoader(DOCS, 0)
