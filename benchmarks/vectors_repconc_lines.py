"""The card's corpus: paragraphs, queries that are sentences with words missing, and an encoder over TF-IDF and SVD."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from holdall.report import provenance

RESULTS = Path(__file__).resolve().parent / "results" / "vectors_repconc.json"
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
TEXTS, VECTORS = DATA / "text", DATA / "vectors"


@dataclass(frozen=True)
class Task:
    """documents [N, 256]; queries [Q, 256] and pairs (query, document) to learn from, `first` the encoder alone and
    then, other ones, encoder and codes; and queries to ask, with the document that each wants."""

    documents: Tensor
    first: Tensor
    queries: Tensor
    pairs: np.ndarray
    asked: Tensor
    wanted: np.ndarray


def paragraphs(words: int = 60) -> list[str]:
    """Of WikiText-2's two parts that are there, cut behind the sentence that reaches so many words; none twice."""
    found: dict[str, None] = {}
    for name in ("wikitext2-test.txt", "wikitext2-valid.txt"):
        for line in (TEXTS / name).read_text(encoding="utf-8").splitlines():
            if line.strip().startswith("="):
                continue
            passage = ""
            for part in re.split(r"(?<=[.;]) ", line.replace("<unk>", " ").strip()):
                passage = f"{passage} {part}".strip()
                if len(passage.split()) >= words:
                    found[passage], passage = None, ""
            if len(passage.split()) >= words // 3:
                found[passage] = None
    return list(found)


def sentence(text: str, draw: np.random.Generator, missing: float) -> str:
    parts = [s for s in re.split(r"(?<=[.;]) ", text) if len(s.split()) >= 8] or [text]
    words = np.array(parts[draw.integers(len(parts))].split())
    return " ".join(words[draw.random(len(words)) >= missing])


def task(texts: list[str], each: int, seed: int, missing: float = 0.4, dim: int = 256) -> Task:
    """Twice `each` queries of every text to learn from; queries to ask are drawn anew, of a third of the texts."""
    draw = np.random.default_rng(seed)
    one, two = (
        [(i, sentence(t, draw, missing)) for i, t in enumerate(texts) for _ in range(each)] for _ in range(2)
    )
    some = draw.permutation(len(texts))[: len(texts) // 3]
    ask = [(int(i), sentence(texts[i], draw, missing)) for i in some]
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english")
    thin = TruncatedSVD(dim, random_state=seed)
    documents = thin.fit_transform(words.fit_transform(texts))

    def turned(which: list[tuple[int, str]]) -> Tensor:
        return torch.tensor(thin.transform(words.transform([t for _, t in which])), dtype=torch.float32)

    rows = np.array([(q, i) for q, (i, _) in enumerate(two)])
    wanted = np.array([i for i, _ in ask])
    wide = torch.tensor(documents, dtype=torch.float32)
    return Task(wide, turned(one), turned(two), rows, turned(ask), wanted)


class Encoder(nn.Module):
    """256 -> 256 -> 128 beside a linear path, of length `scale`: products of vectors are then temperatures apart."""

    def __init__(self, dim: int = 256, out: int = 128, scale: float = 5.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, out))
        self.straight, self.scale = nn.Linear(dim, out, bias=False), scale

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.normalize(x, dim=-1)
        return self.scale * nn.functional.normalize(self.net(x) + self.straight(x), dim=-1)


def dense(
    encoder: nn.Module, data: Task, epochs: int, seed: int, batch: int = 512, rate: float = 1e-3
) -> nn.Module:
    """Contrastive training without codes."""
    draw, adam = torch.Generator().manual_seed(seed), torch.optim.AdamW(encoder.parameters(), rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.pairs), generator=draw).split(batch):
            own = torch.as_tensor(data.pairs)[rows, 1]
            score = encoder(data.first[rows]) @ encoder(data.documents[own]).T
            same = (own[:, None] == own) & ~torch.eye(len(own), dtype=torch.bool)
            loss = nn.functional.cross_entropy(score.masked_fill(same, -1e4), torch.arange(len(own)))
            adam.zero_grad()
            loss.backward()
            adam.step()
    return encoder


def reciprocal_rank(found: np.ndarray, wanted: np.ndarray) -> float:
    right = found == wanted[:, None]
    return float(np.where(right.any(1), 1 / (right.argmax(1) + 1), 0).mean())


def classics(data: Task, asked: np.ndarray, documents: np.ndarray, parts: int) -> dict[str, float]:
    """faiss on the vectors of the encoder that nobody trained further, `parts` bytes each."""
    dim, rows = documents.shape[1], {}
    for name, made in {
        "pq": faiss.IndexPQ(dim, parts, 8, faiss.METRIC_INNER_PRODUCT),
        "opq": faiss.index_factory(dim, f"OPQ{parts},PQ{parts}x8", faiss.METRIC_INNER_PRODUCT),
        "itq": faiss.index_factory(dim, f"ITQ{8 * parts},LSH"),
    }.items():
        made.train(documents)
        made.add(documents)
        rows[name] = reciprocal_rank(made.search(asked, 10)[1], data.wanted)
    return rows


def show(name: str, row: dict[str, Any]) -> None:
    told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
    print(f"{name:36s}{told}", flush=True)


def keep(part: str, name: str, row: dict[str, Any], args: argparse.Namespace) -> None:
    """One row, at once: what was measured stays when a later row is stopped."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    told = provenance(**{k: v for k, v in vars(args).items() if k not in ("parts", "sets")})
    found.setdefault(part, {"rows": {}})["rows"][name] = row
    found[part]["provenance"] = told
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    show(f"{part}, {name}", row)


def whole(data: Task, asked: torch.Tensor, documents: torch.Tensor) -> float:
    return reciprocal_rank((asked @ documents.T).topk(10).indices.numpy(), data.wanted)


def started(args: argparse.Namespace, seed: int) -> tuple[Task, nn.Module]:
    data = task(paragraphs(), args.each, seed)
    torch.manual_seed(seed)
    return data, dense(Encoder(), data, 12, seed).eval()
