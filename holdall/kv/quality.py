"""What losing a part of the context costs: attention's error on a layer, recall and perplexity on a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.kinds import Spend
from holdall.kv.entries import Entries
from holdall.optional import lazy
from holdall.report import Report

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from holdall.kv.base import KVSelector
else:
    torch = lazy("torch", extra="kv")

FLOORS: tuple[str, ...] = ("kv.random", "kv.recent")

_LAYER = 5  # of real(): late enough for heads that look things up, early enough to be quick
_TOKENS, _NEXT, _PADDING = 448, 32, 96


@dataclass(frozen=True, eq=False, kw_only=True)
class Followed(Entries):
    """Entries, and the queries that came after them in the same text, [B, G*H, N, D]."""

    following: Tensor | None = None


def specimens() -> dict[str, Followed]:
    """Small synthetic caches: odd lengths, none, all alike, padding on either side, half precision."""
    made = {name: _made(t) for name, t in (("empty", 0), ("one", 1), ("three", 3), ("odd63", 63))}
    flat = _made(63)
    made["constant"] = flat.but(keys=torch.ones_like(flat.keys), values=torch.ones_like(flat.values))
    made["bfloat16"] = flat.but(keys=flat.keys.bfloat16(), values=flat.values.bfloat16())
    for name, hidden in (("left_padded", slice(0, 17)), ("right_padded", slice(46, 63))):
        valid = torch.ones(flat.shape, dtype=torch.bool)
        valid[1, :, hidden] = False
        last = [_columns(row[0]) for row in valid]
        made[name] = flat.but(valid=valid, query_positions=torch.stack(last))
    return made


def _made(t: int) -> Followed:
    lot = torch.Generator().manual_seed(t)
    keys, values = torch.randn(2, 2, 2, t, 8, generator=lot).unbind(0)
    queries, following = torch.randn(2, 2, 4, t, 8, generator=lot).unbind(0)
    return Followed(keys=keys, values=values, queries=queries, following=following)


def _columns(valid: Tensor) -> Tensor:
    """Columns of the last 63 queries of a row; -1 where there is none."""
    found = valid.nonzero()[:, 0]
    return torch.cat([torch.full((len(valid) - len(found),), -1), found])


@cache
def real() -> Followed:
    """A layer of SmolLM2 over two passages of Python's language reference, the second one left-padded."""
    from holdall.dropins.transformers import Cache
    from holdall.kv.h2o import H2O
    from holdall.weights.model import Model
    from holdall.weights.texts import held_out_text

    model = Model.read("smollm2")
    ids = torch.tensor(model.tokenizer().encode(held_out_text()[:20_000])[: 2 * (_TOKENS + _NEXT)]).view(
        2, -1
    )
    net = model.build()
    net.model.layers = net.model.layers[: _LAYER + 1]
    mask = torch.ones_like(ids)
    mask[1, :_PADDING] = 0
    held = Cache(H2O())  # it asks for all queries
    parts = []
    for start, end in ((0, _TOKENS), (_TOKENS, _TOKENS + _NEXT)):
        at = (mask.cumsum(1) - 1).clamp(min=0)[:, start:end]
        with held.prefilling(judge=False), torch.no_grad():
            net.model(ids[:, start:end], attention_mask=mask[:, :end], position_ids=at, past_key_values=held)
        parts.append(held.layers[_LAYER].state.judged())
    x, later = parts
    assert later.queries is not None
    return Followed(**vars(x), following=later.queries[:, :, -_NEXT:].clone())


def loss(x: Followed, y: Entries) -> float:
    """Relative error of what the queries that follow get out of attention, ||o(y) - o(x)|| / ||o(x)||."""
    if not x.count:
        return 0.0
    assert x.following is not None
    queries = x.following.float()
    truth = _attended(x, queries)
    return float((_attended(y, queries) - truth).norm() / truth.norm())


def _attended(x: Entries, queries: Tensor) -> Tensor:
    """[B, H, G*N, E]."""
    b, h, _ = x.shape
    asked = queries.reshape(b, h, -1, queries.shape[-1])
    scale = queries.shape[-1] ** -0.5 if x.scale is None else x.scale
    hidden = ~x.shown()
    keys, values = x.dense()
    scores = asked @ keys.float().masked_fill(hidden[..., None], 0).transpose(2, 3) * scale
    if x.bias is not None:  # an entry that stands for several
        scores = scores + x.bias[:, :, None].float()
    weights = scores.masked_fill(hidden[:, :, None], -torch.inf).softmax(-1)
    return weights @ values.float().masked_fill(hidden[..., None], 0)


def same(x: Entries, y: Entries) -> bool:
    """Whether both hold the same entries at the same places."""
    return x.shape == y.shape and all(
        torch.equal(a, b) for a, b in ((x.keys, y.keys), (x.values, y.values), (x.where(), y.where()))
    )


def original_bytes(x: Entries) -> int:
    return x.nbytes


def fingerprint(x: Entries) -> bytes:
    digest = blake2b()
    for name, held in sorted(vars(x).items()):
        digest.update(name.encode())
        digest.update(_told(held))
    return digest.digest()


def _told(held: Any) -> bytes:
    """Every bit of a tensor, also of those in packed tiers."""
    if isinstance(held, torch.Tensor):
        return bytes(held.contiguous().view(torch.uint8).numpy()) if held.numel() else b""
    parts = held if isinstance(held, tuple) else vars(held).values() if hasattr(held, "tensors") else None
    return repr(held).encode() if parts is None else b"".join(map(_told, parts))


def positions(y: Entries) -> np.ndarray[Any, Any]:
    """The columns that each head of each row keeps, [B*H, C]; padding is -1."""
    return np.asarray(y.where().masked_fill(~y.shown(), -1).flatten(0, 1))


def rows(x: Entries) -> Iterator[Entries]:
    """Each row of the batch alone."""
    for i in range(x.shape[0]):
        yield x.rows(lambda t, i=i: t[i : i + 1])


def poisoned(x: Entries) -> Entries:
    """NaN where nothing valid stands."""
    hidden, queries = ~x.shown()[..., None], x.queries
    if queries is not None and x.query_positions is not None:
        queries = queries.masked_fill((x.query_positions < 0)[:, None, :, None], torch.nan)
    return x.but(
        keys=x.keys.masked_fill(hidden, torch.nan),
        values=x.values.masked_fill(hidden, torch.nan),
        queries=queries,
    )


def shares_memory(x: Entries, y: Entries) -> bool:
    theirs = {t.untyped_storage().data_ptr() for t in vars(x).values() if isinstance(t, torch.Tensor)}
    return any(t.untyped_storage().data_ptr() in theirs for t in (y.keys, y.values, y.where()) if t.numel())


def measure(
    method: KVSelector,
    budget: Spend = None,
    *,
    model: str | None = None,
    on: str | None = None,
    quick: bool = False,
) -> Report:
    """Recall of ten facts in 2,048 tokens, perplexity of what follows, and bytes, beside the whole cache and floors.

    model: a short name or path (smollm2), which runs in bfloat16. on: arms and the path of a text, commas between:
    needle (question in the window), recall (late questions, and copies), perplexity, first (question before the
    text) and reading (peak memory and CPU seconds of it); Python's language reference, and all, or the first three
    if it is quick. quick: one text of ten facts; else three, and two questions of each for first.
    Rows: bytes, share of the whole and entries (a head's) that the cache holds after the text; recall (question in
    the window), recall_late (after compression) and recall_first (before the text), chance 0.17; greedy...: the same
    as the likeliest token; ..._known: over the facts that the whole cache answers; recall_outside: over those of them
    that a cache of the latest tokens would not hold, `outside` in number; copy: the share of tokens of earlier
    passages given back; recall_full and greedy_full: what the whole cache reaches; perplexity of the next 128 tokens.
    """
    from holdall.kv.race import compare

    return compare([method], [budget], model=model, on=on, quick=quick)


def _text(on: str | None) -> str:
    from holdall.weights.texts import held_out_text

    if on in (None, "needle"):
        return held_out_text()
    try:
        return Path(str(on)).read_text(encoding="utf-8", errors="replace")
    except OSError as fault:
        raise BadInput(
            "on", str(on), f'"needle", or a text file that can be read ({fault.strerror})'
        ) from fault
