"""Documents read once and asked together (`kv.ape`, paper 046): answers, first token, bytes, and beyond the window.

    python benchmarks/contexts.py [--shelves 10] [--quick]

SmolLM2-135M-Instruct in bfloat16. A shelf is ten documents of real text, 2,048 tokens, with one fact in each, and ten
questions (holdall/kv/shelf.py). Temperature and scale are chosen on 20 questions of another text than those of the
figures. "sequential" reads all documents in a row; "parallel" is T = s = 1, "no prefix" that without a shared prefix.
The first token's CPU seconds are those of a question, and of reading before it where nothing was stored. Beyond the
window: one shelf's documents among others without facts, more tokens than the model has positions.
Each line is printed with the card's bar, met or not. Writes benchmarks/results/contexts.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from kv import part, texts

from holdall.errors import BadInput
from holdall.kv import APE
from holdall.kv.contexts import Contexts, cache_of
from holdall.kv.documents import Documents, window_of
from holdall.kv.shelf import Shelf, asked, encoded, sequential, shelf
from holdall.report import provenance
from holdall.weights.model import Model
from holdall.weights.texts import calibration_text

HERE = Path(__file__).parent
OUT = HERE / "results" / "contexts.json"
OTHER = HERE.parent.parent / "shared" / "data" / "text" / "wikitext2-valid.txt"
PLAIN = APE(temperature=1.0, scale=1.0)
LINES: list[dict[str, Any]] = []


def say(what: str, value: float, bar: str = "") -> None:
    sign, most = bar.split() if bar else ("", "nan")
    met = None if not bar else value <= float(most) if sign == "<=" else value >= float(most)
    LINES.append({"line": what, "figure": value, "bar": bar, "met": met})
    told = "" if met is None else f"  (bar {bar}: {'met' if met else 'NOT met'})"
    print(f"{what}: {value:.4g}{told}", flush=True)


def tuned(net: Any, tokenizer: Any, grid: tuple[float, ...]) -> APE:
    """The temperature and the scale under which the answers to 20 questions are likeliest."""
    text = OTHER.read_text(errors="replace") if OTHER.exists() else calibration_text()
    held_out = []
    for seed in (100, 101):
        found = shelf(tokenizer, part(text, seed), seed=seed)
        contexts = encoded(net, found, PLAIN)[0]
        held_out += [(contexts, p.question + p.stem, [p.words[p.right]]) for p in found.probes]
    return APE().tuned(net, held_out, grid)


def seen_by(contexts: Contexts, method: APE) -> Contexts:
    """The same keys and values under another temperature and scale."""
    return dataclasses.replace(contexts, temperature=method.temperature, power=method.power)


def one(net: Any, found: Shelf, method: APE) -> dict[str, list[tuple[float, ...]]]:
    """(found, greedily, loss, CPU seconds to the first token, bytes) of each question, in each arm."""
    answers, took = sequential(net, found)
    rows: dict[str, list[tuple[float, ...]]] = {"sequential": [(*a[:3], took + a[3], 0.0) for a in answers]}
    plain, size = encoded(net, found, PLAIN)
    bare, less = encoded(net, found, PLAIN.but(prefix="none"))
    for name, contexts, nbytes in (
        ("parallel", plain, size), ("no prefix", bare, less), ("ape", seen_by(plain, method), size),
    ):  # fmt: skip
        layers = contexts.layers(dtype=net.dtype)
        rows[name] = [(*asked(net, cache_of(layers), p), float(nbytes)) for p in found.probes]
    return rows


def quality(net: Any, tokenizer: Any, method: APE, shelves: int) -> dict[str, dict[str, float]]:
    sources, rows = list(texts().values()), {}
    for i in range(shelves):
        for name, found in one(
            net, shelf(tokenizer, part(sources[i % len(sources)], i), seed=i), method
        ).items():
            rows.setdefault(name, []).extend(found)
    names = ("found", "greedy", "nll", "first_token_cpu_seconds", "bytes")
    mean = {
        n: dict(zip(names, (sum(c) / len(c) for c in zip(*r, strict=True)), strict=True))
        for n, r in rows.items()
    }
    for name, row in mean.items():
        print(f"{name:12}", {k: round(v, 3) for k, v in row.items()}, flush=True)
    ape, row, plain, bare = (mean[n] for n in ("ape", "sequential", "parallel", "no prefix"))
    say("2 found, ape less parallel", ape["found"] - plain["found"])
    say("2 loss of the answer, ape / parallel", ape["nll"] / plain["nll"], "<= 0.97")
    say("2 found, ape / sequential", ape["found"] / row["found"], ">= 0.9")
    say("2 loss of the answer, no prefix / parallel", bare["nll"] / plain["nll"], ">= 1.03")
    item = 2 * net.config.num_hidden_layers * net.config.num_key_value_heads * net.config.head_dim
    say("3 bytes of the file / 2 L H D tokens in 16 bits", ape["bytes"] / (2 * item * 2048), "<= 1.02")
    return mean


def speed(net: Any, tokenizer: Any, method: APE) -> None:
    """CPU seconds from a question to its first token: documents read before it, and documents that were stored."""
    for tokens in (2048, 4096):
        found = shelf(tokenizer, part(next(iter(texts().values())), 7), tokens, seed=7)
        contexts = seen_by(encoded(net, found, PLAIN)[0], method)
        took: list[list[float]] = [[], []]
        for probe in found.probes[:3]:
            answers, reading = sequential(
                net, dataclasses.replace(found, hay=dataclasses.replace(found.hay, probes=[probe]))
            )
            took[0].append(reading + answers[0][3])
            start = time.process_time()
            cache = contexts.cache(dtype=net.dtype)
            took[1].append(time.process_time() - start + asked(net, cache, probe)[3])
        print(f"{tokens} tokens: first token after {min(took[0]):.3f} and {min(took[1]):.3f} CPU seconds")
        say(f"3 first token with {tokens} tokens, sequential / ape", min(took[0]) / min(took[1]), ">= 5")


def beyond(net: Any, tokenizer: Any, method: APE) -> None:
    """More tokens than the model has positions: no sequential reading, and facts are still found."""
    window = window_of(net)
    if window is None:
        return
    source = next(iter(texts().values()))
    found = shelf(tokenizer, part(source, 3), seed=3)
    rest = tokenizer.encode(part(source, 8))[: window - 1024]
    more = {f"{i}.more": rest[i : i + 256] for i in range(0, len(rest), 256)}
    every = Documents(
        texts={**found.documents, **more},
        model="measured",
        load=lambda: net,
        header=found.hay.context[: found.hay.header],
    )
    contexts = seen_by(PLAIN.decode(PLAIN.encode(every)), method)
    layers = contexts.layers(dtype=net.dtype)
    hits = [asked(net, cache_of(layers), p)[0] for p in found.probes]
    say("4 tokens of all contexts / the model's window", contexts.tokens / window, ">= 1.1")
    say("4 last position used / the model's window", (contexts.start + 64) / window, "<= 1")
    say("4 found beyond the window (chance 0.17)", sum(hits) / len(hits), ">= 0.5")
    row = [t for ids in every.texts.values() for t in ids]
    try:
        every.read(row)
        refused = 0
    except BadInput:
        refused = 1
    say("4 reading them in a row is refused", refused, ">= 1")


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--shelves", type=int, default=10, help="shelves of ten questions each")
    parse.add_argument("--quick", action="store_true", help="one shelf, and few temperatures")
    told = parse.parse_args()
    torch.set_num_threads(1)
    start, source = time.process_time(), Model.read("smollm2")
    net, tokenizer = source.build(torch.bfloat16), source.tokenizer()
    method = tuned(net, tokenizer, (1.0, 0.8) if told.quick else (1.0, 0.9, 0.8, 0.7, 0.6))
    print(f"chosen: temperature {method.temperature}, scale {method.scale}", flush=True)
    table = quality(net, tokenizer, method, 1 if told.quick else told.shelves)
    speed(net, tokenizer, method)
    beyond(net, tokenizer, method)
    took = time.process_time() - start
    facts = provenance(
        model="SmolLM2-135M-Instruct, bfloat16", threads=1, method=method.to_dict(),
        questions=10 * (1 if told.quick else told.shelves), cpu_seconds=took,
    )  # fmt: skip
    OUT.write_text(json.dumps({"lines": LINES, "arms": table, "provenance": facts}, indent=1) + "\n")
    print(f"{took:.0f} CPU seconds; written to {OUT}")


if __name__ == "__main__":
    main()
