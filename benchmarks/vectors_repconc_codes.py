"""The parts `codes` and `tuned` of vectors_repconc.py: codes of vectors that come without an encoder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import torch
from torch import nn
from vectors_repconc_lines import RESULTS, VECTORS, keep

from holdall.vectors import IVFPQ, RepCONC
from holdall.vectors.quality import recall
from holdall.vectors.repconc_joint import Joint

Row = dict[str, float]


def sets(which: str) -> tuple[np.ndarray, np.ndarray, int, str]:
    """(vectors, queries, bytes of a code, metric)."""
    if which == "sift":
        base, queries = (np.load(VECTORS / f"sift_{n}.npy") for n in ("base", "query"))
        return base, queries, 32, "l2"
    words = np.load(VECTORS / "glove100.npy").astype(np.float32)
    order = np.random.default_rng(0).permutation(len(words))
    return words[order[1000:]], words[order[:1000]], 25, "cosine"


def bound(x: np.ndarray, bits: float) -> np.ndarray:
    """What the best code of so many bits would leave of vectors, were they Gaussian: Shannon's bound."""
    mean = x.mean(0)
    spread, axes = np.linalg.eigh(np.cov((x - mean).T))
    spread, low, high = np.maximum(spread, 1e-12), 0.0, float(spread.max())
    for _ in range(100):
        level = (low + high) / 2
        above = 0.5 * np.log2(spread / np.minimum(level, spread)).sum() > bits
        low, high = (level, high) if above else (low, level)
    lost = np.minimum(level, spread)
    kept = 1 - lost / spread
    noise = np.random.default_rng(0).normal(size=x.shape) * np.sqrt(lost * kept)
    found: np.ndarray = ((kept * ((x - mean) @ axes) + noise) @ axes.T + mean).astype(np.float32)
    return found


def rivals(
    which: str, x: np.ndarray, asked: np.ndarray, wanted: np.ndarray, parts: int
) -> Iterator[tuple[str, Row]]:
    """faiss, and what a code at Shannon's bound would find."""
    for name in (f"PQ{parts}x8", f"OPQ{parts},PQ{parts}x8", f"IVF1024,PQ{parts}x8"):
        begun, made = time.process_time(), faiss.index_factory(x.shape[1], name)
        made.train(x)
        made.add(x)
        if name.startswith("IVF"):
            made.nprobe = 1024
        built = time.process_time() - begun
        begun, found = time.process_time(), made.search(asked, 10)[1]
        spent, size = 1000 * (time.process_time() - begun) / len(asked), len(faiss.serialize_index(made))
        row = {"recall": recall(found, wanted), "bytes": size, "build": built, "ms a query": spent}
        yield f"{which}, faiss {name}", row | {"code": parts}
    for bits in (8 * parts, 8 * parts + 9, 8 * parts + 64):
        metric = faiss.METRIC_L2 if which == "sift" else faiss.METRIC_INNER_PRODUCT
        found = faiss.knn(asked, bound(x, bits), 10, metric=metric)[1]
        yield f"{which}, Gaussian bound, {bits} bits", {"recall": recall(found, wanted)}


def codes(args: argparse.Namespace) -> None:
    for which in args.sets:
        base, queries, parts, metric = sets(which)
        x, asked = base.astype(np.float32), queries.astype(np.float32)
        if metric == "cosine":
            x, asked = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, asked))
        _, wanted = faiss.knn(asked, x, 10)
        for name, row in rivals(which, x, asked, wanted, parts) if args.rivals else ():
            keep("codes", name, row | {"vectors": len(x)}, args)
        told = json.loads(RESULTS.read_text())["codes"]["rows"][f"{which}, faiss IVF1024,PQ{parts}x8"]
        two, as_much = parts // 2 * 2, int(told["bytes"])
        ways: dict[str, tuple[Any, int | None]] = {
            "repconc": (RepCONC(metric=metric, parts=two, probes=1.0), None),
            "repconc, one list": (RepCONC(metric=metric, parts=two, lists=1), None),
            "repconc, one layer": (RepCONC(metric=metric, parts=parts, layers=1, probes=1.0), None),
            "repconc in faiss IVF's bytes": (RepCONC(metric=metric, probes=1.0), as_much),
            "vectors.ivfpq": (IVFPQ(metric=metric, parts=parts, probes=10**6), None),
        }
        for name, (method, budget) in ways.items():
            begun = time.process_time()
            with method.build(base, budget) as index:
                built = time.process_time() - begun
                row = {
                    "bytes": index.nbytes,
                    "code": index.folder.arrays["codes"].shape[1],
                    "vectors": len(x),
                }
                for shown, probes in ((name, 1.0), (f"{name}, a tenth of the lists", 0.1)):
                    if name == "repconc":
                        index.recipe = method.but(probes=probes)
                    elif probes < 1:
                        continue
                    begun, found = time.process_time(), index.search(queries, 10).ids
                    spent = 1000 * (time.process_time() - begun) / len(queries)
                    told = {"recall": recall(found, wanted), "build": built, "ms a query": spent}
                    keep("codes", f"{which}, {shown}", told | row, args)


def tuned(args: argparse.Namespace) -> None:
    """Near neighbours as pairs: 4,000 vectors are queries, each with the ten nearest of 30,000 others."""
    base, queries, parts, metric = sets("sift")
    x = torch.tensor(base[np.random.default_rng(0).permutation(len(base))[:34_000]].astype(np.float32))
    documents, learn, ask = x[:30_000], x[30_000:], torch.tensor(queries.astype(np.float32))
    near, wanted = (faiss.knn(q.numpy(), documents.numpy(), 10)[1] for q in (learn, ask))
    pairs = np.stack([np.repeat(np.arange(len(learn)), 10), near.reshape(-1)], 1)
    method = RepCONC(metric=metric, parts=parts, rotation="none", probes=1.0)
    for name, rate in {"start": 0.0, "tuned, .01": 0.01, "tuned, .1": 0.1, "tuned, 1": 1.0}.items():
        turn = nn.Linear(128, 128, bias=False)
        nn.init.eye_(turn.weight)
        how = Joint(
            epochs=0, second=3 if rate else 0, batch=1024, rate=max(1e-5, 1e-3 * rate), entries_rate=rate or 1.0,
            temperature=5000.0, negatives=30, held=0.1,
        )  # fmt: skip
        made = method.train((turn, nn.Identity()), learn, documents, pairs, how)
        with made.index(documents) as index:
            found = index.search(made.vectors(ask), 10).ids
        told = {n: round(r["mrr"], 4) for n, r in made.report.rows.items()}
        keep(
            "tuned",
            name,
            {"recall": recall(found, wanted), "kept": made.best, "held out mrr": str(told)},
            args,
        )
