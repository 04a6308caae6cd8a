"""Ways to search for one of many tenants, as people do it today, and Curator, each behind the same few functions."""

from __future__ import annotations

import time
from typing import Any

import faiss
import hnswlib
import numpy as np

from holdall.vectors import Curator

FLAT = 2000  # vectors up to which a copy is searched one by one
LISTS = 1024


class Way:
    """find(tenant, query float32 [D]) -> rows; touched: rows and nodes looked at so far, where that is counted."""

    touched = 0.0
    nbytes = 0

    def find(self, tenant: int, query: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Ours(Way):
    def __init__(self, base: np.ndarray, who: list[np.ndarray], **knobs: Any):
        self.index = Curator(**knobs).build(base, tenants=dict(enumerate(who)))
        self.nbytes = self.index.nbytes

    def find(self, tenant: int, query: np.ndarray) -> np.ndarray:
        return self.index.search(query, 10, tenant=tenant).ids[0]

    @property
    def touched(self) -> float:  # type: ignore[override]
        return float(self.index.traffic()["distances"])


class ListScan(Way):
    """The rows of each tenant, all compared; product: by BLAS, from |x|^2 - 2 x q."""

    def __init__(self, base: np.ndarray, who: list[np.ndarray], product: bool = False):
        self.base, self.who, self.product = base, [w.astype(np.int32) for w in who], product
        self.nbytes = base.nbytes + sum(w.nbytes for w in self.who)

    def find(self, tenant: int, query: np.ndarray) -> np.ndarray:
        rows = self.who[tenant]
        x = self.base[rows]
        if self.product:
            keys = np.einsum("nd,nd->n", x, x) - 2 * (x @ query)
        else:
            keys = np.square(x - query).sum(1)
        some = np.argpartition(keys, 9)[:10]
        return rows[some[np.argsort(keys[some])]]


class Copies(Way):
    """An index for each tenant: flat up to 2,000 vectors, HNSW above."""

    def __init__(self, base: np.ndarray, who: list[np.ndarray], width: int = 64):
        self.who, self.own = who, []
        for rows in who:
            small = len(rows) <= FLAT
            index = faiss.IndexFlatL2(base.shape[1]) if small else faiss.IndexHNSWFlat(base.shape[1], 16)
            if not small:
                index.hnsw.efSearch = width
            index.add(base[rows])
            self.own.append(index)
            self.nbytes += len(faiss.serialize_index(index)) + 8 * len(rows)

    def find(self, tenant: int, query: np.ndarray) -> np.ndarray:
        return self.who[tenant][self.own[tenant].search(query[None], 10)[1][0]]


class Shared(Way):
    """One index of faiss, with a bitmap for each tenant."""

    def __init__(self, index: Any, who: list[np.ndarray], count: int, **how: Any):
        self.index, self.who, self.how = index, who, how
        self.bits = []
        for rows in who:
            mask = np.zeros(count, bool)
            mask[rows] = True
            self.bits.append(np.packbits(mask, bitorder="little"))
        self.nbytes = len(faiss.serialize_index(index)) + sum(b.nbytes for b in self.bits)
        self.inverted = isinstance(index, faiss.IndexIVF)
        if self.inverted:
            self.sizes = np.array([index.invlists.list_size(i) for i in range(index.nlist)])

    def find(self, tenant: int, query: np.ndarray) -> np.ndarray:
        chosen = faiss.IDSelectorBitmap(self.bits[tenant])
        return self.index.search(query[None], 10, params=self._parameters(chosen))[1][0]

    def _parameters(self, chosen: Any) -> Any:
        if self.inverted:
            return faiss.SearchParametersIVF(sel=chosen, **self.how)
        if isinstance(self.index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(sel=chosen, **self.how)
        return faiss.SearchParameters(sel=chosen)

    def looked_at(self, tenant: int, query: np.ndarray) -> float:
        """Rows of the lists, with centroids, or nodes visited."""
        if self.inverted:
            lists = self.index.quantizer.search(query[None], self.how["nprobe"])[1][0]
            return float(self.sizes[lists].sum() + self.index.nlist)
        faiss.cvar.hnsw_stats.reset()
        self.find(tenant, query)
        return float(faiss.cvar.hnsw_stats.ndis)


class PythonFilter(Way):
    """hnswlib, which asks a Python function about each node."""

    def __init__(self, base: np.ndarray, who: list[np.ndarray], width: int):
        self.index = hnswlib.Index("l2", base.shape[1])
        self.index.init_index(len(base), M=16, ef_construction=100, random_seed=0)
        self.index.set_num_threads(1)
        self.index.add_items(base)
        self.index.set_ef(width)
        self.allowed = [set(rows.tolist()) for rows in who]
        self.nbytes = self.index.index_file_size() + 4 * sum(len(rows) for rows in who)

    def find(self, tenant: int, query: np.ndarray) -> np.ndarray:
        mine = self.allowed[tenant]
        return self.index.knn_query(query, 10, filter=lambda row: row in mine)[0][0]


def inverted(base: np.ndarray, lists: int = LISTS) -> Any:
    index = faiss.index_factory(base.shape[1], f"IVF{lists},Flat")
    index.train(base)
    index.add(base)
    return index


def graph(base: np.ndarray) -> Any:
    index = faiss.IndexHNSWFlat(base.shape[1], 16)
    index.add(base)
    return index


def flat(base: np.ndarray) -> Any:
    index = faiss.IndexFlatL2(base.shape[1])
    index.add(base)
    return index


def made(work: Any) -> tuple[Any, float]:
    """(what it gives, CPU seconds)."""
    start = time.process_time()
    found = work()
    return found, time.process_time() - start
