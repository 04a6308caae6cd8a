"""KV caches side by side: recall, perplexity, bytes, reading and decode speed on SmolLM2, one run, real text.

    python benchmarks/kv.py [--contexts 6] [--jobs 2] [--methods snapkv zipcache ...] [--first 4] [--only recall]
                            [--kvpress-python /path/to/python] [--quick]

Protocol: ten facts in 2,048 tokens of text after the chat header; six candidates a question (chance 0.17). "recall":
the question is read before the cache shrinks; "late": all questions are put to a cache that shrank without them;
"first" (with --first N): the question stands before the text, for N of the ten. "known": over the facts that the whole
cache answers; "outside": over the known that a cache of the latest tokens would not hold. "copy": tokens of an earlier
passage given back. holdall/kv/asking.py tells more. The model is in bfloat16, so shares are of 16-bit bytes.
Writes benchmarks/results/kv.json. kvpress and transformers' quantised cache run in an interpreter of their own, on the
same token ids and weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from kv_speed import decoding, reading

from holdall.kv import EMS, H2O, Duo, KVMerger, KVSelector, MiKV, PrefixKV, Random, Recent, SnapKV, ZipCache
from holdall.kv.asking import Found, Subjects, recall, summary
from holdall.kv.needles import SHOWN, Haystack, haystack
from holdall.report import Report, provenance
from holdall.weights.model import Model
from holdall.weights.texts import held_out_text

HERE = Path(__file__).parent
TEXTS = HERE.parent.parent / "shared" / "data" / "text"
NAMES = ("wikitext2-test-raw.txt", "moby-dick.txt", "war-and-peace.txt")
TOKENS = 2048
LOW = ("25%", "10%", "5%")
METHODS: dict[str, tuple[KVSelector, tuple[str, ...]]] = {
    "snapkv": (SnapKV(), LOW),
    "snapkv unpooled": (SnapKV(kernel=1), ("10%", "5%")),
    "ems": (EMS(), LOW),
    "prefixkv": (PrefixKV(), LOW),
    "prefixkv over ems": (PrefixKV(inner=EMS()), LOW),
    "kvmerger": (KVMerger(), LOW),
    "zipcache": (ZipCache(), ("25%", "20%", "16%", "12%")),
    "duo": (Duo(), ("16%", "12%", "10%", "8%", "6%")),
    "zipcache over snapkv": (ZipCache(inner=SnapKV()), ("10%", "5%")),
    "zipcache over ems": (ZipCache(inner=EMS()), ("10%", "5%")),
    "mikv": (MiKV(), ("25%", "20%")),
    "h2o": (H2O(), LOW),
    "random": (Random(), LOW),
    "recent": (Recent(), LOW),
}
PEERS: dict[str, Any] = {
    "shares": {"25%": 0.25, "10%": 0.1, "5%": 0.05},
    "presses": {
        "snapkv": ("SnapKVPress", {"window_size": 32}),
        "tova": ("TOVAPress", {}),
        "expected attention": ("ExpectedAttentionPress", {}),
    },
    "kvzip": {"25%": 0.25, "12%": 0.12},
    "quantized": [4, 2],
}


def texts() -> dict[str, str]:
    found = {n: (TEXTS / n).read_text(errors="replace") for n in NAMES if (TEXTS / n).exists()}
    return found or {"Python's language reference": held_out_text()}


def context(tokenizer: Any, i: int) -> Haystack:
    sources = list(texts().values())
    return haystack(tokenizer, part(sources[i % len(sources)], i), TOKENS, seed=i)


def part(text: str, i: int) -> str:
    """A tenth of a long text, so that tokenising stays quick; another tenth for each context."""
    size = max(200_000, len(text) // 10)
    start = (i * size) % max(1, len(text) - size)
    return text[start : start + size]


def subjects(names: set[str]) -> Subjects:
    found = {f"{n} {share}": (m, share) for n, (m, shares) in METHODS.items() for share in shares}
    return {n: subject for n, subject in found.items() if not names or n.rsplit(" ", 1)[0] in names}


def kvpress(python: str, source: Model, hay: Haystack, first: int) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        where = str(Path(folder) / "model")
        source.write(where)
        task = {"model": where, "context": told(hay, first), **PEERS}
        script = str(HERE / "peers" / "kvpress_recall.py")
        done = subprocess.run(
            [python, script], input=json.dumps(task), capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"kvpress failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def told(hay: Haystack, first: int) -> dict[str, Any]:
    """All that another program needs to know of a haystack."""
    asked = [{"prompt": hay.asked_first(p), "probe": dataclasses.asdict(p)} for p in hay.some(first)]
    return {**dataclasses.asdict(hay), "first": asked, "passages": hay.passages(), "shown": SHOWN}


def one(i: int, asked: argparse.Namespace) -> Found:
    """All figures of one context, in a process of its own; from --parts where an earlier run left them there."""
    torch.set_num_threads(1)
    kept = asked.parts / f"context-{i}.json" if asked.parts else None
    if kept is not None and kept.exists():
        return json.loads(kept.read_text())
    source = Model.read("smollm2")
    hay = context(source.tokenizer(), i)
    start = time.process_time()
    net = source.build(torch.bfloat16)
    prepared = {n: (m.prepared(net), share) for n, (m, share) in subjects(set(asked.methods)).items()}
    found = recall(net, hay, prepared, H2O(), asked.first)
    print(f"context {i + 1}: {time.process_time() - start:.0f} CPU seconds", flush=True)
    if asked.kvpress_python:
        found |= kvpress(asked.kvpress_python, source, hay, asked.first)
    if kept is not None:
        kept.write_text(json.dumps(found))
    return found


def recalls(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    jobs = ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn"))
    with jobs:
        tasks = [jobs.submit(one, i, asked) for i in range(asked.contexts)]
        every = [task.result() for task in tasks]
    if not asked.kvpress_python:
        print("kvpress: skipped (give --kvpress-python, an interpreter that has kvpress 0.5.5 and quanto)")
    rows = summary(every)
    return {"full": rows.pop("full"), **rows}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--contexts", type=int, default=6, help="texts of ten facts each")
    parse.add_argument("--jobs", type=int, default=2, help="contexts at a time, each on one thread")
    parse.add_argument(
        "--methods", nargs="*", default=[], choices=METHODS, help="only these; rows of others stay"
    )
    parse.add_argument(
        "--first", type=int, default=0, help="questions of each text that also stand before it"
    )
    parse.add_argument("--kvpress-python", help="interpreter with kvpress 0.5.5 and optimum-quanto")
    parse.add_argument(
        "--parts", type=Path, help="folder that keeps each context, to go on after an interruption"
    )
    parse.add_argument("--only", choices=("decoding", "reading", "recall"), help="one table; the others stay")
    parse.add_argument("--quick", action="store_true", help="one context, no speed")
    parse.add_argument("--out", type=Path, default=HERE / "results" / "kv.json")
    asked = parse.parse_args()
    asked.contexts = 1 if asked.quick else asked.contexts
    asked.out.parent.mkdir(exist_ok=True)
    wanted = {asked.only} if asked.only else {"recall"} if asked.quick else {"decoding", "reading", "recall"}
    tables: dict[str, Any] = json.loads(asked.out.read_text()) if asked.only and asked.out.exists() else {}
    if wanted - {"recall"}:
        source = Model.read("smollm2")
        net = source.build(torch.bfloat16)
        ids = source.tokenizer().encode(part(next(iter(texts().values())), 3))[:4096]
    if "decoding" in wanted:
        show(tables, "decoding", decoding(net, ids, [1024, 2048, 4096]), None, asked.out)
    if "reading" in wanted:
        show(tables, "reading", reading(net, ids[:TOKENS]), "full", asked.out)
    if "recall" in wanted:
        more = {"facts": 10 * asked.contexts, "facts_first": asked.first * asked.contexts}
        rows = recalls(asked)
        if asked.methods:  # of the same texts: what was not measured again stays
            rows = {**tables.get("recall", {}).get("rows", {}), **rows}
        show(tables, "recall", rows, "full", asked.out, **more)
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
        model="SmolLM2-135M-Instruct, bfloat16", threads=torch.get_num_threads(), tokens=TOKENS, **more
    )
    report = Report(rows, baseline=baseline, units={"ms_a_token": "ms"}, provenance=facts)
    tables[name] = report.to_dict()
    print("\n" + report.as_table(title=name), flush=True)
    out.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
