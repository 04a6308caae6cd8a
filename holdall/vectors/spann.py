"""SPANN: heads in memory, lists of vectors on disk, and a few reads for a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput
from holdall.method import Paper, knob
from holdall.parts.workers import known
from holdall.vectors.base import VectorIndex

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.given import Given
    from holdall.vectors.shelf import Shelf


_LISTS: Mapping[str, Any] = {"layout": "lists"}
_SHORT = 8  # numbers for each byte of a code, at most, for codes to be taken by themselves


@dataclass(frozen=True, kw_only=True)
class SPANN(VectorIndex):
    """Searches more vectors than memory holds: heads in memory, vectors on disk, a few reads for a query.

    Heads are evenly spread, and the vectors near to each are its list. In the paper's layout a vector is in the lists
    of up to `replicas` near heads, so that few lists, each read at once, hold a query's neighbours. In the other one,
    taken where memory has room, a code of each vector is in memory, and only the vectors that look nearest by their
    codes are read: it takes fewer bytes of each query and a fifth of the disk, and more reads. Distances are true.
    Poor for conditions that hold for few vectors.

    Shapes:
        heads uint8 [H, D] in memory; lists of int32 row numbers and vectors [n, D], or codes uint8 [N, M] in memory
        and vectors [N, D] in the order of lists, on disk, in the smallest type that holds all numbers exactly.
    Cost:
        in memory H (D + 28) bytes and 4 D sqrt(H), and with codes N (M + 6); on disk 3 to 7 times the vectors in lists,
        once with codes. Building holds `build_bytes` of vectors and goes on after it was killed.
    Knobs:
        metric: l2, cosine or ip; layout (None: codes where memory has room for a byte for each 8 numbers, else lists);
        of lists ratio of heads, at most (fewer where the budget says so), replicas, apart and slack of closure
        assignment, list_bytes, the most of a list, prune, what a query does not read, and branches and leaf of the tree
        that heads are chosen from; of codes cells, how many lists, code_bytes and rerank, how many vectors a query
        reads; probes, lists that a query looks into; build_bytes, jobs and engine, by which it is built; seed.
    Differs from the paper:
        Heads are a byte a number in memory, for finding lists only, and stand in their lists as all vectors do. They
        are searched in groups (faiss), not in a graph. Balance is weighed by a moving average of sizes, and the
        weight of three that gives the most even clusters is kept. Where lists are pruned, the nearest head counts as
        no nearer than heads are to vectors on average: a query on a head would read one list. 16 lists are read at
        most by default, not 64; where a condition leaves too few, four times as many. Cosine is Euclidean distance of
        vectors of length one, and inner products that of vectors with one number more. Updates split lists and fill
        those with new heads from their neighbours, as the later SPFresh does, and do closure again where much has
        gone. Codes are our own: heads are then middles (k-means), each vector is in one list, and there is no closure.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors import SPANN
        >>> x = np.random.default_rng(0).normal(size=(2000, 12)).astype("float32")
        >>> with SPANN().build(x, "10%") as index:
        ...     hits = index.search(x[:50], k=1)
        >>> float((hits.ids[:, 0] == np.arange(50)).mean()) > 0.95
        True

    Paper: Chen et al., SPANN: Highly-efficient Billion-scale Approximate Nearest Neighbor Search.
    Test: tests/vectors/test_spann.py
    """

    name: ClassVar[str] = "spann"
    gives_vectors: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        24,
        "SPANN: Highly-efficient Billion-scale Approximate Nearest Neighbor Search",
        "Chen, Zhao, Wang, Li, Liu, Li, Yang, Wang (NeurIPS 2021)",
        "https://arxiv.org/abs/2111.08566",
    )

    layout: str | None = knob(
        None, "lists of vectors on disk, or codes in memory; None: codes where memory has room", other="lists"
    )
    ratio: float = knob(0.16, "share of the vectors that are heads, at most", other=0.05, at=_LISTS)
    replicas: int = knob(8, "lists that a vector goes into, at most", other=1, at=_LISTS)
    apart: bool = knob(
        True, "no list whose head lies behind another one's (RNG rule)", other=False, at=_LISTS
    )
    slack: float = knob(
        10.0, "how much farther than the nearest a list's head may be, squared", other=0.1, at=_LISTS
    )
    list_bytes: int | None = knob(
        None, "most bytes of a list; None: 12 KiB of byte vectors, 48 KiB of others", unit="B", other=2000, at=_LISTS
    )  # fmt: skip
    probes: int | None = knob(
        None, "lists that a query looks into, at most; None: 16 of vectors, 64 of codes", paper=64, other=2
    )
    prune: float = knob(
        7.0, "how much farther than the nearest a read list's head may be, squared", other=0.05, at=_LISTS
    )
    branches: int = knob(32, "sets that a set is split into", other=4, at=_LISTS)
    leaf: int = knob(8, "vectors that are split no more", other=40, at=_LISTS)
    cells: int | None = knob(None, "lists of codes, at most; None: four times the root of N", other=30)
    code_bytes: int | None = knob(
        None,
        "bytes of a code; None: what fits, up to half a number's count, a quarter without a budget",
        other=4,
    )
    rerank: float | None = knob(
        None,
        "vectors that are read for each that is wanted; None: 2 from disk, 8 from memory",
        other=1.2,
    )
    build_bytes: int = knob(
        256 << 20, "of vectors that a worker holds while building", unit="B", other=100_000, at=_LISTS
    )
    jobs: int = knob(1, "workers that build", other=2, changes="nothing")
    engine: str = knob("processes", "where workers are: processes or ray", other="ray", changes="nothing")
    seed: int = knob(0, "of clustering", other=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in (None, "lists", "codes"):
            raise BadInput("layout", str(self.layout), "lists or codes")
        least = min(
            self.probes or 1, self.replicas, self.code_bytes or 1, self.cells or 1, self.leaf, self.jobs
        )
        if (
            least < 1
            or self.branches < 2
            or (self.rerank is not None and self.rerank < 1)
            or not 0 < self.ratio <= 1
            or self.build_bytes < 1
        ):
            raise BadInput(
                "spann",
                str(self.to_dict()),
                "counts and rerank >= 1, branches >= 2, ratio above 0 and up to 1",
            )
        known(self.engine)
        if self.replicas > 255:
            raise BadInput("replicas", self.replicas, "at most 255")

    def made(self, change: Change, given: Given) -> None:
        from holdall.vectors import spann_codes_build, spann_lists
        from holdall.vectors.spann_build import Survey

        found = None if self.layout == "lists" else spann_codes_build.fitting(self, given)
        if found is not None and (self.layout or found[1] * _SHORT >= given.vectors.dim):
            survey = Survey.of(self, given.vectors)
            given.commit(change, self, spann_codes_build.built(self, change, given, survey, *found))
        else:
            given.commit(change, self, spann_lists.built(self, change, given))

    def shelf(self, folder: Folder, limit: int | None) -> Shelf:
        from holdall.vectors import spann_codes, spann_lists

        if "entries" in folder.meta:
            return spann_codes.Coded(self, folder, limit)
        return spann_lists.Postings(self, folder, limit)
