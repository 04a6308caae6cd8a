"""A vector store for LangChain over an index: texts and their metadata stand beside the vectors, in one folder.

`VectorStore(embedding, url)` opens what is at `url`, or begins there with the first texts. Conditions are DuckDB's, on
the columns `text` and `metadata` (JSON): `filter="metadata->>'lang' = 'en'"`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore as Base

from holdall.errors import BadInput
from holdall.files import local_path
from holdall.vectors import SPANN
from holdall.vectors.folder import STATE


class VectorStore(Base):
    """method: of the room vectors; None: SPANN by cosine. budget: what searching may hold. recall: the share of the
    nearest to find, as it was measured when the index was built; None: by the method's knobs."""

    def __init__(
        self, embedding: Embeddings, url: str, method: Any = None, budget: Any = None, recall: Any = None
    ):
        self.embedding, self._url, self._budget, self._recall = embedding, url, budget, recall
        self._recipe, self._index = method or SPANN(metric="cosine"), None
        if (local_path(url) / STATE).exists():
            self._index = self._recipe.open(url, budget)
            held = self._index.attributes
            if held is None or {"text", "metadata"} - set(held.table.column_names):
                self._index.close()
                raise BadInput("index", url, "one with the columns text and metadata, made by this store")

    @property
    def embeddings(self) -> Embeddings:
        return self.embedding

    def add_texts(
        self, texts: Iterable[str], metadatas: Any = None, *, ids: Any = None, **_: Any
    ) -> list[str]:
        """Ids that are there are replaced."""
        texts = list(texts)
        names = [n or str(uuid.uuid4()) for n in (ids or [""] * len(texts))]
        told = [json.dumps(m, ensure_ascii=False) for m in metadatas or [{}] * len(texts)]
        if not texts:
            return []
        vectors = np.array(self.embedding.embed_documents(texts), np.float32)
        table = {"text": texts, "metadata": told}
        if self._index is None:
            self._index = self._recipe.build(vectors, self._budget, names, attributes=table, to=self._url)
        else:
            self._index.remove(names)
            self._index.add(vectors, names, table)
        return names

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool | None:
        return None if self._index is None or not ids else self._index.remove(ids) > 0

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        if self._index is None:
            return []
        rows, held = self._index.ids.rows(list(ids)), self._index.attributes
        assert held is not None  # __init__ refuses others
        table = held.table
        there = [(n, table.slice(int(r), 1).to_pylist()[0]) for n, r in zip(ids, rows, strict=True) if r >= 0]
        return [Document(f["text"], metadata=json.loads(f["metadata"]), id=n) for n, f in there]

    def similarity_search_with_score(
        self, query: str | list[float], k: int = 4, filter: str | None = None
    ) -> list[tuple[Document, float]]:
        """With the distance: 1 - cosine, Euclidean, or minus the inner product. query: a text, or its vector."""
        if self._index is None or not self._index.count:
            return []
        asked = self.embedding.embed_query(query) if isinstance(query, str) else query
        hits = self._index.search(asked, min(k, self._index.count), filter, self._recall)
        found = self.get_by_ids([n for n in hits.ids[0].tolist() if n])
        return list(zip(found, hits.distances[0].tolist(), strict=False))

    def similarity_search(self, query: Any, k: int = 4, **more: Any) -> list[Document]:
        return [found for found, _ in self.similarity_search_with_score(query, k, **more)]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **more: Any) -> list[Document]:
        return self.similarity_search(embedding, k, **more)

    @classmethod
    def from_texts(  # type: ignore[override]
        cls, texts: list[str], embedding: Embeddings, metadatas: Any = None, *, url: str, ids: Any = None, **how: Any
    ) -> Self:  # fmt: skip
        store = cls(embedding, url, **how)
        store.add_texts(texts, metadatas, ids=ids)
        return store
