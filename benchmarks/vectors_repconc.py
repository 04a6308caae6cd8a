"""RepCONC: the card's four lines, and codes of vectors alone beside faiss at equal bytes.

    OMP_NUM_THREADS=1 python benchmarks/vectors_repconc.py                            (some 40 minutes of one core)
    OMP_NUM_THREADS=1 python benchmarks/vectors_repconc.py --parts codes --sets glove

Parts: `ranks` (WikiText-2 passages; queries are sentences with 40 % of their words gone; TF-IDF, SVD and a small
network in front; MRR@10 of queries that nothing was learned from, for codes of 8 bytes: faiss's PQ, OPQ and ITQ,
training with nearest codes, RepCONC, and the vectors whole), by seeds, along with `search` (a tenth of the lists, and
bytes); `constraint` (both trainings with the paper's lambda); `transport` (how even codes are by smoothing and limit,
and what it takes beside POT); `codes` (recall@10 of 32 bytes on SIFT and 25 on GloVe, beside faiss on the same
vectors, and what Shannon's bound would find); `tuned` (entries and a map of queries tuned on near neighbours, on
vectors alone). Results are merged row by row into results/vectors_repconc.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vectors_repconc_codes import codes, tuned
from vectors_repconc_lines import Task, classics, keep, reciprocal_rank, started, whole

from holdall.parts.transport import capped, imbalance, shares
from holdall.vectors import RepCONC
from holdall.vectors.repconc_cache import embedded
from holdall.vectors.repconc_codes import Quantiser
from holdall.vectors.repconc_joint import Joint, Trained
from holdall.vectors.repconc_tables import learned

PARTS, ENTRIES = 8, 256
METHOD = RepCONC(metric="ip", parts=PARTS, entries=ENTRIES, probes=1.0)


def rank(data: Task, made: Trained, probes: float = 1.0) -> float:
    with made.index(data.documents) as index:
        index.recipe = index.recipe.but(probes=probes)
        return reciprocal_rank(index.search(made.vectors(data.asked), 10).ids, data.wanted)


def joint(args: argparse.Namespace, seed: int, **more: Any) -> Joint:
    how = Joint(
        batch=1024, chunk=1024, epochs=args.epochs, second=args.second, rate=3e-4, entries_rate=5e-3, pull=args.pull,
        negatives=None, seed=seed,
    )  # fmt: skip
    return how.but(**more)


def ranks(args: argparse.Namespace) -> None:
    for seed in range(args.first, args.seeds):
        data, encoder = started(args, seed)
        asked, documents = embedded(encoder, data.asked), embedded(encoder, data.documents)
        row: dict[str, Any] = {"passages": len(documents), "dense": whole(data, asked, documents)}
        row |= classics(data, asked.numpy(), documents.numpy(), PARTS)
        for name, more in {"nearest": {"balanced": False}, "repconc": {}}.items():
            begun = time.process_time()
            given = (encoder, data.queries, data.documents, data.pairs)
            made = METHOD.train(*given, joint(args, seed, **more))
            told = [r for n, r in made.report.rows.items() if n.startswith("joint")][-1]
            row[name] = rank(data, made)
            row[f"{name}, vectors whole"] = whole(
                data, embedded(made.queries, data.asked), embedded(made.documents, data.documents)
            )
            row |= {f"{name}, {k}": round(told[k], 4) for k in ("imbalance", "apart", "bits")}
            row |= {f"{name}, seconds": time.process_time() - begun, f"{name}, kept": made.best}
            if name == "repconc":
                search(args, seed, data, made)
        best = max(row["opq"], row["pq"])
        row["gap closed"] = (row["repconc"] - best) / (row["dense"] - best)
        keep("ranks", f"seed {seed}", row, args)


def constraint(args: argparse.Namespace) -> None:
    """With little to hold vectors at their codes (the paper's lambda), and entries that move quickly: who collapses."""
    data, encoder = started(args, 0)
    given = encoder, data.queries, data.documents, data.pairs
    for name, more in {"nearest": {"balanced": False}, "balanced": {}}.items():
        made = METHOD.train(*given, joint(args, 0, second=0, pull=1e-4, entries_rate=0.02, **more))
        told = [r for n, r in made.report.rows.items() if n.startswith("joint")]
        row = {
            n: round(told[-1][n], 4)
            for n in ("imbalance", "nearest_imbalance", "apart", "bits", "mrr", "pull")
        }
        keep("constraint", name, row | {"kept": made.best, "mrr, asked": rank(data, made)}, args)


def search(args: argparse.Namespace, seed: int, data: Task, made: Trained) -> None:
    """The card's (3) and (4), on what `ranks` has trained."""
    with tempfile.TemporaryDirectory() as folder, made.index(data.documents, to=f"{folder}/v") as index:
        tables = made.tables
        size = sum(p.stat().st_size for p in Path(folder, "v").iterdir())
        lists = index.folder.arrays["centroids"]
        kept = [a.nbytes for a in (tables.entries, tables.rotation, tables.coding, lists) if a is not None]
        row: dict[str, Any] = {
            "file": size, "codes": index.count * PARTS, "tables and centroids": sum(kept), "lists": len(lists),
            "lists of rows": index.folder.arrays["owners"].nbytes, "memory": index.nbytes,
        }  # fmt: skip
        row["other bytes"] = size - sum(row[n] for n in ("codes", "tables and centroids", "lists of rows"))
        before = 0.0
        for probes in (1.0, 0.2, 0.1, 0.05):
            index.recipe = index.recipe.but(probes=probes)
            hits = index.search(made.vectors(data.asked), 10)
            scored = index.traffic()["distances"]
            row[f"mrr at {probes:g}"] = reciprocal_rank(hits.ids, data.wanted)
            row[f"scored at {probes:g}"] = (scored - before) / len(data.asked) / index.count
            before = scored
    keep("search", f"seed {seed}", row, args)


def transport(args: argparse.Namespace) -> None:
    data, encoder = started(args, 0)
    x = embedded(encoder, data.documents)[:2048]
    starts = {"k-means": learned(x.numpy(), PARTS, 1, ENTRIES, 10), "half of them far": None}
    far = learned(x.numpy(), PARTS, 1, ENTRIES, 10)
    far.entries[:, :, ENTRIES // 2 :] += 1.0
    starts["half of them far"] = far
    for start, tables in starts.items():
        costs = Quantiser(tables).away(x)
        row = {"nearest": float(imbalance(costs.argmin(-1), ENTRIES).mean())}
        for smoothing in (0.05, 0.01, 0.003, 0.001):
            found = shares(costs, smoothing)
            row[f"{smoothing:g}"] = float(imbalance(found.argmax(-1), ENTRIES).mean())
            row[f"{smoothing:g}, limited"] = float(imbalance(capped(found, 8), ENTRIES).mean())
        keep("transport", start, row, args)
    times = {"own, 100 rounds": lambda: shares(costs), "own, slack .01": lambda: shares(costs, slack=0.01)}
    try:
        import ot

        even = np.full(len(x), 1 / len(x)), np.full(ENTRIES, 1 / ENTRIES)
        tables = [((c - c.mean()) / (c.max() - c.mean())).double().numpy() for c in costs]
        times["POT, 100 rounds"] = lambda: [
            ot.sinkhorn(*even, c, 0.003, numItermax=100, stopThr=0, warn=False) for c in tables
        ]
    except ImportError:
        print("POT is not there: its time is left out")
    row = {}
    for name, act in times.items():
        begun = time.process_time()
        act()
        row[name] = time.process_time() - begun
    keep("transport", "CPU seconds, 8 x 2048 x 256", row, args)


EACH = {"ranks": ranks, "constraint": constraint, "transport": transport, "codes": codes, "tuned": tuned}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--parts", type=lambda t: t.split(","), default=list(EACH))
    ask.add_argument("--sets", type=lambda t: t.split(","), default=["sift", "glove"])
    ask.add_argument("--rivals", action=argparse.BooleanOptionalAction, default=True, help="faiss, for codes")
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--first", type=int, default=0, help="seed to begin with")
    ask.add_argument("--each", type=int, default=4, help="queries of each passage, to learn from")
    ask.add_argument("--epochs", type=int, default=6)
    ask.add_argument("--second", type=int, default=3)
    ask.add_argument("--pull", type=float, default=0.05)
    args = ask.parse_args()
    warnings.simplefilter("always")
    torch.set_num_threads(1)
    for part in args.parts:
        EACH[part](args)


if __name__ == "__main__":
    main()
