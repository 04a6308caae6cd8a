"""RepCONC: code books that are learned, with the encoder where there is one, and inverted lists over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdall.errors import BadInput
from holdall.method import Paper, knob
from holdall.vectors.base import VectorIndex
from holdall.vectors.given import Given
from holdall.vectors.metrics import ready

if TYPE_CHECKING:
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.repconc_joint import Joint, Trained
    from holdall.vectors.repconc_lists import CodeLists
    from holdall.vectors.repconc_tables import Tables

_ROTATIONS = ("tried", "opq", "none")


@dataclass(frozen=True, kw_only=True)
class RepCONC(VectorIndex):
    """Keeps each vector as some bytes in memory, by code books learned from it, or together with your encoder.

    `build` learns from the vectors alone: each part of a vector is the sum of two entries, found together, which loses
    half of what product codes of the same bytes lose. `train` learns a torch encoder and the code books together from
    pairs of a query and its document, every code used alike: then an index of 8 or 16 bytes a document ranks nearly as
    the encoder's own vectors do. What it tells are estimates; where memory holds the vectors, other methods are exact.

    Shapes:
        codes uint8 [N, parts]; entries [G, L, K, W], G parts of W numbers, L entries added; a rotation [G W, D].
    Cost:
        N parts bytes, 4 N for the rows of lists, N more for l2 where two entries are added; entries, centroids and the
        rotation. A query compares with all centroids and sums `parts` numbers for each code in its lists.
    Knobs:
        metric: l2, cosine or ip. parts: bytes of a code (None: what fits, 32 without a budget). layers: entries that
        are added, 2 or the paper's 1; an odd number of parts has 1. entries of a table (None: what fits, up to 256).
        rotation: opq, none, or tried: what finds more of vectors that are held out. rounds of learning. residual: codes
        are of what is left beside a list's centroid (paper: no). lists (None: four times the root of N; paper: 5,000).
        probes: share of the lists that a query reads. sample: vectors that are learned from. seed.
    Differs from the paper:
        where vectors come without an encoder two entries are added in each part, and codes are of what is left beside
        a list's centroid (`residual`); with one it is the paper's product codes of whole vectors. Codes are made to be
        used alike by a limit to each behind Sinkhorn's rounds, not by the greatest share alone, which leaves them a
        little uneven (`parts.transport.capped`). Centroids of lists are of the vectors. A condition (`where`) is
        answered from all lists. What else `train` does otherwise stands in `repconc_train`.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors import RepCONC
        >>> x = np.random.default_rng(0).normal(size=(2000, 16)).astype("float32")
        >>> with RepCONC(parts=16, rounds=2, probes=0.5).build(x) as index:
        ...     float((index.search(x[:100], k=10).ids == np.arange(100)[:, None]).any(1).mean()) > 0.95
        True

    Paper: 083, Zhan et al., Learning Discrete Representations via Constrained Clustering for Effective and Efficient
        Dense Retrieval, WSDM 2022
    Test: tests/vectors/test_repconc.py
    """

    name: ClassVar[str] = "repconc"
    estimates: ClassVar[bool] = True
    brief: ClassVar[Mapping[str, Any]] = {"parts": 8, "rounds": 2, "lists": 20, "probes": 0.5, "entries": 64}
    paper: ClassVar[Paper] = Paper(
        83, "Learning Discrete Representations via Constrained Clustering for Effective and Efficient Dense Retrieval",
        "Zhan, Mao, Liu, Guo, Zhang, Ma; WSDM 2022", "https://arxiv.org/abs/2110.05789",
    )  # fmt: skip

    parts: int | None = knob(None, "bytes of a code; None: what fits, 32 without a budget", unit="B", other=4)
    layers: int = knob(2, "entries that are added in each part, 1 or 2", paper=1, other=1)
    entries: int | None = knob(None, "of each table; None: what fits, up to 256", paper=256, other=16)
    rotation: str = knob("tried", "before vectors are cut: opq, none, or tried", paper="opq", other="none")
    residual: bool = knob(
        True, "codes are of what is left beside a list's centroid", paper=False, other=False
    )
    rounds: int = knob(8, "of learning the tables", other=5)
    lists: int | None = knob(None, "inverted lists; None: four times the root of N", paper=5000, other=5)
    probes: float = knob(0.1, "share of the lists that a query reads", other=0.05)
    sample: int = knob(65_536, "vectors that are learned from", unit="vectors", other=300)
    seed: int = knob(0, "of the sample and of k-means", other=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (self.sample, self.rounds, self.parts or 1, self.lists or 1)
        if any(type(n) is not int or n < 1 for n in counts) or self.layers not in (1, 2):
            raise BadInput("repconc", str(self.to_dict()), "sample, rounds, parts, lists >= 1, layers 1 or 2")
        if self.entries not in (None, 4, 8, 16, 32, 64, 128, 256):
            raise BadInput("entries", self.entries, "a power of two from 4 to 256")
        if self.rotation not in _ROTATIONS:
            raise BadInput("rotation", self.rotation, f"one of {', '.join(_ROTATIONS)}")
        if not isinstance(self.probes, int | float) or not 0 < self.probes <= 1:
            raise BadInput("probes", self.probes, "a share of the lists, above 0 and at most 1")

    def made(self, change: Change, given: Given) -> None:
        from holdall.vectors.repconc_fit import chosen, fitting

        plan = fitting(self, given)
        sample = self.sampled(given)
        self.filled(change, given, *chosen(self, plan, sample), sample)

    def filled(
        self, change: Change, given: Given, tables: Tables, centroids: np.ndarray | None, sample: np.ndarray
    ) -> None:
        """Fill a new folder with codes of these tables. centroids: of lists, None where there are none. sample: some of
        the vectors; all three as `sampled` has them."""
        from holdall.vectors.repconc_lists import coded, grid

        state = {"entries": tables.entries}
        if tables.rotation is not None:
            state["rotation"] = tables.rotation
        if tables.coding is not None:
            state["coding"] = tables.coding
        if centroids is not None:
            state["centroids"] = tables.ready(centroids)
        if self.metric == "l2" and (
            tables.entries.shape[1] == 2 or (self.residual and centroids is not None)
        ):
            state["grid"] = grid(state, tables, sample, self)
        given.commit(change, self, (state | coded(state, tables, given.vectors, self), {}))

    def sampled(self, given: Given) -> np.ndarray:
        draw = np.random.default_rng(self.seed)
        rows = np.sort(draw.permutation(given.vectors.count)[: self.sample])
        return ready(given.vectors.take(rows), self.metric)

    def shelf(self, folder: Folder, limit: int | None) -> CodeLists:
        from holdall.vectors.repconc_lists import CodeLists

        return CodeLists(self, folder, limit)

    def train(
        self, encoder: Any, queries: Any, documents: Any, pairs: Any, how: Joint | None = None, **more: Any
    ) -> Trained:
        """An encoder (torch) and code books that were learned together, from pairs of a query and its document.

        encoder: a trained module, which gets batches of queries and of documents, and is not changed; or two of them
        (query encoder, document encoder). queries, documents: tensors, dicts of tensors or lists. pairs: int [P, 2],
        rows of these. how: `repconc_joint.Joint`, how long and how; `more` goes there too. Vectors are compared by this
        recipe's metric, codes have `parts` bytes.
        """
        from holdall.vectors.repconc_joint import Joint
        from holdall.vectors.repconc_train import trained

        how = how or Joint()
        return trained(self, encoder, queries, documents, pairs, how.but(**more))
