"""What mixed precision keeps: the lines that the cards of ZipCache (061) and MiKV (103) expect, on SmolLM2 in bfloat16.

    python benchmarks/kv_bits.py [--contexts 4] [--quick]

Contexts are 2,048 tokens of real text with ten facts (as in benchmarks/kv.py). Perplexity is of the 256 tokens that
follow; "late" are the ten questions, put to what is left. `paper(...)` is ZipCache with the paper's own settings, RTN
rounds every number to a grid for each token and head (MiKV with no important tokens and nothing balanced). Line
retrieval: lines such as "Clara: Norway"; the cache shrinks, six of the lines are repeated as examples, and the word of
another is found where it is the likeliest of all words in the text.
Writes benchmarks/results/kv_bits.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from kv import TOKENS, part, texts
from kv_lines import exactness, products, retrieval, streaming

from holdall.dropins.transformers import Cache
from holdall.kv import H2O, MiKV, ZipCache
from holdall.kv.asking import answer, continuation, found, read
from holdall.kv.balance import Balance, tokenwise
from holdall.kv.codes import by_token
from holdall.kv.entries import Entries
from holdall.kv.needles import haystack
from holdall.kv.rungs import factors
from holdall.report import provenance
from holdall.weights.model import Model

OUT = Path(__file__).parent / "results" / "kv_bits.json"
PLAIN: dict[str, Any] = {
    "ladder": False,
    "group": 0,
    "fit": 0,
    "centred": False,
    "sinks": 0,
    "recent": 0,
    "heavy": 0,
}
RTN = MiKV(ratio=0.0, low=4, sinks=0, recent=0, balance=False, centred=False, fit=0)
LINES: list[dict[str, Any]] = []


def paper(**knobs: Any) -> ZipCache:
    return ZipCache(**{**PLAIN, **knobs})


def say(card: str, what: str, value: float, bar: str = "") -> None:
    """A line: a figure, and whether it is within the bar ("<= 0.8"; "": no bar)."""
    sign, most = bar.split() if bar else ("", "nan")
    met = None if not bar else value <= float(most) if sign == "<=" else value >= float(most)
    LINES.append({"card": card, "line": what, "figure": value, "bar": bar, "met": met})
    told = "" if met is None else f"  (bar {bar}: {'met' if met else 'NOT met'})"
    print(f"{card}  {what}: {value:.4g}{told}", flush=True)


def reader(net: Any, ids: list[int]) -> tuple[Cache, list[Entries]]:
    """A cache that has read all, and its layers with all queries."""
    base = Cache(H2O())
    read(net, base, ids)
    return base, [layer.state.judged() for layer in base.layers]


def values_error(layers: list[Entries]) -> None:
    """(a) of 061: squared error of values, summed over layers, and bytes of what is not a code."""
    for bits in (4, 2):
        names = ("plain", "separable", "group")
        wrong, beside = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        for x in layers:
            shown, ones = x.shown(), torch.ones_like(x.values[:, :, 0].float())
            made = {
                "plain": [by_token(x.values, shown, bits, ones, 0, joined=True)],
                "separable": [by_token(x.values, shown, bits, factors(x, False)[0], 0, joined=True)],
                "group": list(tokenwise(x, bits, Balance(ones, ones, None, None), 32, 0).values),
            }  # fmt: skip
            for name, parts in made.items():
                back = torch.cat([p.numbers() for p in parts], 3)
                wrong[name] += float((back - x.values.float()).square().sum())
                used = {"a", "m"} | ({"s"} if name == "separable" else set())
                beside[name] += sum(t.nbytes for p in parts for k, t in p.tensors().items() if k in used)
        error, bytes_ = (f"{bits} bits, channel-separable: {what}" for what in ("error", "parameter bytes"))
        say("061a", f"{error} / plain tokenwise", wrong["separable"] / wrong["plain"], "<= 0.8")
        say("061a", f"{error} / groups of 32", wrong["separable"] / wrong["group"])
        say("061a", f"{bytes_} / groups of 32", beside["separable"] / beside["group"], "<= 1")


def saliency(layers: list[Entries]) -> None:
    """(c) of 061: the ranking of a tenth of the queries beside that of all, and its time."""
    some, every = ZipCache(), ZipCache(probes=1.0)
    took, share = {some: 0.0, every: 0.0}, {0.6: 0.0, 0.2: 0.0}
    early = dict.fromkeys((True, False), 0.0)
    for x in layers:
        scores = {}
        for m in (some, every):
            asked, start = x.asked(*m.asks(x.tokens)), time.process_time()
            scores[m] = m.score(asked)
            took[m] += time.process_time() - start
        for r in share:
            tops = [s.topk(int(r * x.count), -1).indices for s in scores.values()]
            marks = [torch.zeros(x.shape).scatter_(2, t, 1.0) for t in tops]
            share[r] += float((marks[0] * marks[1]).sum() / marks[0].sum()) / len(layers)
        for normal in early:
            top = (
                ZipCache(normalise=normal).score(x.asked(*some.asks(x.tokens))).topk(x.count // 5, -1).indices
            )
            early[normal] += float((top < x.count // 2).float().mean()) / len(layers)
    say("061c", "overlap of the probes' best 60 % with those of all queries", share[0.6], ">= 0.8")
    say("061c", "overlap of the best 20 %", share[0.2])
    say("061c", "saliency's time / that of all queries", took[some] / took[every], "<= 0.2")
    say("061b", "of the best fifth by accumulated sums, share in the first half", early[False])
    say("061b", "of the best fifth by normalised sums, share in the first half", early[True])


def arms() -> dict[str, tuple[Any, Any]]:
    summed = {"normalise": False}
    found = {
        "paper 4/2, r=.6": paper(),
        "paper 4/2, r=.6, all queries": paper(probes=1.0),
        "paper 4/2, r=.6, accumulated": paper(**summed),
        "paper 4/2, r=.2": paper(ratio=0.2),
        "paper 4/2, r=.2, accumulated": paper(ratio=0.2, **summed),
        "paper 4/2, r=.5": paper(ratio=0.5),
        "uniform 3": paper(high=3, ratio=1.0),
        "uniform 2": paper(ratio=0.0),
        "RTN 4": RTN,
        "RTN 3": RTN.but(low=3),
        "RTN 4, balanced": RTN.but(balance=True),
    }
    return {name: (m, None) for name, m in found.items()}


def asked(net: Any, base: Cache, hay: Any) -> dict[str, dict[str, float]]:
    """Every arm on one context: bytes, loss of what follows, and the late answers."""
    rows: dict[str, dict[str, float]] = {}
    todo: dict[str, tuple[Any, Any]] = {"full": (H2O(), "100%"), **arms()}
    while todo:
        name = next(iter(todo))
        small = base.compressed(*todo.pop(name))
        hits = [found(answer(net, small.copy(), p.question + p.stem), p)[0] for p in hay.probes]
        half = len(hits) // 2
        rows[name] = {"bytes": small.nbytes, "nll": continuation(net, small, hay.after[:256])}
        rows[name] |= {
            "late": sum(hits) / len(hits),
            "late, second half": sum(hits[half:]) / (len(hits) - half),
        }
        same = {"RTN 4": ("MiKV", "H2O"), "uniform 3": ("ZipCache",)}.get(name, ())
        for other in same:
            method = {"MiKV": MiKV(), "H2O": H2O(), "ZipCache": ZipCache()}[other]
            todo[f"{other} in the bytes of {name}"] = (method, int(small.nbytes))
    return rows


def told(every: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over contexts, and the lines that they decide."""
    mean = {n: {k: sum(r[n][k] for r in every) / len(every) for k in every[0][n]} for n in every[0]}
    for row in mean.values():
        row["perplexity"] = math.exp(row.pop("nll"))
        row["ratio"] = row["perplexity"] / mean["full"].get("perplexity", math.nan)
        row["compression"] = mean["full"]["bytes"] / row["bytes"]
    print(f"\n{'arm':36} compression  perplexity     late  second half")
    for n, r in mean.items():
        print(f"{n:36} {r['compression']:11.2f}  {r['perplexity']:6.2f} x{r['ratio']:.3f} {r['late']:6.2f}"
              f" {r['late, second half']:8.2f}")  # fmt: skip
    more = {n: r["ratio"] - 1 for n, r in mean.items()}
    mixed, three = more["paper 4/2, r=.6"], more["uniform 3"]
    what = "increase of perplexity,"
    say("061b", f"{what} 4/2 at r=.6 / uniform 3 bits", mixed / three, "<= 0.5")
    say(
        "061b",
        f"{what} 4/2 at r=.5, as many bytes / uniform 3 bits",
        more["paper 4/2, r=.5"] / three,
        "<= 0.5",
    )
    ours = more["ZipCache in the bytes of uniform 3"]
    say("061b", f"{what} our settings, as many bytes / uniform 3 bits", ours / three, "<= 0.5")
    say("061b", f"{what} 4/2 at r=.6 / uniform 2 bits", mixed / more["uniform 2"], "<= 0.25")
    for r, bar in ((".6", ""), (".2", ">= 0.1")):
        gap = [mean[f"paper 4/2, r={r}{w}"]["late, second half"] for w in ("", ", accumulated")]
        say("061b", f"late answers, second half, r={r}: normalised less accumulated", gap[0] - gap[1], bar)
    near, tenth = mean["paper 4/2, r=.6, all queries"]["ratio"], mean["paper 4/2, r=.6"]
    say("061c", "perplexity with the probes / with all queries", tenth["ratio"] / near, "<= 1.01")
    say("061d", "compression of real arrays, r=.6, beside 16 bits", tenth["compression"], ">= 4.5")
    kept = mean["MiKV in the bytes of RTN 4"]["perplexity"]
    rounded, evicted = mean["RTN 4"], mean["H2O in the bytes of RTN 4"]
    say("103", "bytes of RTN at 4 bits, a grid a token and head, of 16 bits", 1 / rounded["compression"])
    say("103", "perplexity, MiKV / RTN of as many bytes", kept / rounded["perplexity"], "<= 1")
    say("103", "perplexity, MiKV / H2O of as many bytes", kept / evicted["perplexity"], "<= 1")
    return mean


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--contexts", type=int, default=4, help="texts of ten facts each")
    parse.add_argument("--quick", action="store_true", help="one text, and few steps and questions")
    told_to = parse.parse_args()
    count = 1 if told_to.quick else told_to.contexts
    torch.set_num_threads(1)
    start, source = time.process_time(), Model.read("smollm2")
    net, tokenizer, sources = source.build(torch.bfloat16), source.tokenizer(), list(texts().values())
    every = []
    for i in range(count):
        hay = haystack(tokenizer, part(sources[i % len(sources)], i), TOKENS, seed=i, after=320)
        base, layers = reader(net, hay.context)
        if not i:
            values_error(layers)
            saliency(layers)
            products(layers, say)
            exactness(base, layers, say)
            del layers
            gap, steps = (20, 61) if told_to.quick else (100, 301)
            streaming(net, base, paper(gap=gap), hay.after[:steps], say)
        every.append(asked(net, base, hay))
    table = told(every)
    retrieval(net, tokenizer, *((2, 4) if told_to.quick else (6, 8)), say)
    took = time.process_time() - start
    facts = provenance(
        model="SmolLM2-135M-Instruct, bfloat16", threads=1, tokens=TOKENS, contexts=count, cpu_seconds=took
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"lines": LINES, "arms": table, "provenance": facts}, indent=1) + "\n")
    met = [line["met"] for line in LINES if line["met"] is not None]
    print(f"\n{sum(met)} of {len(met)} bars met, {took:.0f} CPU seconds; written to {OUT}")


if __name__ == "__main__":
    main()
