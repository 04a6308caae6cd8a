"""How well a language model still predicts: perplexity, agreement with the original, divergence from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

WINDOWS, WINDOW = 16, 1024


def spread(ids: list[int], count: int = WINDOWS, length: int = WINDOW, every: int = 1) -> torch.Tensor:
    """[<= count, length] windows at equally spaced starts; `every` = 2 takes every other one."""
    if len(ids) < 2:
        raise BadInput("text", f"{len(ids)} tokens", "at least two tokens to predict")
    length = min(length, len(ids))
    starts = np.linspace(0, len(ids) - length, min(count, max(1, len(ids) // length))).astype(int)
    return torch.tensor([ids[s : s + length] for s in starts[::every]])


def losses(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token but the first, [N, L-1]; one window at a time."""
    rows = []
    with torch.inference_mode():
        for ids in tokens:
            logits = _logits(module, ids)
            rows.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
    return torch.stack(rows)


def mean_loss(module: Any, tokens: torch.Tensor) -> float:
    return float(losses(module, tokens).mean())


def compare(reference: Any, module: Any, tokens: torch.Tensor) -> dict[str, float]:
    """perplexity, perplexity_ratio to the reference, top1 agreement, kl mean and 99th percentile (nats)."""
    own, theirs, agree, divergence = [], [], [], []
    with torch.inference_mode():
        for ids in tokens:
            wanted = torch.log_softmax(_logits(reference, ids), -1)
            got = torch.log_softmax(_logits(module, ids), -1)
            picked = ids[1:, None]
            theirs.append(-wanted.gather(1, picked))
            own.append(-got.gather(1, picked))
            agree.append((wanted.argmax(-1) == got.argmax(-1)).float())
            divergence.append((wanted.exp() * (wanted - got)).sum(-1))
    perplexity = float(torch.cat(own).mean().exp())
    spread_out = torch.cat(divergence)
    return {
        "perplexity": perplexity,
        "perplexity_ratio": perplexity / float(torch.cat(theirs).mean().exp()),
        "top1": float(torch.cat(agree).mean()),
        "kl": float(spread_out.mean()),
        "kl_p99": float(spread_out.quantile(0.99)),
    }


def _logits(module: Any, ids: torch.Tensor) -> torch.Tensor:
    """[L-1, V] float32: what is said about each next token."""
    named = {"use_cache": False} if hasattr(module.config, "use_cache") else {}
    out = module(input_ids=ids[None], **named)
    if getattr(out, "logits", None) is None:
        raise BadInput("model", type(module).__name__, "a language model, to measure perplexity on")
    return out.logits[0, :-1].float()


def embedding_quality(reference: Any, module: Any, tokens: torch.Tensor) -> dict[str, float]:
    """For encoders: mean cosine of mean-pooled windows to the original's, and how many of its ten nearest stay."""
    with torch.inference_mode():
        a, b = (
            torch.cat([m(input_ids=ids[None]).last_hidden_state.mean(1) for ids in tokens])
            for m in (reference, module)
        )
    a, b = torch.nn.functional.normalize(a, dim=-1), torch.nn.functional.normalize(b, dim=-1)
    near = min(10, len(a) - 1)
    wanted, got = ((x @ x.T).fill_diagonal_(-2).topk(near).indices for x in (a, b))
    kept = (
        [len(set(w.tolist()) & set(g.tolist())) / near for w, g in zip(wanted, got, strict=True)]
        if near
        else [1.0]
    )
    return {"cosine": float((a * b).sum(-1).mean()), "nearest_kept": float(np.mean(kept))}
