"""The lines of three cards, each with its bar, what was measured, and whether it is met; `kv_evicting.py` measures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Figures = dict[str, dict[str, float]]
Line = dict[str, Any]


def line(card: str, says: str, bar: str, figure: str, met: bool) -> Line:
    return {"card": card, "line": says, "bar": bar, "figure": figure, "met": bool(met)}


def judged(
    figures: Figures,
    facts: Figures,
    seen: Sequence[dict[str, Any]],
    spread: Sequence[float],
    made: Sequence[tuple[float, float, float]],
) -> list[Line]:
    """figures and facts by arm; seen: of each text; spread: of each layer; made: of the synthetic stack."""
    lines = prefix_budgets(figures) + prefix_layers(seen, made) + prefix_quality(figures, facts)
    lines += merger_keys(seen, spread) + merger_quality(figures, facts)
    return lines + ems_perplexity(figures) + ems_facts(figures, facts) + ems_errors(figures, seen)


def prefix_budgets(figures: Figures) -> list[Line]:
    parts = ("uniform", "pyramid", "random split", "paper's", "online", "offline")
    off = {
        f"{n} {b}": figures[f"split {n} {b}"]["share"] / (float(b[:-1]) / 100) - 1
        for n in parts for b in ("10%", "20%", "40%")
    }  # fmt: skip
    name = max(off, key=lambda n: abs(off[n]))
    told = f"furthest off: {name}, {off[name]:+.2%}"
    return [line("078 PrefixKV", "bytes of all arms", "budget +-0.5 %", told, abs(off[name]) <= 0.005)]


def prefix_layers(seen: Sequence[dict[str, Any]], made: Sequence[tuple[float, float, float]]) -> list[Line]:
    card = "078 PrefixKV"
    low, mean, even = (np.mean([f(s) for s in seen]) for f in (
        lambda s: min(s["ours"]), lambda s: np.mean(s["ours"]), lambda s: min(s["even"])))  # fmt: skip
    gini = np.mean([s["gini"] for s in seen], 0)
    off, entries = max(s["search"][0] for s in seen), max(abs(s["search"][1]) for s in seen)
    grows = [ours - equal for _, ours, equal in made]
    exact_ = max(abs(ours - 0.5) for _, ours, _ in made)
    told = ", ".join(f"spread {s:g}: {o:.2f} (equal {e:.2f})" for s, o, e in made)
    rises = all(a < b for a, b in pairwise(grows)) and exact_ < 0.01
    first = int(np.mean([s["entries"][0] for s in seen]))
    return [
        line(card, "the paper's split: poorest layer's share at 20 %", "mean less .02", f"{low:.3f} of mean {mean:.3f}",
             mean - low <= 0.02),
        line(card, "poorest layer, equal parts", ".10 below ours", f"{even:.3f} against {low:.3f}", low - even >= 0.1),
        line(card, "synthetic stack: gain grows with the spread, optimum .50", "rises, exact", told, rises),
        line(card, "bisection against 10,000 shares tried", "same", f"share off {off:.1e}, {entries} entries of all",
             off <= 1e-3),
        line(card, "Gini of a layer's scores", "none",
             f"{gini.min():.2f} to {gini.max():.2f}; layer 0 gets {first} entries", True),
    ]  # fmt: skip


def prefix_quality(figures: Figures, facts: Figures) -> list[Line]:
    card, full, lines = "078 PrefixKV", figures["full"]["perplexity"], []
    for b in ("10%", "20%", "40%"):
        more = {n: figures[f"split {n} {b}"]["perplexity"] / full - 1
                for n in ("uniform", "pyramid", "random split", "paper's", "online", "offline")}  # fmt: skip
        told = ", ".join(f"{n} {v:+.1%}" for n, v in more.items())
        bar = "a quarter less than uniform" if b == "20%" else "less than uniform"
        met = more["online"] <= (0.75 if b == "20%" else 1) * more["uniform"]
        lines.append(line(card, f"perplexity at {b}", bar, told, met))
        near = abs(more["offline"] - more["online"]) <= 0.1 * more["online"]
        figure = f"{more['offline']:+.1%} against {more['online']:+.1%}"
        lines.append(line(card, f"calibrated at {b}", "online's increase +-10 %", figure, near))
    for n in ("snapkv", "ems"):
        for b in ("6.25%", "20%"):
            arms = {
                "paper's": f"paper's split over {n} {b}",
                "ours": f"split over {n} {b}",
                "none": f"{n} {b}",
            }
            more = {a: figures[arm]["perplexity"] / full - 1 for a, arm in arms.items()}
            told = ", ".join(f"{a} {v:+.1%}" for a, v in more.items())
            lines.append(line(card, f"perplexity at {b}, split over {n}", "no worse than none", told,
                              more["ours"] <= more["none"]))  # fmt: skip
    arms = {"paper's": "paper's split over snapkv", "ours": "split over snapkv", "none": "snapkv"}
    hits = {a: facts[f"{arm} 6.25%"]["recall_known"] for a, arm in arms.items()}
    told = ", ".join(f"{a} {v:.2f}" for a, v in hits.items())
    met = hits["ours"] >= hits["none"]
    return [*lines, line(card, "facts at 6.25%, split over snapkv", "no fewer than none", told, met)]


def merger_keys(seen: Sequence[dict[str, Any]], spread: Sequence[float]) -> list[Line]:
    card = "008 KVMerger"
    keys, values = np.mean([s["above"] for s in seen], 0).T
    count, steady = int((keys >= 0.1).sum()), int((np.array(spread) < 0.1).sum())
    told = f"{count} of {len(keys)} layers; mean {keys.mean():.2f}"
    return [
        line(card, "cosine of neighbours' keys, above that of any two", ".10 in most layers", told,
             count > len(keys) / 2),
        line(card, "the same of values", "much less", f"mean {values.mean():.2f}", values.mean() < keys.mean() / 2),
        line(card, "share that merges at eps .75, spread over texts", "below 10 % of the mean",
             f"{steady} of {len(spread)} layers; median {np.median(spread):.1%}", steady == len(spread)),
    ]  # fmt: skip


def merger_quality(figures: Figures, facts: Figures) -> list[Line]:
    card, lines = "008 KVMerger", []
    for b in ("50%", "35%"):
        kl = {n: figures[f"merging {n} {b}"]["kl"]
              for n in ("random", "streaming", "pivot only", "h2o", "even", "kvmerger")}  # fmt: skip
        for rival in ("random", "streaming", "pivot only", "h2o"):
            told = f"{kl['kvmerger']:.4f} against {kl[rival]:.4f}"
            bar = "none" if rival == "h2o" else "below it"
            lines.append(line(card, f"KL at {b}, {rival}", bar, told, kl["kvmerger"] < kl[rival]))
        told = f"{kl['even']:.4f}"
        lines.append(line(card, f"KL at {b}, even weights and log size", "none", told, True))
    ours, theirs = (facts[f"{n} 50%"]["recall_outside"] for n in ("kvmerger", "streaming"))
    told = f"{ours:.2f} against {theirs:.2f}"
    lines.append(line(card, "facts of the first half, at 50 %", "at least streaming", told, ours >= theirs))
    same = figures["eps above 1"]["same"] == 1
    return [
        *lines,
        line(card, "eps above 1: logits", "the whole cache's bits", "equal" if same else "differ", same),
    ]


def ems_perplexity(figures: Figures) -> list[Line]:
    card, lines, better = "088 EMS", [], 0
    for b in ("6.25%", "12.5%", "25%"):
        of = {n: figures[f"{n} {b}"]["perplexity"] for n in ("ems", "streaming", "h2o", "snapkv", "dropped")}
        least = min(of[n] for n in of if n != "ems")
        better += of["ems"] < of["dropped"]
        told = ", ".join(f"{n} {v:.2f}" for n, v in of.items())
        lines.append(line(card, f"perplexity at {b}", "least of all +.5 %", told, of["ems"] <= 1.005 * least))
        if b != "25%":
            gain = 1 - of["ems"] / of["streaming"]
            lines.append(line(card, f"below streaming at {b}", "10 %", f"{gain:.1%}", gain >= 0.1))
    return [
        *lines,
        line(card, "merging against dropping", "better at 2 of 3", f"at {better} of 3", better >= 2),
    ]


def ems_facts(figures: Figures, facts: Figures) -> list[Line]:
    card, lines = "088 EMS", []
    for b in ("6.25%", "12.5%"):
        ours, theirs = facts[f"ems {b}"]["recall_known"], facts[f"streaming {b}"]["recall_known"]
        told = f"{ours:.2f}, streaming {theirs:.2f}"
        met = ours >= 0.85 and theirs < 0.3
        lines.append(line(card, f"facts at {b}, of the known", ".85 where streaming < .3", told, met))
        both = {n: (figures[f"{n} {b}"]["perplexity"], facts[f"{n} {b}"]["recall_known"])
                for n in ("ems", "global", "local")}  # fmt: skip
        best = all(both["ems"][0] <= both[n][0] and both["ems"][1] >= both[n][1] for n in ("global", "local"))
        told = ", ".join(f"{n} {p:.2f} and {r:.2f}" for n, (p, r) in both.items())
        lines.append(
            line(card, f"both scores at {b}: perplexity and facts", "at least either, in both", told, best)
        )
    return lines


def ems_errors(figures: Figures, seen: Sequence[dict[str, Any]]) -> list[Line]:
    card, shares = "088 EMS", ("6.25%", "12.5%", "25%")
    ours, dropped = ([float(np.mean([s["errors"][f"{n} {b}"] for s in seen])) for b in shares]
                     for n in ("ems", "dropped"))  # fmt: skip
    same = figures["ems all fits"]["same"] == 1
    pairs = list(zip(shares, ours, dropped, strict=True))
    return [
        line(card, "error of attention's output falls", "with the budget",
             ", ".join(f"{b} {o:.3f}" for b, o, _ in pairs), ours == sorted(ours, reverse=True)),
        line(card, "the same without merging", "above", ", ".join(f"{b} {d:.3f}" for b, _, d in pairs),
             all(o < d for _, o, d in pairs)),
        line(card, "all fits: logits", "the whole cache's bits", "equal" if same else "differ", same),
    ]  # fmt: skip


def table(lines: Sequence[Line]) -> str:
    """Markdown."""
    rows = ["| card | line | bar | measured | met |", "|---|---|---|---|---|"]
    for x in lines:
        met = "" if x["bar"] == "none" else "yes" if x["met"] else "**no**"
        rows.append(f"| {x['card']} | {x['line']} | {x['bar']} | {x['figure']} | {met} |")
    return "\n".join(rows)
