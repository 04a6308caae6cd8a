"""HPC-ColPali: documents of many vectors as sets of centroids, compared by late interaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput
from holdall.method import Paper, knob
from holdall.vectors import documents
from holdall.vectors.base import VectorIndex
from holdall.vectors.late_codes import Codebook, coded
from holdall.vectors.late_plan import planned
from holdall.vectors.late_shelf import Pages, state

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.given import Given
    from holdall.vectors.source import Vectors

_CHOICES = {
    "scoring": ("table", "symmetric", "hamming"),
    "labels": ("swapped", "tree", "raw"),
    "salience": ("auto", "given", "idf", "norm"),
}


@dataclass(frozen=True, kw_only=True)
class HPCColPali(VectorIndex):
    """Finds pages and passages by many vectors each (ColPali, ColBERT), of which a byte or less each is kept.

    A document becomes the set of its vectors' nearest centroids: 64 bytes for any number of vectors and 512
    centroids, less where it has few. A query's score is the sum, over its vectors, of the best centroid in the set,
    and all documents are scored. Product codes of each vector (`subspaces`) then order the first of them more truly.
    For documents of some ten to a thousand vectors. Poor where single vectors are all there is (they get product
    codes), where documents are so long that all have most centroids, and with pruning (docs/vectors-colpali.md).

    Shapes:
        documents [M, D] each, as `Documents`, a list of arrays, an array [N, M, D] or files of them; single vectors
        [N, D]; queries a list of arrays [n, D], an array [Q, n, D], or [Q, D]. Sets [N] of up to K codes, packed or
        as bits; product codes [M, m].
    Cost:
        K D 4 bytes of centroids, and for a document the smaller of K / 8 bytes and log2 K bits a different code; with
        product codes m bytes a vector and 1 kB D of tables. A query of n vectors takes n K D multiplications, then
        some n additions a document, and n M m additions for each candidate that has product codes.
    Knobs:
        metric: cosine or ip. centroids: a power of two to 512 (paper: 128, 256, 512; None: 512, or the most that
        fits). subspaces: product codes of a vector, 0 for none (None: none; up to 32 for single vectors, or where
        they fit). candidates: documents that are scored again by all that is kept of them. probes: centroids that
        each vector of a query looks for at first (None: all). scoring: table (vectors of the query with centroids),
        symmetric (the query's centroids, as the paper has it) or hamming (bits of their numbers). labels, for
        hamming: swapped and tree give centroids numbers whose bits mean something, raw are those of k-means.
        keep_docs, keep_query: share of vectors that is kept by salience (paper: 0.4 to 0.8). salience: given with
        documents and queries, idf (rare centroids), norm, or auto (given where it is, else idf). sinks: vectors at
        the beginning that are dropped. patches: vectors that lie behind each other in a row of plain vectors.
        sample: vectors to learn from. seed.
    Differs from the paper:
        sets of codes instead of a code for each vector, with equal scores; asymmetric by default. Bits for hamming
        are made from the centroids' geometry. Candidates come from the sets and not from a graph. Padding (zeros,
        or salience -inf) is dropped. Answers from found pages (its section on RAG) are the caller's:
        docs/vectors-colpali.md has the five lines.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors import HPCColPali
        >>> draw = np.random.default_rng(0)
        >>> pages = [draw.normal(size=(draw.integers(20, 60), 32)).astype("float32") for _ in range(200)]
        >>> with HPCColPali().build(pages) as index:
        ...     index.search([pages[7][:12], pages[9][5:15]], k=1).ids.tolist()
        [[7], [9]]

    Paper: 010, Bach and Minh, Hierarchical Patch Compression for ColPali, KDIR 2025
    Test: tests/vectors/test_hpc_colpali.py
    """

    name: ClassVar[str] = "hpc_colpali"
    estimates: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("cosine", "ip")
    brief: ClassVar[Mapping[str, Any]] = {"sample": 500}
    paper: ClassVar[Paper] = Paper(
        10, "Hierarchical Patch Compression for ColPali: Efficient Multi-Vector Document Retrieval",
        "Bach, Minh; KDIR 2025", "https://arxiv.org/abs/2506.21601",
    )  # fmt: skip

    metric: str = knob("cosine", "cosine or ip (inner product)", other="ip")
    centroids: int | None = knob(
        None, "of k-means, a power of two to 512; None: 512, or the most that fits", other=64
    )
    subspaces: int | None = knob(None, "product codes of a vector; 0: none; None: what fits", other=4)
    candidates: int = knob(200, "scored again by all that is kept of them", unit="documents", other=15)
    probes: int | None = knob(None, "centroids that a vector of a query looks for at first", other=2)
    scoring: str = knob("table", "table, symmetric or hamming", other="symmetric")
    labels: str = knob("swapped", "for hamming: swapped, tree or raw", other="raw", at={"scoring": "hamming"})
    keep_docs: float = knob(1.0, "share of a document's vectors", other=0.4, at={"patches": 8})
    keep_query: float = knob(1.0, "share of a query's vectors", other=0.6, at={"patches": 8})
    salience: str = knob(
        "auto", "auto, given, idf or norm", other="norm", at={"patches": 8, "keep_docs": 0.4}
    )
    sinks: int = knob(
        0, "vectors at the beginning that are dropped", unit="vectors", other=1, at={"patches": 8}
    )
    patches: int = knob(1, "vectors that a row holds", unit="vectors", other=8)
    sample: int = knob(65_536, "vectors to learn from", unit="vectors", other=300)
    seed: int = knob(0, "of the sample and of k-means", other=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadInput(name, getattr(self, name), f"one of {', '.join(choices)}")
        k = self.centroids
        if k is not None and (type(k) is not int or not 2 <= k <= 512 or k & (k - 1)):
            raise BadInput("centroids", k, "2, 4, 8, ... 512")
        least = {"candidates": 1, "probes": 1, "patches": 1, "sample": 1, "sinks": 0, "subspaces": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < low):
                raise BadInput(name, value, f"a whole number from {low} on")
        for name in ("keep_docs", "keep_query"):
            if not 0 < getattr(self, name) <= 1:
                raise BadInput(name, getattr(self, name), "a share above 0, at most 1")
        if self.scoring == "hamming" and self.subspaces:
            raise BadInput(
                "subspaces", self.subspaces, "0 or none with --scoring hamming, which compares centroids"
            )

    def prune_docs(self, share: float) -> HPCColPali:
        """The same, of documents that keep that share of their vectors."""
        return self.but(keep_docs=share)

    def prune_query(self, share: float) -> HPCColPali:
        """The same, of queries that keep that share of their vectors."""
        return self.but(keep_query=share)

    def source(self, given: Any, name: str | None = None) -> Vectors:
        return documents.source(given, name) or super().source(given, name)

    def made(self, change: Change, given: Given) -> None:
        book = Codebook.learn(self, given.vectors, planned(self, given))
        book, sets, fine = coded(self, book, given.vectors, True)
        given.commit(change, self, state(book, sets, fine))

    def shelf(self, folder: Folder, limit: int | None) -> Pages:
        return Pages(self, folder, limit)
