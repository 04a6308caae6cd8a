"""Vectors on the command line: index, search, add, remove; and mistakes, in one line each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from holdall.vectors.quality import naive_search, real, recall


@pytest.fixture
def files(tmp_path: Path) -> Path:
    vectors, queries = real()
    np.save(tmp_path / "vectors.npy", vectors[:1200])
    np.save(tmp_path / "more.npy", vectors[1200:])
    np.save(tmp_path / "queries.npy", queries[:7])
    return tmp_path


def test_the_whole_journey(call, files: Path) -> None:
    vectors, queries = real()
    out = files / "v.index"
    told = call(
        "index", files / "vectors.npy", "--memory", "80%", "--with", "vectors.none", "-o", out, "--json"
    )
    made = json.loads(told.out)
    assert told.code == 0 and made["count"] == 1200 and made["memory_bytes"] <= 0.8 * made["vectors_bytes"]
    found = json.loads(call("search", out, files / "queries.npy", "-k", "3", "--json").out)
    away, rows = naive_search(vectors[:1200], queries[:7], 3, "l2")
    assert [[h["id"] for h in row["hits"]] for row in found] == rows.tolist()
    np.testing.assert_allclose([[h["distance"] for h in row["hits"]] for row in found], away, rtol=1e-5)
    lines = call("search", out, files / "queries.npy", "-k", "3").out.splitlines()
    assert len(lines) == 21 and lines[0].split("\t")[:2] == ["0", str(rows[0, 0])]
    assert call("search", out, files / "queries.npy", "-k", "3", "-o", files / "hits.npz").code == 0
    with np.load(files / "hits.npz") as hits:
        assert np.array_equal(hits["ids"], rows)

    (files / "gone.txt").write_text("\n".join(map(str, rows[:, 0])) + "\n")
    told = call("index", out, "--add", files / "more.npy", "--remove", files / "gone.txt", "--json")
    change = json.loads(told.out)
    gone = np.unique(rows[:, 0])
    assert change["added"] == len(vectors) - 1200 and change["removed"] == len(gone)
    keep = ~np.isin(np.arange(len(vectors)), gone)
    _, rows = naive_search(vectors[keep], queries[:7], 3, "l2")
    found = json.loads(call("search", out, files / "queries.npy", "-k", "3", "--json").out)
    assert [[h["id"] for h in row["hits"]] for row in found] == np.flatnonzero(keep)[rows].tolist()
    assert "whole" in call("verify", out).out and f"{keep.sum():,} vectors" in call("info", out).out


def test_damage_is_found(call, files: Path) -> None:
    out = files / "v.index"
    assert call("index", files / "vectors.npy", "--with", "vectors.none", "-o", out).code == 0
    raw = bytearray((out / "rows-1").read_bytes())
    raw[70_001] ^= 4
    (out / "rows-1").write_bytes(raw)
    for words in (("verify", out), ("search", out, files / "queries.npy")):
        told = call(*words)
        assert told.code == 2 and "checksum" in told.one_line() and "rows-1" in told.one_line()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("index", "vectors.npy"), "-o"),
        (("index", "vectors.npy", "-o", "v.index", "--with", "logs.zstd"), "index"),
        (("index", "vectors.npy", "-o", "v.index", "--memory", "1kB"), "least"),
        (("index", "vectors.npy", "-o", "v.index", "--no-such", "3"), "option"),
        (("index", "nothing.npy", "-o", "v.index"), "exists"),
        (("index", "vectors.npy", "-o", "no/v.index"), "folder that exists"),
        (("index", "vectors.npy", "-o", "v.index", "--ids", "two.txt"), "2 for 1200"),
        (("index", "vectors.npy", "--add", "more.npy"), "holdall index"),
        (("search", "vectors.npy", "queries.npy"), "holdall index"),
        (("search", "nothing", "queries.npy"), "holdall index"),
    ],
)
def test_mistakes_are_one_line(call, files: Path, monkeypatch, words: tuple[str, ...], said: str) -> None:
    monkeypatch.chdir(files)
    (files / "two.txt").write_text("a\nb\n")
    before = sorted(os.listdir(files))
    told = call(*words)
    assert told.code == 2 and said in told.one_line()
    assert sorted(os.listdir(files)) == before


def test_mistakes_with_an_index_are_one_line(call, files: Path) -> None:
    vectors, _ = real()
    out = files / "v.index"
    assert call("index", files / "vectors.npy", "-o", out).code == 0
    np.save(files / "narrow.npy", vectors[:3, :9])
    np.save(files / "nan.npy", np.where(np.arange(64) == 3, np.nan, vectors[:2]))
    np.savez(files / "again.npz", vectors=vectors[:2], ids=np.array([5, 6]))
    (files / "words.txt").write_text("a\nb\n")
    for words, said in (
        (("search", out, files / "narrow.npy"), "64"),
        (("search", out, files / "nan.npy"), "NaN"),
        (("search", out, files / "queries.npy", "-k", "0"), "1 to the 1200"),
        (("search", out, files / "queries.npy", "-k", "1201"), "1 to the 1200"),
        (("search", out, files / "queries.npy", "--where", "lang = 'en'"), "attributes"),
        (("search", out, files / "queries.npy", "-o", files / "hits.txt"), ".npz"),
        (("index", out, "--add", files / "narrow.npy"), "64"),
        (("index", out, "--add", files / "again.npz"), "not in the index yet"),
        (("index", out, "--remove", files / "words.txt"), "whole numbers"),
        (("index", files / "vectors.npy", "-o", out), "already"),
    ):
        told = call(*words)
        assert told.code == 2 and said in told.one_line(), (words, told)
    assert json.loads(call("index", out, "--remove", files / "none.txt", "--json").out or "{}") == {}
    assert "1,200 vectors" in call("info", out).out


def test_a_recall_is_asked_for_and_an_index_measured(call, files: Path) -> None:
    vectors, queries = real()
    out = files / "v.index"
    made = json.loads(call("index", files / "vectors.npy", "--memory", "30%", "-o", out, "--json").out)
    assert made["method"] == "vectors.spann" and made["memory_bytes"] <= 0.3 * made["vectors_bytes"]
    np.save(files / "asked.npy", queries)
    wanted = naive_search(vectors[:1200], queries, 10, "l2")[1]
    shares = []
    for asked in ("0.6", "0.95", "1"):
        told = call("search", out, files / "asked.npy", "--recall", asked, "-o", files / "ids.npy")
        assert told.code == 0
        shares.append(recall(np.load(files / "ids.npy"), wanted))
        assert shares[-1] > float(asked) - 0.03
    assert shares[2] > 0.995 and shares == sorted(shares)  # all, but for ties
    told = call("measure", "vectors.spann", "--on", out, "--queries", files / "asked.npy", "--json")
    row = json.loads(told.out)
    assert told.code == 0 and row["recall"] > 0.9 and row["reads_a_query"] > 1
    assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["memory_bytes"] == made["memory_bytes"]
    assert call("index", out, "--tune", files / "asked.npy").code == 0
    np.save(files / "one.npy", queries[:1])
    for words, wrong in {
        ("search", out, files / "one.npy", "--recall", "2"): "recall",
        ("measure", "vectors.spann", "--on", out): "queries",
        ("measure", "vectors.ivfpq", "--on", out, "--queries", files / "one.npy"): "vectors.spann",
    }.items():
        told = call(*words)
        assert told.code == 2 and wrong in told.err and len(told.err.splitlines()) == 1
