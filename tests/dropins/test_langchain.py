"""LangChain's vector store over an index: what it is asked to do by LangChain itself, on a folder that lasts."""

import hashlib

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from holdall.dropins.langchain import VectorStore
from holdall.errors import BadInput
from holdall.vectors import SPANN

TEXTS = ["a red apple", "a green apple", "a fast train", "a slow train", "the red train"]


class Words(Embeddings):
    """Each word is a direction of its own: near texts share words."""

    def embed_query(self, text):
        made = np.zeros(64)
        for word in text.split():
            made += np.random.default_rng(int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)).normal(
                size=64
            )
        return made.tolist()

    def embed_documents(self, texts):
        return [self.embed_query(t) for t in texts]


def test_texts_are_found_kept_and_forgotten(tmp_path):
    url = str(tmp_path / "v")
    store = VectorStore.from_texts(TEXTS, Words(), [{"n": i} for i in range(5)], ids=list("abcde"), url=url)
    found = store.similarity_search_with_score("red apple", k=2)
    assert found[0][0].page_content == "a red apple" and found[0][1] < found[1][1] < 1
    assert found[0][0] == Document(page_content="a red apple", metadata={"n": 0}, id="a")
    assert [d.id for d in store.as_retriever(search_kwargs={"k": 1}).invoke("slow train")] == ["d"]
    new = store.add_documents([Document(page_content="a blue boat", metadata={"n": 9})])
    assert (
        store.add_texts(["a red pear"], ids=["a"]) == ["a"]
        and store.delete(["b"])
        and not store.delete(["b"])
    )
    store._index.close()
    again = VectorStore(Words(), url)
    assert [d.page_content for d in again.get_by_ids(["a", "b", *new])] == ["a red pear", "a blue boat"]
    assert [d.id for d in again.similarity_search("blue boat", k=1)] == new
    assert [d.id for d in again.similarity_search_by_vector(Words().embed_query("fast train"), k=1)] == ["c"]
    only = again.similarity_search("red", k=9, filter="text LIKE '%train%'")
    assert {d.id for d in only} == {"c", "d", "e"}
    again._index.close()


def test_an_empty_store_finds_nothing_and_a_plain_index_is_refused(tmp_path):
    store = VectorStore(Words(), str(tmp_path / "new"))
    assert (
        store.similarity_search("anything") == []
        and store.get_by_ids(["a"]) == []
        and store.add_texts([]) == []
    )
    SPANN(metric="cosine").build(np.eye(8, dtype="f4"), to=str(tmp_path / "v")).close()
    with pytest.raises(BadInput, match="text and metadata"):
        VectorStore(Words(), str(tmp_path / "v"))
