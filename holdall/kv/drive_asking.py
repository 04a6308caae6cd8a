"""What attention on a drive costs a model: answers, perplexity, pages, and bytes over the link.

A text of 2,048 tokens with ten facts is read; then its next tokens, and then ten questions one after the other, are
added token by token, as new text is in a conversation. A fact is found where its word is more likely than five others
of its sort (chance 1/6). The other caches shrink when only the text is known, to as many bytes as the drive wants to
read, an eighth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from holdall.kv.needles import Haystack, haystack
from holdall.optional import lazy
from holdall.report import Report, provenance

if TYPE_CHECKING:
    import torch

    from holdall.kv.instinfer import InstInfer
else:
    torch = lazy("torch", extra="kv")

TOKENS, AFTER = 2048, 96
_RATIOS = {
    "pages_of_dense": "pages_read",
    "channel_pages_of_dense": "channel_pages",
    "key_pages_of_dense": "key_pages",
}


def answers(net: Any, cache: Any, hay: Haystack) -> dict[str, float]:
    """Found, found greedily, and perplexity, of a cache that has read the text."""
    from holdall.kv.asking import found

    def add(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode(), cache.appending():
            return net(torch.tensor([ids]), past_key_values=cache).logits[0].float()

    logits = add(hay.after[:AFTER])[:-1]
    nll = float(torch.nn.functional.cross_entropy(logits, torch.tensor(hay.after[1:AFTER])))
    hits = [found(add(p.question + p.stem)[-1], p) for p in hay.probes]
    share = 1 / len(hits)
    return {"found": sum(h[0] for h in hits) * share, "greedy": sum(h[1] for h in hits) * share, "nll": nll}


def on_drive(net: Any, method: InstInfer, hay: Haystack) -> dict[str, float]:
    """The same on drives, with what they read for each token."""
    from holdall.dropins.drives import DriveCache

    new = AFTER + sum(len(p.question) + len(p.stem) for p in hay.probes)
    with DriveCache(method, net.config, length=len(hay.context) + new) as cache:
        with torch.inference_mode():
            net(torch.tensor([hay.context]), past_key_values=cache, logits_to_keep=1)
        row, went = answers(net, cache, hay), cache.traffic()
    dense = max(1, went["dense_pages"])
    row |= {name: went[count] / dense for name, count in _RATIOS.items()}
    row["amplification"] = went["page_bytes"] / max(1, went["wanted_bytes"])
    return row | {"link_bytes_a_token": went["payload_bytes"] / new, "seconds_a_token": went["seconds"] / new}


def in_memory(net: Any, method: Any, budget: Any, hay: Haystack) -> dict[str, float]:
    from holdall.dropins.transformers import Cache
    from holdall.kv.asking import read

    cache = Cache(method, budget)
    read(net, cache, hay.context)
    cache.compress()
    return {"bytes": float(cache.nbytes), **answers(net, cache, hay)}


def measured(method: InstInfer, model: str, text: str, on: str, texts: int) -> Report:
    """Rows: the whole cache, the latest entries and H2O in an eighth, and last the drive's."""
    from holdall.kv import H2O, Recent
    from holdall.weights.model import Model

    source = Model.read(model)
    tokenizer, net = source.tokenizer(), source.build()
    arms: dict[str, Any] = {
        "full": lambda hay: in_memory(net, H2O(), "100%", hay),
        "kv.recent": lambda hay: in_memory(net, Recent(), "12.5%", hay),
        "kv.h2o": lambda hay: in_memory(net, H2O(), "12.5%", hay),
        method.full_name(): lambda hay: on_drive(net, method, hay),
    }
    hays = [haystack(tokenizer, text, TOKENS, seed) for seed in range(texts)]
    rows = {}
    for name, arm in arms.items():
        figures = [arm(hay) for hay in hays]
        rows[name] = {k: sum(f[k] for f in figures) / len(figures) for k in figures[0]}
        rows[name]["perplexity"] = math.exp(rows[name].pop("nll"))
    facts = provenance(method=method.to_dict(), model=model, on=on, tokens=TOKENS, facts=10 * texts)
    return Report(rows, baseline="full", provenance=facts)
