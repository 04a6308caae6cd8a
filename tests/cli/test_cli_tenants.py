"""Tenants on the command line: from a table or a column, granted and revoked, and mistakes in one line each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdall.vectors.quality import naive_search, real


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    vectors, queries = real()
    monkeypatch.chdir(tmp_path)
    np.save("vectors.npy", vectors[:600])
    np.save("more.npy", vectors[600:610])
    np.save("queries.npy", queries[:5])
    rows = [f"{i},acme" for i in range(0, 300)] + [f"{i},umbrella" for i in range(200, 400)]
    Path("who.csv").write_text("\n".join(["id,tenant", *rows]) + "\n")
    return tmp_path


def found(call, *words) -> list[list[int]]:
    told = call("search", "v.index", "queries.npy", "-k", "3", "--json", *words)
    assert told.code == 0, told
    return [[hit["id"] for hit in row["hits"]] for row in json.loads(told.out)]


def wanted(rows) -> list[list[int]]:
    vectors, queries = real()
    rows = np.array(sorted(rows))
    return rows[naive_search(vectors[rows], queries[:5], 3, "l2")[1]].tolist()


def test_the_whole_journey(call, files: Path) -> None:
    made = call("index", "vectors.npy", "--with", "vectors.curator", "--tenants", "who.csv", "-o", "v.index")
    assert made.code == 0, made
    assert found(call, "--tenant", "acme") == wanted(range(300))
    assert found(call, "--tenants", "acme AND NOT umbrella") == wanted(range(200))
    assert found(call) == wanted(range(600))
    Path("ids.txt").write_text("\n".join(map(str, range(450, 460))) + "\n")
    told = json.loads(call("index", "v.index", "--grant", "ids.txt", "--tenant", "acme", "--json").out)
    assert told["granted"] == 10 and told["revoked"] == 0 and told["count"] == 600
    assert found(call, "--tenant", "acme") == wanted([*range(300), *range(450, 460)])
    Path("gone.txt").write_text("\n".join(map(str, range(100, 700))) + "\n")
    line = call("index", "v.index", "--revoke", "gone.txt", "--tenant", "acme").out
    assert "210 revoked" in line and "0 granted" in line
    assert found(call, "--tenant", "acme") == wanted(range(100))
    assert call("index", "v.index", "--add", "more.npy", "--tenant", "umbrella").code == 0
    assert found(call, "--tenant", "umbrella") == wanted([*range(200, 400), *range(600, 610)])
    assert "whole" in call("verify", "v.index").out


def test_tenants_of_a_column_with_lists_and_whole_numbers(call, files: Path) -> None:
    vectors, _ = real()
    owners = [[i % 3, 7] if i % 2 else None for i in range(600)]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[:600].reshape(-1)), 64)
    pq.write_table(pa.table({"emb": column, "owners": owners}), "table.parquet")
    words = ("index", "table.parquet", "--column", "emb", "--with", "vectors.curator")
    assert call(*words, "--tenants", "owners", "-o", "v.index").code == 0
    assert found(call, "--tenant", "7") == wanted(range(1, 600, 2))
    assert found(call, "--tenant", "2") == wanted(i for i in range(1, 600, 2) if i % 3 == 2)


def test_a_table_names_ids_that_are_strings(call, files: Path) -> None:
    Path("names.txt").write_text("\n".join(f"{i}" for i in range(599)) + "\nlast\n")
    pairs = {"id": pa.array([0, 5, 9]), "tenant": ["a", "a", "b"]}
    pq.write_table(pa.table(pairs), "who.parquet")
    words = ("index", "vectors.npy", "--with", "vectors.curator", "--ids", "names.txt")
    assert call(*words, "--tenants", "who.parquet", "-o", "v.index").code == 0
    assert {i for row in found(call, "--tenant", "a") for i in row} == {"0", "5"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("index", "vectors.npy", "--tenants", "who.csv", "--with", "vectors.none", "-o", "x"),
            "vectors.curator",
        ),
        (
            ("index", "vectors.npy", "--tenants", "owner", "--with", "vectors.curator", "-o", "x"),
            "no columns",
        ),
        (("index", "vectors.npy", "--tenants", "no.csv", "--with", "vectors.curator", "-o", "x"), "exists"),
        (
            ("index", "vectors.npy", "--tenants", "odd.csv", "--with", "vectors.curator", "-o", "x"),
            "id and tenant",
        ),
        (("index", "vectors.npy", "--tenants", "far.csv", "--with", "vectors.curator", "-o", "x"), "601"),
        (("index", "vectors.npy", "--tenants", "half.csv", "--with", "vectors.curator", "-o", "x"), "row 1"),
        (("index", "v.index", "--grant", "ids.txt"), "--tenant"),
        (("index", "v.index", "--revoke", "ids.txt", "--tenant", "nobody"), "has vectors"),
        (("index", "v.index", "--add", "more.npy", "--tenants", "who.csv"), "a column"),
        (("search", "v.index", "queries.npy", "--tenant", "nobody"), "has vectors"),
        (("search", "v.index", "queries.npy", "--tenants", "acme AND"), "an end where"),
        (("index", "none.index", "--grant", "ids.txt", "--tenant", "acme"), "knows no tenants"),
        (("search", "none.index", "queries.npy", "--tenant", "acme"), "knows no tenants"),
        (("search", "none.index", "queries.npy", "--tenants", "acme"), "knows no tenants"),
    ],
)
def test_mistakes_are_one_line(call, files: Path, words: tuple[str, ...], said: str) -> None:
    Path("odd.csv").write_text("a,b\n1,2\n")
    Path("far.csv").write_text("id,tenant\n601,a\n")
    Path("half.csv").write_text("id,tenant\n1,a\n,a\n")
    Path("ids.txt").write_text("1\n2\n")
    if words[1] == "v.index":
        made = call(
            "index", "vectors.npy", "--with", "vectors.curator", "--tenants", "who.csv", "-o", "v.index"
        )
        assert made.code == 0
    if words[1] == "none.index":
        assert call("index", "vectors.npy", "--with", "vectors.none", "-o", "none.index").code == 0
    told = call(*words)
    assert told.code == 2 and said in told.one_line(), told
    assert not Path("x").exists()
