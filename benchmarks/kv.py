"""KV caches side by side: recall, perplexity, bytes and decode speed on SmolLM2, one run, real text.

    python benchmarks/kv.py [--contexts 6] [--kvpress-python /path/to/python] [--quick] [--only decoding]

Protocol: ten facts in 2,048 tokens of text after the chat header; six candidates a question (chance 0.17). "recall":
the question is read before the cache shrinks; "late": all questions are put to a cache that shrank without them;
"first": the question stands before the text, for a few of the ten. "known": over the facts that the whole cache
answers; "outside": over the known that a cache of the latest tokens would not hold. "copy": tokens of an earlier
passage given back. holdall/kv/asking.py tells more.
Writes benchmarks/results/kv.json. kvpress runs in its own interpreter, on the same token ids and weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from holdall.dropins.transformers import Cache
from holdall.kv import Random, Recent, SnapKV
from holdall.kv.asking import Found, Subjects, read, reading_cost, recall, summary
from holdall.kv.needles import SHOWN, Haystack, haystack
from holdall.report import Report, provenance
from holdall.weights.model import Model
from holdall.weights.texts import held_out_text

HERE = Path(__file__).parent
TEXTS = HERE.parent.parent / "shared" / "data" / "text"
NAMES = ("wikitext2-test-raw.txt", "moby-dick.txt", "war-and-peace.txt")
SHARES = {"50%": 0.5, "25%": 0.25, "10%": 0.1, "5%": 0.05}
TOKENS = 2048
FIRST = 4  # questions of each text that are also asked before it


def texts() -> dict[str, str]:
    found = {n: (TEXTS / n).read_text(errors="replace") for n in NAMES if (TEXTS / n).exists()}
    return found or {"Python's language reference": held_out_text()}


def haystacks(tokenizer: Any, count: int) -> list[Haystack]:
    sources = list(texts().values())
    return [haystack(tokenizer, part(sources[i % len(sources)], i), TOKENS, seed=i) for i in range(count)]


def part(text: str, i: int) -> str:
    """A tenth of a long text, so that tokenising stays quick; another tenth for each context."""
    size = max(200_000, len(text) // 10)
    start = (i * size) % max(1, len(text) - size)
    return text[start : start + size]


def subjects() -> Subjects:
    made: Subjects = {}
    for share in SHARES:
        made |= {f"{m.name} {share}": (m, share) for m in (SnapKV(), Random(), Recent())}
    for share in ("10%", "5%"):
        made[f"snapkv unpooled {share}"] = (SnapKV(kernel=1), share)
    return made


def kvpress(python: str, source: Model, hays: list[Haystack]) -> list[Found]:
    with tempfile.TemporaryDirectory() as folder:
        where = str(Path(folder) / "model")
        source.write(where)
        contexts = [told(h) for h in hays]
        task = {"model": where, "contexts": contexts, "shares": SHARES, "windows": [32, 64]}
        script = str(HERE / "peers" / "kvpress_recall.py")
        done = subprocess.run(
            [python, script], input=json.dumps(task), capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"kvpress failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def told(hay: Haystack) -> dict[str, Any]:
    """All that another program needs to know of a haystack."""
    first = [{"prompt": hay.asked_first(p), "probe": dataclasses.asdict(p)} for p in hay.some(FIRST)]
    return {**dataclasses.asdict(hay), "first": first, "passages": hay.passages(), "shown": SHOWN}


def recalls(source: Model, net: Any, count: int, python: str | None) -> dict[str, dict[str, float]]:
    hays = haystacks(source.tokenizer(), count)
    every: list[Found] = []
    for i, hay in enumerate(hays):
        start = time.process_time()
        every.append(recall(net, hay, subjects(), SnapKV(), FIRST))
        print(f"context {i + 1} of {count}: {time.process_time() - start:.0f} CPU seconds", flush=True)
    rows = summary(every)
    if python:
        rows |= summary(kvpress(python, source, hays), whole="kvpress full")
    else:
        print("kvpress: skipped (give --kvpress-python, an interpreter that has kvpress 0.5.5)")
    return {"full": rows.pop("full"), **rows}


def reading(net: Any, ids: list[int]) -> dict[str, dict[str, float]]:
    """Peak memory and CPU seconds of reading one prompt; the least of three runs, taken in turn."""
    ways: dict[str, tuple[Any, Any]] = {
        "full": (None, None),
        "snapkv 10%": (SnapKV(), "10%"),
        "snapkv 25%": (SnapKV(), "25%"),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            runs[name].append(reading_cost(net, ids, *way))
    return {name: {k: min(r[k] for r in found) for k in found[0]} for name, found in runs.items()}


def decoding(net: Any, ids: list[int], lengths: list[int]) -> dict[str, dict[str, float]]:
    """CPU milliseconds of a decode step and bytes of the cache, by context length."""
    rows: dict[str, dict[str, float]] = {}
    for length in lengths:
        base = Cache(SnapKV())
        read(net, base, ids[:length])
        plain = DynamicCache()
        for i, layer in enumerate(base.layers):
            plain.update(layer.keys, layer.values, i)
        held: dict[str, Any] = {"DynamicCache": plain, "full": base.copy()}
        for share in ("25%", "10%", "12MB"):
            held[f"snapkv {share}"] = base.compressed(SnapKV(), share, floor=64)
        sizes = {n: c.nbytes if isinstance(c, Cache) else held["full"].nbytes for n, c in held.items()}
        for name, took in steps(net, held, length).items():
            rows[f"{name} at {length}"] = {"bytes": sizes[name], "ms_a_token": took}
    return rows


def steps(net: Any, held: dict[str, Any], length: int, count: int = 24) -> dict[str, float]:
    """Median CPU milliseconds of a step of each cache, in turns, so that a busy machine slows all alike."""
    took: dict[str, list[float]] = {name: [] for name in held}
    with torch.inference_mode():
        for i in range(count):
            for name, cache in held.items():
                start = time.process_time()
                net(
                    torch.tensor([[100 + i]]),
                    past_key_values=cache,
                    position_ids=torch.tensor([[length + i]]),
                )
                took[name].append(time.process_time() - start)
    return {name: 1000 * sorted(t)[len(t) // 2] for name, t in took.items()}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--contexts", type=int, default=6, help="texts of ten facts each")
    parse.add_argument("--kvpress-python", help="interpreter with kvpress 0.5.5")
    parse.add_argument("--only", choices=("decoding", "reading", "recall"), help="one table; the others stay")
    parse.add_argument("--quick", action="store_true", help="one context, no speed")
    parse.add_argument("--out", type=Path, default=HERE / "results" / "kv.json")
    asked = parse.parse_args()
    source = Model.read("smollm2")
    net = source.build()
    count = 1 if asked.quick else asked.contexts
    asked.out.parent.mkdir(exist_ok=True)
    wanted = {asked.only} if asked.only else {"recall"} if asked.quick else {"decoding", "reading", "recall"}
    tables: dict[str, Any] = json.loads(asked.out.read_text()) if asked.only and asked.out.exists() else {}
    ids = source.tokenizer().encode(part(next(iter(texts().values())), 3))[:4096]
    if "decoding" in wanted:
        show(tables, "decoding", decoding(net, ids, [512, 1024, 2048, 4096]), None, asked.out)
    if "reading" in wanted:
        show(tables, "reading", reading(net, ids[:TOKENS]), "full", asked.out)
    if "recall" in wanted:
        show(
            tables,
            "recall",
            recalls(source, net, count, asked.kvpress_python),
            "full",
            asked.out,
            facts=10 * count,
            facts_first=FIRST * count,
        )
    print(f"\nwritten to {asked.out}")


def show(
    tables: dict[str, Any],
    name: str,
    rows: dict[str, dict[str, float]],
    baseline: str | None,
    out: Path,
    **more: Any,
) -> None:
    """Print a table, and write all that there are so far."""
    facts = provenance(
        model="SmolLM2-135M-Instruct, float32", threads=torch.get_num_threads(), tokens=TOKENS, **more
    )
    report = Report(rows, baseline=baseline, units={"ms_a_token": "ms"}, provenance=facts)
    tables[name] = report.to_dict()
    print("\n" + report.as_table(title=name), flush=True)
    out.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
