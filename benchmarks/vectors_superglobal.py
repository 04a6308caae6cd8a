"""SuperGlobal: re-ranking by global vectors alone beside what others do with them, and pooling chosen after training.

    OMP_NUM_THREADS=1 python benchmarks/vectors_superglobal.py                   (some 3 minutes of one core)
    OMP_NUM_THREADS=1 python benchmarks/vectors_superglobal.py --parts speed

Parts: `precision` (mAP of plain cosines, re-ranking, alpha-QE and DBA on views of places in scikit-learn's two
photographs, by seeds, how hard views are and knobs), `speed` (a query's time by M and D), `storage` (bytes beside
the inner index), `nothing` (scores of the best hit where there is none to find), `pooling` (p at test time, regional
means and scales, on networks trained with ArcFace on digits 0 to 4 and asked about 5 to 9). Results:
results/vectors_superglobal.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from holdall.report import provenance
from holdall.vectors import Nothing, SuperGlobal, arcface, rerank
from holdall.vectors.pooling import GeMPlus, RegionalGeM, ScaleGeM, at_scales
from holdall.vectors.views import Instances, instances

RESULTS = Path(__file__).parent / "results" / "vectors_superglobal.json"
POWERS = (1.0, 2.0, 3.0, 4.6, 8.0)


def reordered(data: Instances, most: int = 400, **knobs: Any) -> np.ndarray:
    scores = data.queries @ data.base.T
    for row, query in zip(scores, data.queries, strict=True):
        first = np.argsort(-row, kind="stable")[:most]
        row[first] = 10 + rerank(query, data.base[first], **knobs)
    return scores


def weighed(vectors: np.ndarray, others: np.ndarray, count: int, power: float) -> np.ndarray:
    near = vectors @ others.T
    first = np.argpartition(-near, count, axis=1)[:, :count]
    weights = np.take_along_axis(near, first, 1).clip(0) ** power
    return np.einsum("nk,nkd->nd", weights, others[first])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def precision(args: argparse.Namespace) -> dict[str, Any]:
    rows = {}
    for hard, white, seed in [(h, w, s) for h in (0.7, 1.0) for w in (1.0, 0.5) for s in range(args.seeds)]:
        data = instances(args.places, 33, 3, args.others, hard=hard, white=white, seed=seed)
        found = {"plain": data.queries @ data.base.T, "rerank": reordered(data)}
        for k in (9, 10):
            expanded = data.queries + weighed(data.queries, data.base, k, 3)
            found[f"alpha-QE({k}, 3)"] = unit(expanded) @ data.base.T
        found["DBA(9)"] = data.queries @ unit(weighed(data.base, data.base, 10, 3)).T
        for knobs in ({"most": 100}, {"most": 1000}, {"neighbours": 0}, {"neighbours": 20}, {"beta": 0.5}):
            found[f"rerank {knobs}"] = reordered(data, **knobs)
        name = f"hard {hard}, whitening {white}, seed {seed}"
        rows[name] = {way: round(100 * data.precision(scores), 2) for way, scores in found.items()}
        print(f"{name}, {len(data.base)} vectors: {rows[name]}", flush=True)
    for hard, white in [(h, w) for h in (0.7, 1.0) for w in (1.0, 0.5)]:
        some = [rows[f"hard {hard}, whitening {white}, seed {s}"] for s in range(args.seeds)]
        mean = {way: round(float(np.mean([row[way] for row in some])), 2) for way in some[0]}
        rows[f"hard {hard}, whitening {white}, mean"] = mean
        print(f"hard {hard}, whitening {white}, mean: {mean}")
    return rows


def speed(args: argparse.Namespace) -> dict[str, Any]:
    rows, draw = {}, np.random.default_rng(0)
    for most, dim in ((100, 128), (400, 128), (1000, 128), (400, 512), (400, 2048)):
        query, x = draw.normal(size=dim).astype(np.float32), draw.normal(size=(most, dim)).astype(np.float32)
        times = []
        for _ in range(40):
            begun = time.perf_counter()
            rerank(query, x)
            times.append(1000 * (time.perf_counter() - begun))
        rows[f"M {most}, D {dim}"] = {"median_ms": float(np.median(times[5:])), "least_ms": min(times)}
        print(
            f"M {most}, D {dim}: median {np.median(times[5:]):.2f} ms, least {min(times):.2f} ms", flush=True
        )
    return rows


def storage(args: argparse.Namespace) -> dict[str, Any]:
    data, rows = instances(args.places, 33, 3, args.others), {}
    for method in (Nothing(metric="cosine"), SuperGlobal()):
        with tempfile.TemporaryDirectory() as folder, method.build(data.base, to=f"{folder}/v") as index:
            files = {p.name: p.stat().st_size for p in Path(folder, "v").iterdir()}
            begun, read = time.perf_counter(), index.traffic()["bytes_read"]
            for query in data.queries:
                index.search(query, 10)
            spent = 1000 * (time.perf_counter() - begun) / len(data.queries)
            read = (index.traffic()["bytes_read"] - read) / len(data.queries)
            rows[method.full_name()] = {
                "files": files, "memory_bytes": index.nbytes, "ms_a_query": spent, "read_bytes_a_query": read,
            }  # fmt: skip
        print(method.full_name(), rows[method.full_name()], flush=True)
    return rows


def nothing(args: argparse.Namespace) -> dict[str, Any]:
    """Scores of the best hit: where the place is there, and where all of its views were taken out."""
    data, rows = instances(args.places, 33, 3, args.others), {}
    gone = {int(label) for label in np.unique(data.wanted)[::2]}
    left = ~np.isin(data.labels, list(gone))
    data = Instances(data.base[left], data.labels[left], data.queries, data.wanted)
    absent = np.isin(data.wanted, list(gone))
    scores = {"plain": data.queries @ data.base.T, "rerank": reordered(data)}
    for way, told in scores.items():
        best = told.max(1) - (10 if way == "rerank" else 0)
        apart = float((best[~absent][:, None] > best[absent]).mean())
        rows[way] = {
            "there": [round(float(v), 3) for v in np.percentile(best[~absent], [5, 50, 95])],
            "not there": [round(float(v), 3) for v in np.percentile(best[absent], [5, 50, 95])],
            "told apart": round(apart, 4),
        }
        print(f"best hit, {way}, at 5, 50, 95 %: {rows[way]}", flush=True)
    return rows


def pooling(args: argparse.Namespace) -> dict[str, Any]:
    images, labels = arcface.digits()
    seen, rows = labels < 5, {}
    held, asked = images[~seen], labels[~seen]
    for seed in range(2 * args.seeds):
        net = arcface.trained(images[seen], torch.tensor(labels[seen]), seed=seed)
        features, row = net.body(held), {}
        for p in POWERS:
            for name, made in (("p", features), ("regional, p", RegionalGeM()(features))):
                vectors = functional.normalize(net.white(GeMPlus(p)(made)), dim=-1)
                row[f"{name} {p:g}"] = arcface.precision(vectors, asked)
        several = at_scales(net, held)
        row["three scales, greatest"] = arcface.precision(ScaleGeM()(several), asked)
        row["three scales, p 10"] = arcface.precision(ScaleGeM(10.0)(several), asked)
        row["three scales, mean"] = arcface.precision(functional.normalize(several.mean(0), dim=-1), asked)
        rows[f"seed {seed}"] = {name: round(100 * value, 2) for name, value in row.items()}
        print(f"pooling, seed {seed}: {rows[f'seed {seed}']}", flush=True)
    names = rows["seed 0"]
    rows["mean"] = {n: round(float(np.mean([row[n] for row in rows.values()])), 2) for n in names}
    print(f"pooling, mean: {rows['mean']}")
    return rows


PARTS = {"precision": precision, "speed": speed, "storage": storage, "nothing": nothing, "pooling": pooling}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--parts", type=lambda t: t.split(","), default=list(PARTS))
    ask.add_argument("--places", type=int, default=40)
    ask.add_argument("--others", type=int, default=5000)
    ask.add_argument("--seeds", type=int, default=3)
    args = ask.parse_args()
    for part in args.parts:
        begun = time.process_time()
        rows = PARTS[part](args)
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        took = time.process_time() - begun
        told = provenance(
            places=args.places, others=args.others, seeds=args.seeds, threads=torch.get_num_threads()
        )
        found[part] = {"rows": rows, "cpu_seconds": took, "provenance": told}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{part}: {took:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()
