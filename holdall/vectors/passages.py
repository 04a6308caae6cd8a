"""What late interaction is measured on: passages of text as the states of their tokens in a language model.

For each there is a query, one of its sentences without some of its words. Needs torch and SmolLM2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.optional import lazy
from holdall.vectors.documents import Documents
from holdall.vectors.source import Vectors

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_START = 1  # the token before all others: attention sinks into it, and its state says nothing
_DROPPED = 0.3  # of a sentence's words
_LEAST = 8  # words of a sentence


@dataclass(frozen=True)
class Passages:
    """Query i asks for document i. Salience: attention that a token gets, mean over heads and the tokens that see it.
    others: documents that no query asks for, where there are any."""

    documents: Documents
    queries: Documents
    others: Documents | None = None


@dataclass(frozen=True)
class States:
    """Of tokens in one layer: x float32 [R, D], attention [R], where each text begins."""

    x: np.ndarray
    attention: np.ndarray
    offsets: np.ndarray


@cache
def _model() -> tuple[Any, Any]:
    from holdall.weights.model import Model

    found = Model.read("smollm2")
    net = found.build()
    net.config._attn_implementation = "eager"  # which tells its weights
    net.model.norm = torch.nn.Identity()
    return found.tokenizer(), net.model


def states(texts: Sequence[str], layer: int, longest: int) -> States:
    """What SmolLM2 makes of the first tokens of each text, behind so many layers."""
    tokenizer, net = _model()
    blocks, parts, told = net.layers, [], []
    net.layers = blocks[:layer]
    try:
        for text in texts:
            ids = [_START, *tokenizer.encode(text)[:longest]]
            with torch.no_grad():
                found = net(torch.tensor([ids]), output_attentions=True, use_cache=False)
            got = found.attentions[-1][0].mean(0)  # [T, T], rows see columns
            seen = torch.arange(len(ids), 0, -1)
            parts.append(found.last_hidden_state[0, 1:].float().numpy())
            told.append((got.sum(0) / seen)[1:].float().numpy())
    finally:
        net.layers = blocks
    return States(np.concatenate(parts), np.concatenate(told), np.cumsum([0, *map(len, parts)]))


def queries(texts: Sequence[str], longest: int, seed: int = 0) -> list[str]:
    """Of each text a sentence of its first `longest` tokens, without three tenths of its words."""
    tokenizer, _ = _model()
    draw, found = np.random.default_rng(seed), []
    for text in texts:
        head = tokenizer.decode(tokenizer.encode(text)[:longest])
        some = [s for s in re.split(r"(?<=[.!?]) +", head) if len(s.split()) >= _LEAST] or [head]
        words = some[draw.integers(len(some))].split()
        kept = np.sort(draw.permutation(len(words))[: max(1, round((1 - _DROPPED) * len(words)))])
        found.append(" ".join(words[i] for i in kept))
    return found


def reduced(documents: States, asked: States, others: States | None, dim: int) -> Passages:
    """Of length one, without the documents' mean, in their first principal directions, of length one again."""
    mean = _unit(documents.x).mean(0)
    middle = _unit(documents.x) - mean
    _, directions = np.linalg.eigh(middle.T @ middle)
    turn = directions[:, ::-1][:, :dim].astype(np.float32)

    def made(s: States) -> Documents:
        return Documents(Vectors.of(_unit((_unit(s.x) - mean) @ turn)), s.offsets, s.attention)

    return Passages(made(documents), made(asked), None if others is None else made(others))


def passages(
    texts: Sequence[str], others: Sequence[str] = (), *, layer: int = 10, dim: int = 128, longest: int = 128
) -> Passages:
    found = states(texts, layer, longest)
    asked = states(queries(texts, longest), layer, longest)
    return reduced(found, asked, states(others, layer, longest) if others else None, dim)


def paragraphs(text: str, least: int = 300) -> Iterator[str]:
    """Those of at least so many letters, headings (= so =) left out."""
    for part in re.split(r"\n+ *\n*", text):
        bare = " ".join(part.split())
        if len(bare) >= least and not bare.startswith("="):
            yield bare


def _unit(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-9)


def ranks(scores: np.ndarray) -> np.ndarray:
    """int64 [Q]: how many documents of [Q, N] come before query i's own, number i; equals of lower numbers do."""
    rows = np.arange(len(scores))
    own = scores[rows, rows][:, None]
    before = np.arange(scores.shape[1]) < rows[:, None]
    return np.asarray(((scores > own) | ((scores == own) & before)).sum(1))


def max_sim(documents: Documents, asked: Documents) -> np.ndarray:
    """float32 [Q, N], by the definition: the sum over a query's vectors of the greatest product with a document's."""
    x, q = documents.ready("ip"), asked.ready("ip")
    rows = [
        np.maximum.reduceat(x @ q[a:b].T, documents.offsets[:-1], axis=0).sum(1)
        for a, b in zip(asked.offsets, asked.offsets[1:], strict=False)
    ]
    return np.stack(rows)
