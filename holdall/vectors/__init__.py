"""vectors: more embeddings than memory.

A user holds vectors, millions of them perhaps, and asks for those nearest to a query. `build` makes an index in a
folder; what it holds in memory when it is open stays within the budget, and the rest is read from disk, a few pages a
query. Indexes take more vectors and forget some, and a process that is killed leaves the last committed state.
"""

from holdall.kinds import Hits
from holdall.vectors.curator import Curator
from holdall.vectors.documents import Documents
from holdall.vectors.hpc_colpali import HPCColPali
from holdall.vectors.ivfpq import IVFPQ
from holdall.vectors.none import Nothing
from holdall.vectors.random import Random
from holdall.vectors.repconc import RepCONC
from holdall.vectors.reranking import rerank
from holdall.vectors.source import Vectors
from holdall.vectors.spann import SPANN
from holdall.vectors.superglobal import SuperGlobal

__all__ = [
    "IVFPQ",
    "SPANN",
    "Curator",
    "Documents",
    "HPCColPali",
    "Hits",
    "Nothing",
    "Random",
    "RepCONC",
    "SuperGlobal",
    "Vectors",
    "rerank",
]
