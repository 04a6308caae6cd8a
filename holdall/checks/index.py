"""Checks for indexes: true answers, budgets, live knobs, floors, conditions, changes, bad inputs."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from holdall.checks.every import brief, remembered, room_quality, variants
from holdall.errors import BadInput, BudgetError
from holdall.registry import get

_SHARES = ("5%", "25%", "50%", "100%")


def built(method: Any, vectors: Any, budget: Any = None, **more: Any) -> Any:
    """Within the budget, or in the least that the method says it needs."""
    try:
        return method.build(vectors, budget, **more)
    except BudgetError as fault:
        return method.build(vectors, int(fault.least), **more)


def check_answers_are_true(cls: type[Any]) -> None:
    """Distances rise and are those of the ids beside them; no id twice; inputs stay; exact methods miss nothing."""
    quality = room_quality(cls)
    for metric in cls.metrics:
        for name, (vectors, queries) in quality.specimens().items():
            where = f"{cls.full_name()}, {metric}, {name}"
            before, k = vectors.copy(), min(4, len(vectors))
            with built(brief(cls).but(metric=metric), vectors, ids=np.arange(len(vectors)) * 3 + 5) as index:
                hits = index.search(queries, k)
            assert np.array_equal(before, vectors), f"{where}: it changed its input"
            assert hits.ids.shape == hits.distances.shape == (len(queries), k), f"{where}: {hits.ids.shape}"
            true, rows = quality.naive_search(vectors, queries, len(vectors), metric)
            for q in range(len(queries)):
                real = np.isfinite(hits.distances[q])
                ids, told = hits.ids[q][real], hits.distances[q][real]
                assert len(set(ids.tolist())) == len(ids) and (np.diff(told) >= 0).all(), (
                    f"{where}: {ids}, {told}"
                )
                known = dict(zip((rows[q] * 3 + 5).tolist(), true[q], strict=True))
                wanted = np.array([known[i] for i in ids.tolist()])
                scale = max(1.0, float(np.abs(true[q]).max()))
                near = np.allclose(told, wanted, rtol=1e-4, atol=1e-4 * scale)
                assert cls.estimates or near, f"{where}: {told} where {wanted} are true"
                if cls.exact:
                    assert np.allclose(told, true[q, :k], rtol=1e-4, atol=1e-5 * scale), (
                        f"{where}: it missed some"
                    )


def check_ids_are_the_users_own(cls: type[Any]) -> None:
    vectors, queries = room_quality(cls).real()
    names = np.array([f"vector é {i}" for i in range(len(vectors))])
    with built(brief(cls), vectors, ids=names) as index, built(brief(cls), vectors) as plain:
        a, b = index.search(queries[:20], 5).ids, plain.search(queries[:20], 5).ids
    assert (a == np.where(b < 0, "", names[b])).all(), (
        f"{cls.full_name()}: strings and numbers find other vectors"
    )


def check_budget_is_kept(cls: type[Any]) -> None:
    vectors, queries = room_quality(cls).real()
    for share in _SHARES:
        allowed = int(share[:-1]) * vectors.nbytes // 100
        try:
            index = brief(cls).build(vectors, share)
        except BudgetError as fault:
            least = int(fault.least)
            assert least > allowed, (
                f"{cls.full_name()} refuses {allowed} bytes but says that {least} would do"
            )
            allowed, index = least, brief(cls).build(vectors, least)
        with index:
            index.search(queries, 10)
            assert index.nbytes <= allowed, f"{cls.full_name()} holds {index.nbytes} of {allowed} bytes"


def check_knobs_are_live(cls: type[Any]) -> None:
    vectors, queries = room_quality(cls).real()

    def made(method: Any, budget: Any) -> tuple[Any, ...]:
        with built(method, vectors, budget) as index:
            hits = index.search(queries, 10)
            return hits.ids.tobytes(), hits.distances.tobytes(), dict(index.traffic()), _bytes(index)

    once = remembered(made)
    for f, base, changed in variants(cls):
        told = [once(m, f.metadata["at"].get("budget")) for m in (base, changed)]
        same = told[0] == told[1] if f.metadata["changes"] != "nothing" else told[0][:2] == told[1][:2]
        assert same == (f.metadata["changes"] == "nothing"), (
            f"{cls.full_name()}.{f.name} does what it should not"
        )


def _bytes(index: Any) -> list[tuple[str, bytes]]:
    """What stands in its folder, but for the recipe."""
    arrays = [(n, np.asarray(a).tobytes()) for n, a in sorted(index.folder.arrays.items())]
    files = [(n, index.folder.read(n, 0, index.folder.size(n))) for n in sorted(index.folder.files)]
    return arrays + files


def check_same_input_same_bytes(cls: type[Any]) -> None:
    vectors, _ = room_quality(cls).real()
    with built(brief(cls), vectors, "50%") as a, built(brief(cls), vectors, "50%") as b:
        assert _bytes(a) == _bytes(b), f"{cls.full_name()} is not deterministic"


def check_beats_the_floors(cls: type[Any]) -> None:
    """More is found than in a random share of the same bytes."""
    quality = room_quality(cls)
    vectors, queries = quality.real()
    if cls.full_name() in quality.FLOORS:
        return
    _, wanted = quality.naive_search(vectors, queries, 10, "l2")
    found = {}
    with built(brief(cls), vectors, "30%") as index:
        found["it"] = quality.recall(index.search(queries, 10).ids, wanted)
        with get("vectors.random")().build(vectors, index.nbytes) as floor:
            found["random"] = quality.recall(floor.search(queries, 10).ids, wanted)
    assert found["it"] > found["random"] + 0.05, f"{cls.full_name()}: recall {found}"


def check_conditions_hold(cls: type[Any]) -> None:
    """Nothing but what is allowed is found; where there is less than k, rows end in nothing."""
    vectors, queries = room_quality(cls).real()
    some = np.arange(0, len(vectors), 7)
    told = {
        "odd": np.arange(len(vectors)) % 2 == 1,
        "word": np.array([f"w{i % 50}" for i in range(len(vectors))]),
    }
    with built(brief(cls), vectors, attributes=told) as index:
        for where, keep in {
            "odd": told["odd"], "word = 'w4'": told["word"] == "w4",
            "word = 'w3' AND NOT odd": np.zeros(len(vectors), bool),
        }.items():  # fmt: skip
            _only(cls, index.search(queries[:30], 40, where), keep)
        _only(cls, index.search(queries[:30], 40, some), np.isin(np.arange(len(vectors)), some))
        for wrong in ("no_such = 1", "word", "word = "):
            _refused(cls, f"where {wrong!r}", lambda wrong=wrong: index.search(queries[:1], 1, wrong))


def _only(cls: type[Any], hits: Any, keep: np.ndarray) -> None:
    real = np.isfinite(hits.distances)
    assert keep[hits.ids[real]].all(), f"{cls.full_name()} found what a condition forbids"
    assert (hits.ids[~real] == -1).all() and (np.diff(real.astype(int), axis=1) <= 0).all()
    assert real.sum(1).max(initial=0) <= keep.sum(), f"{cls.full_name()} found more than there is"


def check_changes_are_seen(cls: type[Any]) -> None:
    """What was added is found by itself, what was removed is not, here and in what is opened afterwards."""
    vectors, queries = room_quality(cls).real()
    half = len(vectors) // 2
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/v.index"
        with built(brief(cls), vectors[:half], ids=np.arange(half), to=url) as index:
            index.add(vectors[half:], np.arange(half, len(vectors)))
            assert index.count == len(vectors)
            if cls.full_name() != "vectors.random":  # which forgets
                alone = index.search(vectors[half : half + 50], 1)
                assert (alone.ids[:, 0] == np.arange(half, half + 50)).mean() > 0.9, (
                    f"{cls.full_name()} lost what came"
                )
            gone = np.arange(0, len(vectors), 3)
            assert index.remove([*gone.tolist(), 10**9]) == len(gone) and index.count == len(vectors) - len(
                gone
            )
            assert index.remove([0]) == 0
            hits = index.search(queries, 10)
            assert not np.isin(hits.ids, gone).any(), f"{cls.full_name()} finds what was removed"
            index.add(vectors[:1], [0])
            hits = index.search(queries, 10)
        with cls().open(url) as again:
            other = again.search(queries, 10)
        assert np.array_equal(hits.ids, other.ids) and np.array_equal(hits.distances, other.distances)


def check_copies_are_the_same(cls: type[Any]) -> None:
    vectors, queries = room_quality(cls).real()
    with tempfile.TemporaryDirectory() as folder, built(brief(cls), vectors) as index:
        index.save(f"{folder}/copy.index")
        hits = index.search(queries, 10)
        with cls().open(f"{folder}/copy.index") as again:
            other = again.search(queries, 10)
        _refused(cls, "a folder with an index", lambda: index.save(f"{folder}/copy.index"))
    assert np.array_equal(hits.ids, other.ids) and np.array_equal(hits.distances, other.distances)


def check_bad_inputs_are_named(cls: type[Any]) -> None:
    vectors, queries = room_quality(cls).real()
    broken = vectors.copy()
    broken[3, 5] = np.nan
    with built(brief(cls), vectors) as index:
        for what, act in {
            "NaN": lambda: brief(cls).build(broken),
            "no vectors": lambda: brief(cls).build(vectors[:0]),
            "ids twice": lambda: brief(cls).build(vectors, ids=np.zeros(len(vectors), int)),
            "too few ids": lambda: brief(cls).build(vectors, ids=[1, 2]),
            "another metric": lambda: cls(metric="manhattan"),
            "a query of another dimension": lambda: index.search(queries[:, :9], 1),
            "a query with NaN": lambda: index.search(broken[3], 1),
            "k of 0": lambda: index.search(queries, 0),
            "k above all": lambda: index.search(queries, len(vectors) + 1),
            "vectors of another dimension": lambda: index.add(vectors[:, :9]),
            "an id that is there": lambda: index.add(vectors[:1], [7]),
            "NaN to add": lambda: index.add(broken[3:4]),
            "attributes where there are none": lambda: index.search(queries, 1, "a = 1"),
        }.items():
            _refused(cls, what, act)
        assert index.count == len(vectors)


def _refused(cls: type[Any], what: str, act: Any) -> None:
    try:
        act()
    except BadInput as fault:
        assert "\n" not in str(fault), f"{cls.full_name()}: more than a line for {what}"
        return
    raise AssertionError(f"{cls.full_name()} takes {what}")
