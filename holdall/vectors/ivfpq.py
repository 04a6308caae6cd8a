"""Inverted lists of product codes: the classic, as faiss has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.parts.codebook import ProductQuantiser, assigned, fill, kmeans
from holdall.vectors.base import VectorIndex
from holdall.vectors.given import Given, State
from holdall.vectors.metrics import ready
from holdall.vectors.shelf import Shelf

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.source import Vectors

faiss: Any = lazy("faiss", extra="vectors")  # its own types are of another release

_ROW = 8  # bytes of a row's number in a list


@dataclass(frozen=True, kw_only=True)
class IVFPQ(VectorIndex):
    """Keeps each vector as a few bytes in memory, in lists of which a query looks at some: faiss's IVF-PQ.

    Small and fast, and what it tells are estimates: there are no vectors left to compare with, so that recall stops
    below one however many lists are read. The classic that other methods are measured against.

    Shapes:
        codes [N, parts] of 8 bits in `lists` lists; coarse centroids [lists, D]; tables [parts, 256, D / parts].
    Cost:
        N (parts + 8) bytes, and the tables; a query compares with all centroids and with the codes of `probes` lists.
    Knobs:
        metric: l2, cosine or ip; lists (None: four times the root of N); probes, lists that a query reads; parts of a
        code (None: what fits, 32 without a budget); sample, vectors that tables learn from; seed.
    Differs from the paper:
        codes are of what is left of a vector beside its coarse centroid, as in faiss; no rotation; no table of
        products is computed beforehand, which in faiss takes several times the codes.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors import IVFPQ
        >>> x = np.random.default_rng(0).normal(size=(2000, 16)).astype("float32")
        >>> with IVFPQ(probes=40).build(x, "60%") as index:
        ...     float((index.search(x[:100], k=10).ids == np.arange(100)[:, None]).any(1).mean()) > 0.95
        True

    Paper: Jegou, Douze and Schmid, Product Quantization for Nearest Neighbor Search.
    Test: tests/vectors/test_floors.py
    """

    name: ClassVar[str] = "ivfpq"
    estimates: ClassVar[bool] = True
    brief: ClassVar[Mapping[str, Any]] = {"lists": 20, "parts": 8}
    paper: ClassVar[Paper] = Paper(
        0, "Product Quantization for Nearest Neighbor Search", "Jegou, Douze, Schmid (TPAMI 2011)",
        "https://hal.inria.fr/inria-00514462",
    )  # fmt: skip

    lists: int | None = knob(None, "inverted lists; None: four times the root of N", other=5)
    probes: int = knob(16, "lists that a query reads", other=1)
    parts: int | None = knob(None, "codes of a vector; None: what fits, 32 without a budget", other=4)
    sample: int = knob(65_536, "vectors that tables learn from", unit="vectors", other=300)
    seed: int = knob(0, "of the sample and of k-means", other=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.probes, self.sample, self.lists or 1, self.parts or 1) < 1:
            raise BadInput("ivfpq", str(self.to_dict()), "lists, probes, parts, sample >= 1")

    def made(self, change: Change, given: Given) -> None:
        vectors = given.vectors
        lists = min(self.lists or max(1, round(4 * vectors.count**0.5)), vectors.count)
        parts = self._parts(given, lists)
        draw = np.random.default_rng(self.seed)
        rows = np.sort(draw.permutation(vectors.count)[: self.sample])
        sample = ready(vectors.take(rows), self.metric)
        centroids = kmeans(sample, lists, seed=self.seed)
        rest = sample - centroids[assigned(sample, centroids)]
        tables = ProductQuantiser.learn(rest, parts, seed=self.seed).tables
        state = {"centroids": centroids, "tables": tables}
        codes, owners = _coded(state, vectors, self.metric)
        given.commit(change, self, ({**state, "codes": codes, "owners": owners}, {}))

    def _parts(self, given: Given, lists: int) -> int:
        dim, count = given.vectors.dim, given.vectors.count
        dividers = [p for p in range(1, dim + 1) if dim % p == 0]
        fixed = 4 * dim * (lists + 256) + given.beside + count * _ROW
        wanted = self.parts or 32
        if self.parts is None and given.limit is not None:
            wanted = (given.limit - fixed) // count
        fitting = [p for p in dividers if p <= wanted]
        least = fixed + count * (dividers[0] if self.parts is None else max(fitting, default=1))
        if given.limit is not None and (not fitting or given.limit < least):
            raise BudgetError(
                given.limit, least, who=self.full_name(), why="tables, row numbers and a byte a vector"
            )
        return max(fitting)

    def shelf(self, folder: Folder, limit: int | None) -> Lists:
        return Lists(self, folder, limit)


def _coded(state: dict[str, np.ndarray], vectors: Vectors, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint8 [N, parts], lists int32 [N])."""
    quantiser, centroids = ProductQuantiser(state["tables"]), state["centroids"]
    codes, owners = [], []
    for _, block in vectors.blocks():
        x = ready(block, metric)
        owners.append(assigned(x, centroids).astype(np.int32))
        codes.append(quantiser.encode(x - centroids[owners[-1]]))
    return np.concatenate(codes), np.concatenate(owners)


def _held(state: dict[str, np.ndarray]) -> int:
    """Bytes in memory: tables, codes, and a row number beside each code."""
    return sum(state[n].nbytes for n in ("centroids", "tables", "codes")) + len(state["codes"]) * _ROW


class Lists(Shelf):
    """faiss's own index, made from the arrays that are stored."""

    def load(self) -> None:
        centroids = self.folder.array("centroids", np.float32, 2)
        codes, owners = self.folder.array("codes", np.uint8, 2), self.folder.array("owners", np.int32, 1)
        quantiser = ProductQuantiser.of(self.folder.array("tables", np.float32, 3), self.dim)
        fits = codes.shape == (self.count, quantiser.parts) and owners.shape == (self.count,)
        fits &= centroids.shape[1] == self.dim and len(centroids) > 0 and bool(np.isfinite(centroids).all())
        if not fits or (self.count and not (owners.min() >= 0 and owners.max() < len(centroids))):
            raise CorruptArtefact(self.folder.url, "its lists contradict each other")
        kind = faiss.METRIC_INNER_PRODUCT if self.recipe.metric == "ip" else faiss.METRIC_L2
        self.coarse = faiss.IndexFlatL2(self.dim)
        self.coarse.add(centroids)
        self.index = faiss.IndexIVFPQ(self.coarse, self.dim, len(centroids), quantiser.parts, 8, kind)
        faiss.copy_array_to_vector(quantiser.tables.reshape(-1), self.index.pq.centroids)
        self.index.use_precomputed_table, self.index.is_trained = -1, True
        fill(self.index, owners, codes)
        self._size = _held({"centroids": centroids, "tables": quantiser.tables, "codes": codes})

    def least(self, own: State) -> int:
        return _held(own[0])

    def held(self) -> int:
        return self._size

    def find(self, queries: np.ndarray, k: int, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if not len(queries):
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        how = faiss.SearchParametersIVF(nprobe=self.recipe.probes)
        if keep is not None:
            bits = np.packbits(keep, bitorder="little")
            how.sel = faiss.IDSelectorBitmap(bits)
        keys, rows = self.index.search(queries, k, params=how)
        found = rows >= 0
        if self.recipe.metric == "ip":
            keys = -keys
        else:
            keys = np.maximum(keys, 0)
            keys = np.sqrt(keys) if self.recipe.metric == "l2" else keys / 2
        return np.where(found, keys, np.inf).astype(np.float32), rows

    def _state(self) -> dict[str, np.ndarray]:
        return {n: self.folder.arrays[n] for n in ("centroids", "tables", "codes", "owners")}

    def grown(self, change: Change, vectors: Vectors, room: int | None) -> State:
        state = self._state()
        codes, owners = _coded(state, vectors, self.recipe.metric)
        both = {"codes": codes, "owners": owners}
        return state | {n: np.concatenate([state[n], new]) for n, new in both.items()}, {}

    def shrunk(self, change: Change, keep: np.ndarray) -> State:
        state = self._state()
        return state | {n: state[n][keep] for n in ("codes", "owners")}, {}
