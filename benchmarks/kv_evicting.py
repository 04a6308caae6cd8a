"""What the cards of PrefixKV, KVMerger and EMS expect, on SmolLM2: each line beside its bar, met or not.

    python benchmarks/kv_evicting.py [--contexts 8] [--quick]

Protocol: 1,024 tokens of text with ten facts (holdall/kv/needles.py), caches of every method are cut from one reading.
Perplexity is of the next 128 tokens, KL of the whole cache's next-token distribution from the small
one's over the first 64 of them. Facts are asked before the cache shrinks. Bytes are those held, in bfloat16, all beside
keys and values included. Calibration reads other texts. Writes benchmarks/results/kv_evicting.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kv import TEXTS, part, texts
from kv_evicting_lines import judged, table

from holdall.dropins.transformers import Cache
from holdall.kv import EMS, H2O, KVMerger, KVSelector, PrefixKV, Random, Recent, SnapKV
from holdall.kv.asking import logits_after, read, recall, summary
from holdall.kv.calibration import read_layers
from holdall.kv.needles import Haystack, haystack
from holdall.kv.prefixes import Curve, exact, naive_search, search
from holdall.kv.quality import Followed, loss
from holdall.report import provenance
from holdall.weights.model import Model
from holdall.weights.texts import calibration_text

OUT = Path(__file__).parent / "results" / "kv_evicting.json"
TOKENS, AFTER, JUDGED, LAYERS = 1024, 128, 64, 30
Arms = dict[str, tuple[KVSelector, str]]
OWN, MERGED, SPLIT, OVER = ("6.25%", "12.5%", "25%"), ("50%", "35%"), ("10%", "20%", "40%"), ("6.25%", "20%")
DROPPED = EMS(tau=2.0, counts="none")  # the same, and nothing is merged
SCORES: dict[str, KVSelector] = {"ems": EMS(), "global": EMS(balance=1.0), "local": EMS(balance=0.0)}
RIVALS: dict[str, KVSelector] = {"streaming": Recent(), "h2o": H2O(), "snapkv": SnapKV()}
MERGERS: dict[str, KVSelector] = {
    "random": Random(), "streaming": Recent(), "h2o": H2O(), "kvmerger": KVMerger(),
    "pivot only": KVMerger(kernel="pivot"), "even": KVMerger(kernel="even", values="bias"),
}  # fmt: skip


def splits(share: str) -> dict[str, KVSelector]:
    """The arms of PrefixKV but the calibrated one: the same scores, and a layer's part set by hand."""
    gone = 1 - float(share[:-1]) / 100
    lot = np.random.default_rng(0).dirichlet(np.full(LAYERS, 4.0)) * LAYERS

    def by_hand(parts: Any) -> tuple[float, ...]:
        return tuple(float(1 - (1 - gone) * p) for p in parts)

    return {
        "uniform": PrefixKV(level=0.0, ratios=by_hand(np.ones(LAYERS))),
        "pyramid": PrefixKV(level=0.0, ratios=by_hand(np.linspace(1.8, 0.2, LAYERS))),
        "random split": PrefixKV(level=0.0, ratios=by_hand(lot)),
        "paper's": PrefixKV(level=0.0),
        "online": PrefixKV(),
    }


def arms(offline: dict[str, PrefixKV]) -> Arms:
    found = {f"{n} {b}": (m, b) for b in OWN for n, m in ({"dropped": DROPPED} | SCORES | RIVALS).items()}
    found |= {f"merging {n} {b}": (m, b) for b in MERGED for n, m in MERGERS.items()}
    found |= {f"split {n} {b}": (m, b) for b in SPLIT for n, m in splits(b).items()}
    found |= {f"split offline {b}": (m, b) for b, m in offline.items()}
    for n, inner in (("snapkv", SnapKV()), ("ems", EMS())):
        found |= {f"paper's split over {n} {b}": (PrefixKV(inner=inner, level=0.0), b) for b in OVER}
        found |= {f"split over {n} {b}": (PrefixKV(inner=inner), b) for b in OVER}
        found |= {f"{n} {b}": (inner, b) for b in OVER}
    return found


def needles() -> Arms:
    found = {f"{n} {b}": (m, b) for b in OWN[:2] for n, m in ({"streaming": Recent()} | SCORES).items()}
    found |= {"snapkv 6.25%": (SnapKV(), "6.25%"), "split over snapkv 6.25%": (PrefixKV(inner=SnapKV()), "6.25%"),
              "paper's split over snapkv 6.25%": (PrefixKV(inner=SnapKV(), level=0.0), "6.25%")}  # fmt: skip
    return found | {f"{n} 50%": (MERGERS[n], "50%") for n in ("kvmerger", "streaming")}


def shrunk(net: Any, hay: Haystack, subjects: Arms) -> dict[str, dict[str, float]]:
    """Bytes held as a share of the whole, nats of what follows, and KL from the whole cache, by arm."""
    base = Cache(H2O())
    read(net, base, hay.context)
    told = torch.tensor(hay.after[1:])
    whole = logits_after(net, base.copy(), hay.after)
    sure = whole[:JUDGED].log_softmax(-1)
    rows = {"full": {"share": 1.0, "nats": nats(whole, told), "kl": 0.0}}
    for name, (method, budget) in subjects.items():
        small = base.compressed(method, budget)
        got, share = logits_after(net, small.copy(), hay.after), small.nbytes / small.full_bytes
        kl = (sure.exp() * (sure - got[:JUDGED].log_softmax(-1))).sum(-1).mean()
        rows[name] = {"share": share, "nats": nats(got, told), "kl": float(kl)}
    for name, method in (("ems all fits", EMS(slack=0)), ("eps above 1", KVMerger(eps=1.01))):
        fits = base.compressed(method, "100%" if method.full_name() == "kv.ems" else None)
        rows[name] = {"share": 1.0, "same": float(torch.equal(logits_after(net, fits, hay.after), whole))}
    return rows


def nats(logits: torch.Tensor, told: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1], told))


def layers(net: Any, hay: Haystack) -> list[Followed]:
    """The layers after the context, and what the next tokens ask of them."""
    found = []
    for x in next(read_layers(H2O(), net, [hay.context + hay.after[:JUDGED]])):
        assert x.queries is not None and x.query_positions is not None
        n = len(hay.context)
        cut = x.but(keys=x.keys[:, :, :n], values=x.values[:, :, :n], queries=x.queries[:, :, :n],
                    query_positions=x.query_positions[:, :n], valid=None)  # fmt: skip
        found.append(Followed(**vars(cut), following=x.queries[:, :, n:]))
    return found


def looked_at(stack: Sequence[Followed]) -> dict[str, Any]:
    """Figures that need no model: curves of layers, cosines of neighbours, errors of attention's output."""
    method, total = PrefixKV(level=0.0), sum(x.original for x in stack) // 5
    curves = [method.curve(x) for x in stack]
    kept = [n // c.each for n, c in zip(method.share(list(stack), total), curves, strict=True)]
    found, grid = search(curves, total), naive_search(curves, total)
    even = total // LAYERS // curves[0].each
    errors = {
        f"{name} {b}": float(np.mean([loss(x, m.select(x, b)) for x in stack]))
        for b in OWN for name, m in (("ems", EMS()), ("dropped", DROPPED))
    }  # fmt: skip
    return {
        "gini": [2 * float(c.share.mean()) - 1 for c in curves],
        "ours": [c.retained(k) for c, k in zip(curves, kept, strict=True)],
        "even": [c.retained(even) for c in curves],
        "entries": kept,
        "search": [abs(found[0] - grid[0]), sum(found[1]) - sum(grid[1])],
        "above": [[above(t) for t in (x.keys, x.values)] for x in stack],
        "errors": errors,
    }


def above(t: torch.Tensor) -> float:
    """By how much the mean cosine of neighbours exceeds that of tokens drawn by lot."""
    unit = torch.nn.functional.normalize(t[0].float(), dim=-1)  # [H, T, D]
    lot = torch.randperm(unit.shape[1], generator=torch.Generator().manual_seed(0))
    return float((unit[:, 1:] * unit[:, :-1]).sum(-1).mean() - (unit * unit[:, lot]).sum(-1).mean())


def alike(net: Any, ids: Sequence[int], pieces: int) -> list[float]:
    """For each layer the spread over texts (deviation over mean) of how many neighbours would merge at eps 0.75."""
    shares, size = [], 256
    for x in read_layers(H2O(), net, [ids[i * size : (i + 1) * size] for i in range(pieces)]):
        units = [torch.nn.functional.normalize(e.keys[0].float(), dim=-1) for e in x]
        shares.append([float(((u[:, 1:] * u[:, :-1]).sum(-1) >= 0.75).float().mean()) for u in units])
    every = np.array(shares)
    return list(every.std(0) / every.mean(0).clip(1e-9))


def synthetic() -> list[tuple[float, float, float]]:
    """(spread, the poorest layer's share by ours, by equal parts) of layers that look at n entries alike each.

    The optimum is known: parts in proportion to n, a half for all.
    """
    rows = []
    for spread in (0.0, 0.3, 0.6, 0.9):
        sizes = [int(400 * f) for f in (1 - spread, 1, 1 + spread)]
        curves = [Curve(np.minimum(1, np.arange(1, 1001) / n)) for n in sizes]
        kept = exact(curves, search(curves, 600)[1], 600)
        ours, even = ([c.retained(k) for c, k in zip(curves, ks, strict=True)] for ks in (kept, (200,) * 3))
        rows.append((spread, min(ours), min(even)))
    return rows


def pooled(rows: Sequence[dict[str, dict[str, float]]], name: str, of: str) -> float:
    return sum(r[name][of] for r in rows) / len(rows)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--contexts", type=int, default=8, help="texts of ten facts each")
    parse.add_argument("--quick", action="store_true", help="one text")
    parse.add_argument("--out", type=Path, default=OUT)
    asked = parse.parse_args()
    start, count = time.process_time(), 1 if asked.quick else asked.contexts
    torch.set_num_threads(1)
    source = Model.read("smollm2")
    tokenizer, net = source.tokenizer(), source.build(torch.bfloat16)
    other = TEXTS / "wikitext2-valid.txt"
    learned = other.read_text(errors="replace") if other.exists() else calibration_text()
    ids = tokenizer.encode(learned[:60_000])
    taught = [ids[i : i + TOKENS] for i in range(0, TOKENS * (1 if asked.quick else 6), TOKENS)]
    offline = {b: PrefixKV().calibrated(net, taught, b) for b in SPLIT}
    sources, rows, found, seen = list(texts().values()), [], [], []
    for i in range(count):
        hay = haystack(tokenizer, part(sources[i % len(sources)], i), TOKENS, seed=i, after=AFTER)
        rows.append(shrunk(net, hay, arms(offline)))
        found.append(recall(net, hay, needles(), H2O(), arms=("needle",)))
        seen.append(looked_at(layers(net, hay)))
        print(f"text {i + 1} of {count}: {time.process_time() - start:.0f} CPU seconds", flush=True)
    figures = {n: {k: pooled(rows, n, k) for k in rows[0][n]} for n in rows[0]}
    for row in figures.values():
        if "nats" in row:
            row["perplexity"] = math.exp(row.pop("nats"))
    spread = alike(net, tokenizer.encode(part(sources[0], 0)[:40_000]), 4 if asked.quick else 20)
    lines = judged(figures, summary(found), seen, spread, synthetic())
    print("\n" + table(lines))
    facts = provenance(model="SmolLM2-135M-Instruct, bfloat16", tokens=TOKENS, texts=count, facts=10 * count)
    told = {"lines": lines, "figures": figures, "recall": summary(found), "layers": seen, "provenance": facts}
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"\n{time.process_time() - start:.0f} CPU seconds; written to {asked.out}")


if __name__ == "__main__":
    main()
