"""Line retrieval, the balancer, exactness and streaming; part of benchmarks/kv_bits.py."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from holdall.dropins.transformers import Cache
from holdall.kv import H2O, MiKV, SnapKV
from holdall.kv.asking import answer, read
from holdall.kv.balance import balance, tokenwise
from holdall.kv.entries import Entries
from holdall.kv.packed_attention import key_scores
from holdall.kv.tiers import Tiered

Say = Callable[[str, str, float, str], None]
RAW: dict[str, Any] = {"centred": False, "fit": 0, "probes": 1.0}  # MiKV as in the paper
LENGTHS, SHOTS = (
    (30, 20, 15, 12, 10, 8),
    6,
)  # lines of a text; lines that are asked for and answered as examples
NAMES = (
    "Anna Boris Clara David Emma Felix Greta Henry Irene Jacob Karen Leo Maria Nathan Olga Peter Rachel Simon Teresa "
    "Victor Wendy Albert Bella Carl Diana Edgar Fiona George Hannah Ivan Julia Kevin Laura Martin Nora Oscar Paula "
    "Robert Sarah Thomas"
)
WORDS = (  # of which each begins with a token of its own
    "banana lemon cherry orange apple grape green red blue yellow white purple rabbit snake horse monkey turtle bird "
    "Monday Tuesday Wednesday Thursday Friday Sunday garlic honey butter rice pepper milk Norway Brazil Japan Egypt "
    "Canada India piano violin guitar flute trumpet drums bronze marble wood glass gold iron three four five seven "
    "eight nine teacher lawyer farmer pilot doctor water"
)
HALF: dict[str, tuple[Any, Any]] = {
    "full": (H2O(), "100%"),
    "H2O, half": (H2O(), "50%"),
    "MiKV, half at 4 bits": (MiKV(ratio=0.5, low=4, **RAW), None),
    "MiKV, half at 3 bits": (MiKV(ratio=0.5, low=3, **RAW), None),
    "MiKV, half at 2 bits": (MiKV(ratio=0.5, low=2, **RAW), None),
    "MiKV, half at 2 bits, not balanced": (MiKV(ratio=0.5, low=2, balance=False, **RAW), None),
    "MiKV, half at 2 bits, our grids": (MiKV(ratio=0.5, low=2), None),
}


class Lines:
    """A text of `count` lines, a name and a word each, and questions about them."""

    def __init__(self, tokenizer: Any, count: int, seed: int):
        self.lot, self.tokenizer = random.Random(seed), tokenizer
        self.words, self.names = (self.lot.sample(x.split(), count) for x in (WORDS, NAMES))
        self.told = [f"{n}: {w}" for n, w in zip(self.names, self.words, strict=True)]
        self.context = tokenizer.encode("\n".join(self.told))
        self.firsts = [tokenizer.encode(f" {w}")[0] for w in self.words]
        assert len(set(self.firsts)) == count

    def asked(self, i: int) -> list[int]:
        """Ids of some other lines again, as examples, and of line i up to its word."""
        others = self.lot.sample([line for j, line in enumerate(self.told) if j != i], SHOTS)
        again = "\n".join(others)
        return self.tokenizer.encode(f"\n\n{again}\n{self.names[i]}:")

    def right(self, logits: torch.Tensor, i: int) -> float:
        return float(int(logits[self.firsts].argmax()) == i)

    def some(self, count: int) -> list[int]:
        return [(2 * i + 1) * len(self.words) // (2 * count) for i in range(count)]


def reader(net: Any, ids: list[int]) -> Cache:
    base = Cache(H2O())
    read(net, base, ids)
    return base


def longest(net: Any, tokenizer: Any, texts: int, questions: int, say: Say) -> int:
    """The most lines of which the whole cache finds nine in ten."""
    for count in LENGTHS:
        hits = []
        for seed in range(texts):
            lines = Lines(tokenizer, count, 100 + seed)
            base = reader(net, lines.context)
            for i in lines.some(min(questions, count)):
                hits.append(lines.right(answer(net, base.copy(), lines.asked(i)), i))
        say("103", f"{count} lines: found with the whole cache", sum(hits) / len(hits), "")
        if sum(hits) >= 0.9 * len(hits):
            return count
    return LENGTHS[-1]


def retrieval(net: Any, tokenizer: Any, texts: int, questions: int, say: Say) -> None:
    """The cache shrinks when only the lines are known; then every question is put to what is left."""
    count = longest(net, tokenizer, max(2, texts // 2), questions, say)
    hits: dict[str, list[float]] = {name: [] for name in HALF}
    for seed in range(texts):
        lines = Lines(tokenizer, count, seed)
        base = reader(net, lines.context)
        asked = [(i, lines.asked(i)) for i in lines.some(min(questions, count))]
        for name, way in HALF.items():
            small = base.compressed(*way)
            hits[name] += [lines.right(answer(net, small.copy(), ids), i) for i, ids in asked]
    judged(hits, say)


def judged(hits: dict[str, list[float]], say: Say) -> None:
    share = {n: sum(h) / len(h) for n, h in hits.items()}
    both = {n: [a * b for a, b in zip(h[::2], h[1::2], strict=False)] for n, h in hits.items()}
    say("103", "lines found with the whole cache", share["full"], ">= 0.9")
    say("103", "lines found, H2O with half of the bytes", share["H2O, half"], "<= 0.6")
    for bits in (4, 3):
        kept = share[f"MiKV, half at {bits} bits"] / max(share["full"], 1e-9)
        say("103", f"lines found, the other half at {bits} bits / whole cache", kept, ">= 0.95")
    two = share["MiKV, half at 2 bits"]
    say("103", "lines found, the other half at 2 bits", two, "")
    say("103", "the same, our grids", share["MiKV, half at 2 bits, our grids"], "")
    gain = two - share["MiKV, half at 2 bits, not balanced"]
    say("103", "lines found at 2 bits, balanced less not balanced", gain, ">= 0.1")
    for name in ("full", "H2O, half", "MiKV, half at 3 bits"):
        say("103", f"two late questions, both found: {name}", sum(both[name]) / len(both[name]), "")
    failed = [1 - sum(both[n]) / len(both[n]) for n in ("H2O, half", "MiKV, half at 3 bits")]
    say("103", "two late questions: pairs lost by H2O less by MiKV", failed[0] - failed[1], ">= 0.3")


def products(layers: list[Entries], say: Say) -> None:
    """Errors of q.k with and without the balancer; whole numbers against dequantised keys."""
    apart = 0.0
    for bits in (2, 3):
        falls = []
        for x in layers:
            assert x.queries is not None
            q = x.queries[:, :, -64:].float().reshape(*x.shape[:2], -1, x.keys.shape[3])
            truth, errors = q @ x.keys.float().transpose(2, 3), []
            for balanced in (True, False):
                tier = tokenwise(x, bits, balance(x, balanced, False), 0, 0)
                got = q @ tier.numbers()[0].transpose(2, 3)
                errors.append(float((got - truth).norm() / truth.norm()))
                apart = max(apart, float((key_scores(tier.keys, q) - got).norm() / got.norm()))
            falls.append(1 - errors[0] / errors[1])
        say(
            "103", f"{bits} bits: fall of the error of q.k by the balancer", sum(falls) / len(falls), ">= 0.2"
        )
    say("103", "scores over whole numbers beside dequantised keys, relative", apart, "<= 1e-5")


def exactness(base: Cache, layers: list[Entries], say: Say) -> None:
    """r = 1 keeps every number; the bytes that are told are those of the buffers."""
    apart, all_bytes = 0.0, 0
    for layer, x in zip(base.compressed(MiKV(ratio=1.0)).layers, layers, strict=True):
        keys, values = layer.state.entries.dense()
        apart = max(apart, float((keys - x.keys).abs().max()), float((values - x.values).abs().max()))
    say("103", "r = 1: largest difference of keys and values", apart, "<= 0")
    small = base.compressed(MiKV(), "30%")
    for layer in small.layers:
        y = layer.state.entries
        assert isinstance(y, Tiered)
        held = (t.untyped_storage() for t in (y.keys, y.values, *y.packed()) if t.numel())
        all_bytes += sum({s.data_ptr(): s.nbytes() for s in held}.values())
    say("103", "bytes told less bytes of all buffers", abs(small.nbytes - all_bytes), "<= 0")


def streaming(net: Any, base: Cache, method: Any, after: list[int], say: Say) -> None:
    """(e) of 061: real text goes on token by token, and is packed `gap` by `gap`."""
    held, whole = base.compressed(method), base.compressed(SnapKV(), "100%")
    nll: list[list[float]] = [[], []]
    with torch.inference_mode():
        for a, b in pairwise(after):
            for cache, into in ((held, nll[0]), (whole, nll[1])):
                logits = net(torch.tensor([[a]]), past_key_values=cache).logits[0, -1].float()
                into.append(float(-logits.log_softmax(-1)[b]))
    lost = 0
    wrong = 0.0
    for mine, full in zip(held.layers, whole.layers, strict=True):
        x, y = mine.state.entries, full.state.entries
        assert isinstance(x, Tiered)
        lost += int((x.where() != torch.arange(x.tokens)).sum()) + (y.count - x.count)
        (a, _), (b, _) = x.dense(), y.dense()
        wrong = (
            max(wrong, float((a.float() - b.float()).norm() / b.float().norm()))
            if mine is held.layers[0]
            else wrong
        )
    say("061e", f"tokens lost or out of order after {len(after) - 1} steps, gap {method.gap}", lost, "<= 0")
    say("061e", "first layer: error of all keys, in token order", wrong, "<= 0.5")
    say(
        "061e",
        "perplexity of these steps / with the whole cache",
        math.exp((sum(nll[0]) - sum(nll[1])) / len(nll[0])),
        "<= 1.1",
    )
