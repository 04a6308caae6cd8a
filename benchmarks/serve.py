"""The server under the requests of a production trace: tokens a second, time to first token, memory over time.

    python benchmarks/serve.py [--model smollm2] [--memory 1.5GB] [--requests 24] [--minutes 2] [--threads 2]
                               [--kv 25% --with kv.snapkv] [--only alone,together,overload]

Lengths and order are those of the first conversations in mooncake_conversation.jsonl (or, without that file, drawn
from log-normal lengths), prompts divided by --shrink-prompt and answers by --shrink-answer, because the trace is of a
large service; prompts are tokens of real text, so every answer has exactly its length in the trace.
  alone      one client: each request waits for the one before
  together   eight clients, each as soon as its last answer is complete; the same requests, the same server
  overload   requests come by the trace's clock, sped up to twice what `together` sustained, for --minutes
Alone and together run in turn, three times; ratios are of the best runs. The server is a process of its own; its
resident memory and CPU time are the kernel's figures. Writes benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from holdall.report import Report, provenance
from holdall.weights.model import Model
from holdall.weights.texts import held_out_text

HERE = Path(__file__).parent
TRACE = HERE.parent.parent / "shared" / "data" / "traces" / "mooncake_conversation.jsonl"
CLIENTS = 8


@dataclass(frozen=True)
class Asked:
    at: float  # seconds in the trace
    ids: list[int]
    most: int


@dataclass
class Told:
    status: int
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    fault: str = ""


def requests(model: str, prompt: int, answer: int) -> Iterator[Asked]:
    """The trace's conversations, over and over; each prompt is another part of a real text."""
    ids = Model.read(model).tokenizer().encode(held_out_text()[:2_000_000])
    if TRACE.exists():
        rows = [json.loads(line) for line in TRACE.read_text().splitlines()]
        lengths = [(r["timestamp"] / 1000, r["input_length"], r["output_length"]) for r in rows]
    else:
        lot = random.Random(0)
        drawn = [(lot.lognormvariate(8.9, 1.0), lot.lognormvariate(5.6, 0.8)) for _ in range(2000)]
        lengths = [(0.3 * i, int(a), int(b)) for i, (a, b) in enumerate(drawn)]
    start = 0.0
    for turn in itertools.count():
        for i, (at, before, after) in enumerate(lengths):
            size = min(1500, max(16, before // prompt))
            where = (7919 * (i + turn)) % (len(ids) - size)
            yield Asked(start + at, ids[where : where + size], min(400, max(4, after // answer)))
        start += lengths[-1][0]


@contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    words = [sys.executable, "-c", "from holdall.cli import main; main()", "serve", args.model]
    words += ["--memory", args.memory, "--port", "0", "--json", "--slots", str(CLIENTS), "--queue", "32"]
    words += (["--kv", args.kv] if args.kv else []) + (["--with", args.with_] if args.with_ else [])
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as work:
        assert work.stdout is not None
        line = work.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        try:
            yield json.loads(line)["url"], psutil.Process(work.pid)
        finally:
            work.terminate()
            if work.wait(60) != 0:
                raise SystemExit(f"the server ended with {work.returncode}")


async def ask(client: httpx.AsyncClient, model: str, asked: Asked) -> Told:
    """One streamed request. The model's own end may come early: what counts is what was really generated."""
    body = {
        "model": model, "prompt": asked.ids, "max_tokens": asked.most, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    start, told = time.perf_counter(), Told(0)
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        told.status = answer.status_code
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                told.fault = event.get("error", {}).get("message", told.fault)
                told.first = told.first or time.perf_counter() - start
                if event.get("usage"):
                    told.tokens = event["usage"]["completion_tokens"]
    told.seconds = time.perf_counter() - start
    return told


async def closed(url: str, model: str, work: list[Asked], clients: int) -> list[Told]:
    """So many clients, each with the next request as soon as its last one is answered."""
    left, told = iter(work), []

    async def one() -> None:
        for asked in left:
            told.append(await ask(client, model, asked))

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await asyncio.gather(*(one() for _ in range(clients)))
    return told


async def opened(url: str, model: str, work: Iterator[Asked], speed: float, seconds: float) -> list[Told]:
    """Requests by the trace's clock, `speed` times as fast, whether or not anything was answered."""
    tasks, start = [], time.perf_counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        for asked in work:
            wait = asked.at / speed - (time.perf_counter() - start)
            if wait > 0:
                await asyncio.sleep(wait)
            if time.perf_counter() - start > seconds:
                break
            tasks.append(asyncio.create_task(ask(client, model, asked)))
        return list(await asyncio.gather(*tasks))


class Sampled:
    """Resident memory of a process, twice a second."""

    def __init__(self, process: psutil.Process):
        self.process, self.points = process, []  # type: tuple[psutil.Process, list[tuple[float, int]]]

    async def watch(self) -> None:
        start = time.perf_counter()
        while True:
            self.points.append((round(time.perf_counter() - start, 2), self.process.memory_info().rss))
            await asyncio.sleep(0.5)


async def measured(process: psutil.Process, load: Any) -> tuple[dict[str, float], list[tuple[float, int]]]:
    """What a load got, and what it took."""
    sampled = Sampled(process)
    watching = asyncio.create_task(sampled.watch())
    cpu, start = sum(process.cpu_times()[:2]), time.perf_counter()
    told: list[Told] = await load
    seconds, used = time.perf_counter() - start, sum(process.cpu_times()[:2]) - cpu
    watching.cancel()
    good = [t for t in told if t.status == 200 and not t.fault]
    firsts = sorted(t.first for t in good) or [0.0]
    tokens = sum(t.tokens for t in good)
    row: dict[str, float] = {
        "requests": len(told), "answered": len(good), "refused": sum(t.status == 429 for t in told),
        "failed": len(told) - len(good) - sum(t.status == 429 for t in told), "new_tokens": tokens,
        "seconds": seconds, "cpu_seconds": used, "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / max(used, 1e-9), "first_token_median": statistics.median(firsts),
        "first_token_p95": firsts[int(0.95 * (len(firsts) - 1))],
        "resident_peak_bytes": max(p[1] for p in sampled.points),
    }  # fmt: skip
    return row, sampled.points


def flatness(points: list[tuple[float, int]]) -> float:
    """How much the resident memory grew between the second and the last quarter: 0.03 is three per cent."""
    n = len(points) // 4
    if n == 0:
        return 0.0
    early, late = (statistics.median(p[1] for p in part) for part in (points[n : 2 * n], points[-n:]))
    return late / early - 1


def race(args: argparse.Namespace) -> dict[str, Any]:
    rows: dict[str, dict[str, float]] = {}
    curves: dict[str, Any] = {}
    trace = requests(args.model, args.shrink_prompt, args.shrink_answer)
    work = list(itertools.islice(trace, args.requests))
    name = Path(args.model).stem
    with server(args) as (url, process):
        asyncio.run(closed(url, name, work[:2], 1))  # warm
        arms = {"alone": 1, "together": CLIENTS}
        for turn in range(args.runs):
            for arm, clients in arms.items():
                if arm in args.only:
                    row, curve = asyncio.run(measured(process, closed(url, name, work, clients)))
                    say(f"{arm} {turn + 1}", row)
                    if arm not in rows or row["tokens_per_second"] > rows[arm]["tokens_per_second"]:
                        rows[arm], curves[arm] = row, curve
        if "overload" in args.only:
            sustained = rows["together"]["answered"] / rows["together"]["seconds"]
            some = list(itertools.islice(trace, 1000))  # the trace comes in bursts; its rate is that of many
            speed = 2 * sustained * (some[-1].at - some[0].at) / len(some)
            load = opened(
                url,
                name,
                requests(args.model, args.shrink_prompt, args.shrink_answer),
                speed,
                60 * args.minutes,
            )
            rows["overload"], curves["overload"] = asyncio.run(measured(process, load))
            rows["overload"]["resident_growth"] = flatness(curves["overload"])
            say("overload", rows["overload"])
        left = httpx.get(f"{url}/memory").json()
    return {"rows": rows, "curves": curves, "memory_after": left}


def say(arm: str, row: dict[str, float]) -> None:
    print(f"{arm}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--memory", default="1.5GB")
    parser.add_argument("--kv")
    parser.add_argument("--with", dest="with_")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shrink-prompt", type=int, default=64)
    parser.add_argument("--shrink-answer", type=int, default=8)
    parser.add_argument("--only", default="alone,together,overload", type=lambda text: text.split(","))
    parser.add_argument("--out", default=str(HERE / "results" / "serve.json"))
    args = parser.parse_args()
    found = race(args)
    facts = provenance(
        **{k: v for k, v in vars(args).items() if k != "out"}, trace=TRACE.name if TRACE.exists() else "drawn"
    )
    baseline = "alone" if "alone" in found["rows"] else None
    report = Report(found["rows"], baseline=baseline, provenance=facts)
    shown = ("answered", "refused", "failed", "tokens_per_second", "tokens_per_cpu_second", "first_token_median",
             "first_token_p95", "resident_peak_bytes")  # fmt: skip
    print(report.as_table(shown))
    Path(args.out).write_text(
        report.to_json(curves=found["curves"], memory_after=found["memory_after"]) + "\n"
    )


if __name__ == "__main__":
    main()
