"""What the generic checks read and compare of contexts, and what asking many documents at once costs in answers."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.kv.contexts import Context, Contexts
from holdall.kv.documents import Documents, stacked
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="kv")

FLOORS: tuple[str, ...] = ()
_HEADER = (3, 7, 11, 13)


@cache
def tiny() -> Any:
    """A random model of the Llama kind whose heads look somewhere."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=101, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                p.mul_(8)
    return model


def documents(*lengths: int, seed: int = 0) -> Documents:
    """Random documents of those lengths, for the tiny model."""
    lot = np.random.default_rng(seed)
    texts = {f"{i}.txt": lot.integers(0, 101, n).tolist() for i, n in enumerate(lengths)}
    return Documents(
        texts=texts, model="tiny", load=tiny, header=_HEADER, ids=lambda text: [ord(c) % 101 for c in text]
    )


def specimens() -> dict[str, Documents]:
    """One document, several, an odd length, one token over and over, the same text twice, none at all."""
    constant = documents()
    return {
        "one": documents(1),
        "three": documents(7, 5, 9),
        "odd63": documents(63, 1),
        "constant": Documents(**{**vars(constant), "texts": {"a": [5] * 20}}),
        "twice": Documents(**{**vars(constant), "texts": {"a": [1, 2, 3], "b": [1, 2, 3]}}),
        "empty": documents(),
    }


def real() -> Documents:
    """Documents long enough that their keys and values outweigh a header."""
    return documents(100, 60, 90, seed=1)


def loss(x: Documents, y: Contexts) -> float:
    """Relative error of keys and values, beside those that the model computes now."""
    wrong = norm = 0.0
    prefix = y.prefix.ids.tolist()
    for (_, *truth), held in zip(
        x.encoded(prefix, x.texts.values()), [y.prefix, *y.documents.values()], strict=True
    ):
        for a, b in zip(truth, (held.keys, held.values), strict=True):
            wrong += float((a.float() - b.float()).square().sum())
            norm += float(a.float().square().sum())
    return float(np.sqrt(wrong / max(norm, 1e-30)))


def same(x: Contexts, y: Contexts) -> bool:
    return fingerprint(x) == fingerprint(y)


def original_bytes(x: Documents) -> int:
    """Keys and values as the model computes them."""
    keys, values = stacked(x.read([0]), 0)
    each = (keys.numel() + values.numel()) * keys.element_size()
    return each * (len(x.header) + sum(map(len, x.texts.values())))


def fingerprint(x: Documents | Contexts) -> bytes:
    """Of documents their ids; of contexts also what a query gets out of each layer's attention."""
    if isinstance(x, Documents):
        return json.dumps([list(x.header), {k: list(v) for k, v in x.texts.items()}]).encode()
    held = b"".join(_raw(c) for c in (x.prefix, *x.documents.values()))
    lot = torch.Generator().manual_seed(0)
    for layer in x.layers(dtype=torch.float32):
        query = torch.randn(1, layer.shape[1], 3, layer.keys.shape[3], generator=lot)
        held += layer.attend(query, None, None).numpy().tobytes() if layer.count else b""
    return held


def measure(
    method: Any, budget: Any = None, *, model: str | None = None, on: str | None = None, quick: bool = False
) -> Any:
    """Answers from ten documents, one fact in each, beside reading them in a row: see `holdall.kv.shelf.measured`."""
    from holdall.kv.quality import _text
    from holdall.kv.shelf import measured

    return measured(method, budget, model or "smollm2", _text(on), on or "needle", 1 if quick else 4)


def _raw(c: Context) -> bytes:
    parts = (c.keys, c.values)
    return (
        c.name.encode() + c.ids.tobytes() + b"".join(t.contiguous().float().numpy().tobytes() for t in parts)
    )
