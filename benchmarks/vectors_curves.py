"""Recall against queries a second, all in memory, and against bytes from the device: two pictures.

    OMP_NUM_THREADS=1 python benchmarks/vectors_curves.py [--sets sift] [--glove all.npy]

The first is measured here: each way at several settings, the best of three, CPU time of one thread. The second is
drawn from what `vectors.py` has found (parts disk and sweep). Writes results/vectors_curves.json and PNGs beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import hnswlib
import numpy as np
from vectors_data import load

from holdall.picture import curves
from holdall.report import provenance
from holdall.vectors import SPANN
from holdall.vectors.quality import recall

RESULTS = Path(__file__).parent / "results" / "vectors_curves.json"
PROBES = (8, 16, 32, 48, 64, 96, 128)
Way = tuple[str, Callable[[], Any], Callable[[np.ndarray], np.ndarray]]  # name, set it, search


def spann(base: np.ndarray, budget: str) -> Iterator[Way]:
    index = SPANN(layout="codes").build(base, budget)
    share = f"spann, {100 * index.nbytes / base.nbytes:.0f}% of the bytes"
    plain = index.recipe

    def aim(probes: int, rerank: float) -> None:
        index.recipe = plain.but(probes=probes, rerank=rerank)

    many = index.whole is not None
    for probes in PROBES:
        rerank = 6.0 if many else 1.5
        yield share, lambda p=probes, r=rerank: aim(p, r), lambda q: index.search(q, 10).ids
    index.close()


def lists(base: np.ndarray, name: str, factory: str) -> Iterator[Way]:
    index = faiss.index_factory(base.shape[1], factory)
    index.train(base)
    index.add(base)
    inner = faiss.extract_index_ivf(index)
    if hasattr(index, "k_factor"):
        index.k_factor = 10
    name = f"{name}, {100 * faiss.serialize_index(index).nbytes / base.nbytes:.0f}%"
    for probes in PROBES:
        yield name, lambda p=probes: setattr(inner, "nprobe", p), lambda q: index.search(q, 10)[1]


def graph(base: np.ndarray) -> Iterator[Way]:
    index = hnswlib.Index("l2", base.shape[1])
    index.init_index(len(base), M=16, ef_construction=100)
    index.set_num_threads(1)
    index.add_items(base)
    for ef in (10, 16, 24, 32, 48, 64, 96, 128):
        yield (
            "hnswlib M16, 129%",
            lambda e=ef: index.set_ef(e),
            lambda q: index.knn_query(q, 10, num_threads=1)[0],
        )


def measured(name: str, glove: str | None) -> dict[str, list[tuple[float, float]]]:
    base, queries, wanted = load(name, glove)
    faiss.omp_set_num_threads(1)
    even = base.shape[1] // 2
    found: dict[str, list[tuple[float, float]]] = {}
    for ways in (
        spann(base, "30%"), spann(base, "15%"), lists(base, "faiss IVF1024,SQ8", "IVF1024,SQ8"),
        lists(base, "faiss PQ fast scan + vectors", f"IVF1024,PQ{even}x4fs,RFlat"), graph(base),
    ):  # fmt: skip
        for told, settle, search in ways:
            settle()
            share, spent = recall(search(queries), wanted), []
            for _ in range(3):
                begun = time.process_time()
                search(queries)
                spent.append(time.process_time() - begun)
            found.setdefault(told, []).append((share, len(queries) / min(spent)))
            print(f"{name}: {told:42s} recall {share:.4f}  {found[told][-1][1]:,.0f} a second", flush=True)
    return found


def on_disk(name: str) -> dict[str, list[tuple[float, float]]]:
    rows = json.loads(RESULTS.with_name("vectors.json").read_text())
    lines: dict[str, list[tuple[float, float]]] = {}
    for part in ("disk", "sweep"):
        for told, row in rows.get(part, {}).items():
            which, _, kind = told.partition(": ")
            if which == name and "device_kb" in row and row["device_kb"] < 3000:
                label = kind.rsplit(", recall", 1)[0] if "spann" in kind else kind.split(",")[0]
                lines.setdefault(label, []).append((row["recall"], row["device_kb"]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default="sift", type=lambda s: s.split(","))
    parser.add_argument("--glove")
    args = parser.parse_args()
    told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.sets:
        told[name] = measured(name, args.glove)
        told["provenance"] = provenance()
        RESULTS.write_text(json.dumps(told, indent=1))
        png = str(RESULTS.with_name(f"vectors_{name}_memory.png"))
        curves(
            told[name], png, title=f"{name}, all in memory", x="recall@10", y="queries a second", log_y=True
        )
        disk = str(RESULTS.with_name(f"vectors_{name}_disk.png"))
        curves(
            on_disk(name),
            disk,
            title=f"{name}, cold",
            x="recall@10",
            y="kB from the device a query",
            log_y=True,
        )
        print(png, disk)


if __name__ == "__main__":
    main()
