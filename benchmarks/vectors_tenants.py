"""Many tenants in one index: Curator beside what people do today, and the lines of its card.

    OMP_NUM_THREADS=1 python benchmarks/vectors_tenants.py                  (some 15 minutes of one core)
    OMP_NUM_THREADS=1 python benchmarks/vectors_tenants.py --parts bands --sets sift --without hnswlib

Parts: `bands` (recall@10, CPU time of a query and bytes by size of tenant: 500 tenants of 50 to 30,000 vectors, half
clustered, half drawn by lot, 2.4 tenants a vector), `card` (its five lines, on SmolLM2's token embeddings in 96
dimensions), `changes` (what grant, revoke, add and remove cost), `conditions` (several tenants at once), `memory` (what
an open index holds, in a process of its own). One thread; all ways take turns in one process, least of five rounds.
Results, row by row: results/vectors_tenants.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from typing import Any

import faiss
import numpy as np
import vectors_tenants_ways as ways
from vectors_data import apart
from vectors_tenants_card import card
from vectors_tenants_data import Pairs, asks, keep, load, tenants_of, truth

from holdall.vectors import Curator
from holdall.vectors.quality import recall

BANDS = {"<=150": (0, 150), "151-1500": (150, 1500), "1501-8000": (1500, 8000), ">8000": (8000, 1 << 40)}


def timed(way: ways.Way, pairs: Pairs) -> tuple[list[np.ndarray], float]:
    start = time.process_time()
    found = [way.find(t, q) for t, q in pairs]
    return found, 1000 * (time.process_time() - start) / len(pairs)


def all_ways(
    raw: np.ndarray, who: list[np.ndarray], without: list[str]
) -> tuple[dict[str, ways.Way], dict[str, float]]:
    """(each way, the CPU seconds that its making took: an index that two ways share counts for the first)."""
    base, there, seconds = raw.astype(np.float32), {}, {}
    ivf, ivf_took = ways.made(lambda: ways.inverted(base, 1024 if len(base) > 50_000 else 256))
    hnsw, hnsw_took = ways.made(lambda: ways.graph(base))
    lots: dict[str, Any] = {
        "curator": lambda: ways.Ours(raw, who),
        "curator, float32": lambda: ways.Ours(base, who),
        "copies": lambda: ways.Copies(base, who),
        "list of rows": lambda: ways.ListScan(base, who),
        "list of rows, BLAS": lambda: ways.ListScan(base, who, product=True),
        "flat + bitmap": lambda: ways.Shared(ways.flat(base), who, len(base)),
        **{
            f"IVF + bitmap, {p} lists": partial(ways.Shared, ivf, who, len(base), nprobe=p)
            for p in (16, 64, 256)
        },
        **{
            f"HNSW + bitmap, ef {e}": partial(ways.Shared, hnsw, who, len(base), efSearch=e)
            for e in (160, 640)
        },
        "hnswlib + Python filter": lambda: ways.PythonFilter(base, who, 50),
    }
    for name, work in lots.items():
        if name.partition(" ")[0] not in without:
            there[name], took = ways.made(work)
            seconds[name] = took + (
                ivf_took if name.startswith("IVF") else hnsw_took if name.startswith("HNSW") else 0
            )
    return there, seconds


def bands(args: argparse.Namespace) -> None:
    for name in args.sets:
        raw, queries = load(name)
        base = raw.astype(np.float32)
        who = tenants_of(base, 500, min(30_000, len(base) // 4), 50, 2.4)
        there, seconds = all_ways(raw, who, args.without)
        for band, limits in BANDS.items():
            pairs = asks(who, queries, limits, args.queries)
            if pairs:
                band_rows(name, band, there, seconds, pairs, truth(base, who, pairs), raw)


def band_rows(
    name: str, band: str, there: Any, seconds: Any, pairs: Pairs, wanted: list[np.ndarray], raw: np.ndarray
) -> None:
    least: dict[str, float] = {}
    found: dict[str, list[np.ndarray]] = {}
    for way in there.values():
        timed(way, pairs[:3])
    for turn in range(5):
        for label, way in there.items():
            slow = label.startswith("hnswlib")
            if not slow or turn == 0:
                found[label], took = timed(way, pairs[:8] if slow else pairs)
                least[label] = min(took, least.get(label, np.inf))
    for label, way in there.items():
        size = raw.nbytes if label == "curator" else raw.size * 4
        row = {
            "recall": recall(found[label], wanted[: len(found[label])]), "cpu_ms": least[label],
            "of_copies": least[label] / least["copies"], "of_list": least[label] / least["list of rows"],
            "bytes_of_raw": way.nbytes / size, "build_cpu_s": seconds[label],
        }  # fmt: skip
        keep("bands", f"{name}, {band}, {label}", row)
    ours = least["curator"]
    passed = {
        "recall >= .95": recall(found["curator"], wanted) >= 0.95,
        "<= 3x copies": ours <= 3 * least["copies"], "<= 1.15x raw": there["curator"].nbytes <= 1.15 * raw.nbytes,
    }  # fmt: skip
    if band in ("<=150", "151-1500"):
        passed["<= 1/2 of the list"] = ours <= least["list of rows"] / 2
    print(f"bands: {name}, {band}: {passed}", flush=True)


def changes(args: argparse.Namespace) -> None:
    raw, _ = load("sift")
    who = tenants_of(raw.astype(np.float32), 500, 30_000, 50, 2.4)
    draw, row = np.random.default_rng(0), {}
    there = {t: rows[rows < len(raw) - 1001] for t, rows in enumerate(who)}
    with (
        tempfile.TemporaryDirectory() as folder,
        Curator().build(raw[:-1001], tenants=there, to=f"{folder}/v") as index,
    ):
        index.add(raw[-1001:-1000], tenants=3)  # loads what is compiled
        index.remove([len(raw) - 1001])
        index.revoke([5], 3)
        some = draw.choice(len(raw) - 1000, 1000, replace=False)
        for what, act in {
            "grant_one": lambda: index.grant([5], 499), "grant_1000": lambda: index.grant(some, 3),
            "revoke_1000": lambda: index.revoke(some, 3), "add_1000": lambda: index.add(raw[-1000:], tenants=7),
            "remove_1000": lambda: index.remove(some),
        }.items():  # fmt: skip
            wall, cpu = time.perf_counter(), time.process_time()
            act()
            row[f"{what}_ms"] = 1000 * (time.perf_counter() - wall)
            row[f"{what}_cpu_ms"] = 1000 * (time.process_time() - cpu)
        row["fault"] = index._held().fault() or "none"
    keep("changes", "sift, each committed to disk", row)


def conditions(args: argparse.Namespace) -> None:
    raw, queries = load("sift")
    base = raw.astype(np.float32)
    who = tenants_of(base, 500, 30_000, 50, 2.4)
    masks = [np.isin(np.arange(len(raw)), w) for w in who[:12]]
    index = ways.Ours(raw, who).index
    for condition, mask in {
        "0 OR 1": masks[0] | masks[1], "0 AND NOT 1": masks[0] & ~masks[1],
        "(2 OR 3 OR 5) AND NOT 0": (masks[2] | masks[3] | masks[5]) & ~masks[0],
        "1 AND 3": masks[1] & masks[3],
    }.items():  # fmt: skip
        rows = np.flatnonzero(mask)
        wanted = truth(base, [rows], [(0, q) for q in queries[:60]])
        index.search(queries[:2], 10, tenants=condition)
        before, start = index.traffic()["touched"], time.process_time()
        one = [index.search(q, 10, tenants=condition).ids[0] for q in queries[:60]]
        alone, start = time.process_time() - start, time.process_time()
        both = index.search(queries[:60], 10, tenants=condition).ids
        row = {
            "rows": len(rows), "recall": recall(one, wanted), "cpu_ms": 1000 * alone / 60,
            "cpu_ms_in_a_batch_of_60": 1000 * (time.process_time() - start) / 60,
            "touched": (index.traffic()["touched"] - before) / 120, "recall_of_batch": recall(both, wanted),
        }  # fmt: skip
        keep("conditions", condition, row)


HELD = """
import sys
import numpy as np
from vectors_data import anonymous
from holdall.memory import release
from holdall.vectors import Curator
url, queries = sys.argv[1:]
asked = np.load(queries)
for dtype in ("u1", "f4"):
    with Curator().build(np.arange(4000).reshape(500, 8).astype(dtype), tenants={0: range(300)}) as small:
        small.search(np.zeros((5, 8), "f4"), 3, tenant=0)
release()
start = anonymous()
with Curator().open(url) as index:
    for i, query in enumerate(asked[:200]):
        index.search(query, 10, tenant=i % 500)
    release()
    print(index.nbytes, anonymous() - start)
"""


def memory(args: argparse.Namespace) -> None:
    """Private memory of an open index in a process of its own, beside what it tells."""
    raw, queries = load("sift")
    who = tenants_of(raw.astype(np.float32), 500, 30_000, 50, 2.4)
    for name, x in {"bytes": raw, "float32": raw.astype(np.float32)}.items():
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/q.npy", queries)
            Curator().build(x, tenants=dict(enumerate(who)), to=f"{folder}/v").close()
            told, private = map(int, apart(HELD, f"{folder}/v", f"{folder}/q.npy").split())
        row = {"told_mb": told / 1e6, "private_mb": private / 1e6, "private_of_told": private / told}
        keep("memory", f"sift, {name}", row)


PARTS = {"memory": memory, "bands": bands, "card": card, "changes": changes, "conditions": conditions}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--parts", type=lambda t: t.split(","), default=list(PARTS))
    ask.add_argument("--sets", type=lambda t: t.split(","), default=["sift", "glove"])
    ask.add_argument("--queries", type=int, default=60)
    ask.add_argument("--without", type=lambda t: t.split(","), default=[], help="first words of ways")
    args = ask.parse_args()
    faiss.omp_set_num_threads(1)
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
