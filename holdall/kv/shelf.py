"""A shelf: ten documents with one fact in each, questions about them, and what answering from contexts costs.

A fact is found where its word is more likely than five others of its sort (chance 1/6), found greedily where it is the
likeliest token of all; `nll` is its negative log-likelihood in nats. "sequential" reads all documents in a row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from holdall.kv.needles import Haystack, Probe, haystack
from holdall.optional import lazy
from holdall.report import Report, provenance

if TYPE_CHECKING:
    import torch

    from holdall.kv.ape import APE
    from holdall.kv.contexts import Contexts
else:
    torch = lazy("torch", extra="kv")

TOKENS = 2048  # of all documents together


@dataclass(frozen=True)
class Shelf:
    """Documents by name, the haystack that they are parts of, and its probes."""

    hay: Haystack
    documents: dict[str, list[int]]

    @property
    def probes(self) -> list[Probe]:
        return self.hay.probes


def shelf(tokenizer: Any, text: str, tokens: int = TOKENS, seed: int = 0) -> Shelf:
    """A haystack, cut between its facts."""
    hay = haystack(tokenizer, text, tokens, seed)
    ends = [p.end for p in hay.probes]
    cuts = [hay.header, *((a + b) // 2 for a, b in pairwise(ends)), len(hay.context)]
    parts = [hay.context[a:b] for a, b in pairwise(cuts)]
    return Shelf(hay, {f"{i}.txt": part for i, part in enumerate(parts)})


def encoded(net: Any, found: Shelf, method: APE, budget: Any = None) -> tuple[Contexts, int]:
    """The shelf's contexts, and the bytes of their file."""
    from holdall.kv.documents import Documents

    header = found.hay.context[: found.hay.header]
    packed = method.encode(
        Documents(texts=found.documents, model="measured", load=lambda: net, header=header), budget
    )
    return method.decode(packed), packed.nbytes


def asked(net: Any, cache: Any, probe: Probe) -> tuple[float, float, float, float]:
    """(found, found greedily, negative log-likelihood, CPU seconds to the first token)."""
    start = time.process_time()
    with torch.inference_mode():
        ids = torch.tensor([probe.question + probe.stem])
        logits = net(ids, past_key_values=cache, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
    took, words = time.process_time() - start, logits[probe.words]
    right = int(words.argmax()) == probe.right
    return float(right), float(right and words.max() == logits.max()), -float(words[probe.right]), took


def sequential(net: Any, found: Shelf) -> tuple[list[tuple[float, ...]], float]:
    """Answers where all documents were read in a row, and the CPU seconds that the reading took."""
    from holdall.dropins.transformers import Cache
    from holdall.kv.asking import read

    start, base = time.process_time(), Cache()
    read(net, base, found.hay.context)
    took = time.process_time() - start
    return [asked(net, base.copy(), p) for p in found.probes], took


def measured(method: APE, budget: Any, model: str, text: str, on: str, shelves: int) -> Report:
    """Rows: sequential, parallel (T = s = 1), parallel without the shared prefix, and last the method's."""
    from holdall.kv.contexts import cache_of
    from holdall.weights.model import Model

    source = Model.read(model)
    tokenizer, net = source.tokenizer(), source.build()
    plain = method.but(temperature=1.0, scale=1.0)
    arms = {"parallel": plain, "no prefix": plain.but(prefix="none"), method.full_name(): method}
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in ("sequential", *arms)}
    for seed in range(shelves):
        found = shelf(tokenizer, text, seed=seed)
        answers, took = sequential(net, found)
        item = 2 * net.config.num_hidden_layers * net.config.num_key_value_heads * net.config.head_dim
        size = 4 * item * len(found.hay.context)
        rows["sequential"] += [(*a[:3], took + a[3], float(size)) for a in answers]
        for name, arm in arms.items():
            contexts, size = encoded(net, found, arm, budget)
            layers = contexts.layers(dtype=net.dtype)
            rows[name] += [(*asked(net, cache_of(layers), p), float(size)) for p in found.probes]
    names = ("found", "greedy", "nll", "first_token_cpu_seconds", "bytes")
    table = {
        n: {k: sum(c) / len(c) for k, c in zip(names, zip(*r, strict=True), strict=True)}
        for n, r in rows.items()
    }
    facts = provenance(
        method=method.to_dict(), budget=str(budget), model=model, on=on, documents=10 * shelves
    )
    return Report(table, baseline="sequential", provenance=facts)
