"""Curator: one index that many tenants share, in which each finds its own vectors and no others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.method import Paper, knob
from holdall.vectors.base import VectorIndex

if TYPE_CHECKING:
    from holdall.vectors.curator_shelf import Tenants
    from holdall.vectors.folder import Change, Folder
    from holdall.vectors.given import Given


@dataclass(frozen=True, kw_only=True)
class Curator(VectorIndex):
    """Serves many tenants from one index in memory: each searches its own vectors, fast, and never sees another's.

    A vector is held once, however many tenants may find it; a tenant costs four bytes for each vector it has. Small
    tenants are compared vector by vector, large ones through the part of a shared tree in which they are. `grant` and
    `revoke` change who finds what, `search(tenant=...)` is for one of them, `search(tenants="acme AND NOT trial")` for
    a condition, and without either all vectors are searched. All vectors are in memory: for more than that, none of
    this helps.

    Shapes:
        vectors [N, D] in their own type, centroids [V, D] in the same; a tenant's rows int32 [n].
    Cost:
        4 bytes a vector and 4 for each grant, N / 60 centroids, two bytes for each tenant of a node. A query compares
        with max(`shortlist`, `probes` root n) of a tenant's n vectors, or with all where these are fewer. A change
        writes lists and tree to disk, not the vectors.
    Knobs:
        metric: l2, cosine or ip; branches (paper 16) and leaf (128), children of a node and vectors of a leaf at most;
        shortlist, rows of a list above the leaves (128); probes, rows that a query gathers, for the root of what the
        tenant has; boost, mean distances that a spread-out node is taken to be nearer (.2); prune, how much farther
        than the nearest list another may be (paper 1.6); bits of a filter for each tenant (10: one error in a
        hundred); sample, vectors that the tree learns from; seed.
    Differs from the paper:
        A tenant's lists stand side by side in the order of leaves, so that pushing one down or merging some up moves
        nothing but their borders. Whether a tenant is below a node is asked of its own lists when it is granted a
        vector, which is exact; filters serve search, where a false positive ends at a leaf without a list. Filters
        have a power of two of bits, as many as their tenants need. Nodes are split into as few children as fill leaves
        to six tenths, and the tree is made again when a leaf has eight times what it was made for. Rows to gather grow
        with the root of what a tenant has, and `prune` is added to scores, which may be negative, as a multiple of the
        best one's size. Everyone is a tenant, too. Inner products are clustered by distance, cosines by direction.
    Example:
        >>> import numpy as np
        >>> from holdall.vectors import Curator
        >>> x = np.random.default_rng(0).normal(size=(500, 16)).astype("float32")
        >>> with Curator().build(x, tenants={"acme": range(100), "umbrella": range(50, 200)}) as index:
        ...     granted = index.grant([300], "acme"), index.revoke([7], "acme")
        ...     hits = index.search(x[[7, 300]], k=1, tenant="acme")
        ...     both = index.search(x[60], k=1, tenants="acme AND umbrella")
        >>> bool(hits.ids[0, 0] != 7), int(hits.ids[1, 0]), both.ids.tolist(), granted
        (True, 300, [[60]], (1, 1))

    Paper: Jin et al., Curator: Efficient Indexing for Multi-Tenant Vector Databases.
    Test: tests/vectors/test_curator.py
    """

    name: ClassVar[str] = "curator"
    gives_vectors: ClassVar[bool] = True
    tenanted: ClassVar[bool] = True  # what the command line asks before it tells of tenants
    skips: ClassVar[Mapping[str, str]] = {
        "check_beats_the_floors": "it holds all vectors, and a random share of as many bytes is all of them, too",
    }
    paper: ClassVar[Paper] = Paper(
        34,
        "Curator: Efficient Indexing for Multi-Tenant Vector Databases",
        "Jin, Wu, Hu, Maggs, Zhang, Zhuo (2024)",
        "https://arxiv.org/abs/2401.07119",
    )

    branches: int = knob(16, "children of a node, at most", other=3)
    leaf: int = knob(128, "vectors of a leaf, at most, when the tree is made", other=20)
    shortlist: int = knob(128, "rows of a list above the leaves, at most", other=30, at={"leaf": 20})
    probes: float = knob(28.0, "rows that a query gathers, for the root of what a tenant has", other=2.0)
    boost: float = knob(0.2, "mean distances to a centroid that its node is taken to be nearer", other=1.0)
    prune: float = knob(2.0, "how much farther than the nearest list another may be", paper=1.6, other=1.0)
    bits: float = knob(10.0, "of a node's filter for each of its tenants", unit="bits", other=200.0)
    sample: int = knob(262_144, "vectors that the tree learns from", unit="vectors", other=200)
    seed: int = knob(0, "of the sample and of k-means", other=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        least = min(self.leaf, self.shortlist, self.sample, self.branches - 1)
        fine = least >= 1 and min(self.probes, self.boost) >= 0 and self.prune >= 1 and 0 < self.bits <= 1000
        if not fine:
            wanted = (
                "leaf, shortlist, sample, prune >= 1, branches > 1, probes and boost >= 0, 0 < bits <= 1000"
            )
            raise BadInput("curator", str(self.to_dict()), wanted)

    def build(
        self,
        vectors: Any,
        budget: Spend = None,
        ids: Any = None,
        *,
        attributes: Any = None,
        tenants: Any = None,
        to: str | None = None,
    ) -> Tenants:
        """As every index. tenants: names (strings or whole numbers) to lists of ids; or a list with a name, a list of
        names, or None for each vector. A vector that nobody was granted is found without a tenant only."""
        from holdall.vectors.building import built
        from holdall.vectors.curator_shelf import made

        give = partial(made, self, tenants=tenants)
        return built(self, vectors, budget, ids, attributes, to, give)  # type: ignore[return-value]

    def made(self, change: Change, given: Given) -> None:
        from holdall.vectors.curator_shelf import made

        made(self, change, given, None)

    def shelf(self, folder: Folder, limit: int | None) -> Tenants:
        from holdall.vectors.curator_shelf import Tenants

        return Tenants(self, folder, limit)
