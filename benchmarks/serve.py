"""The server under the requests of a production trace: tokens a second, time to first token, memory over time.

    python benchmarks/serve.py [--model smollm2] [--memory 1.5GB] [--requests 24] [--minutes 2] [--threads 2] [--quick]
                               [--kv 25% --with kv.snapkv] [--only alone,together,talks,overload]

Lengths and order are those of the first conversations in mooncake_conversation.jsonl (or, without that file, drawn
from log-normal lengths), prompts divided by --shrink-prompt and answers by --shrink-answer, because the trace is of a
large service; prompts are tokens of real text, another part of it in every run, so that nothing is known from before.
  alone      one client: each request waits for the one before
  together   eight clients, each as soon as its last answer is complete; requests of the same lengths, the same server
  talks      eight clients, each with a conversation of four turns: turns after the first need not be read again
  overload   requests come by the trace's clock, sped up to twice what `together` sustained (or --rate), for --minutes
Alone and together run in turn, three times; ratios are of the best runs. The server is a process of its own; its
resident memory and CPU time are the kernel's figures. Writes benchmarks/results/serve.json, after every arm and twice a
minute: what a run was ended in the middle of (SIGINT, SIGTERM, or worse) keeps its figures up to then, marked as cut.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from serve_load import CLIENTS, TRACE, Asked, Load, closed, opened, requests, talked

from holdall.report import Report, provenance

HERE = Path(__file__).parent


@contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    words = [sys.executable, "-c", "from holdall.cli import main; main()", "serve", args.model]
    words += ["--memory", args.memory, "--port", "0", "--json", "--slots", str(CLIENTS), "--queue", "32"]
    words += (["--kv", args.kv] if args.kv else []) + (["--with", args.with_] if args.with_ else [])
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    # A session of its own: what ends this run in the middle must leave the server to be asked for its memory.
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True) as work:
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


class Sampled:
    """Resident memory of a process, twice a second."""

    def __init__(self, process: psutil.Process):
        self.process, self.points = process, []  # type: tuple[psutil.Process, list[tuple[float, int]]]

    async def watch(self) -> None:
        start = time.perf_counter()
        while True:
            self.points.append((round(time.perf_counter() - start, 2), self.process.memory_info().rss))
            await asyncio.sleep(0.5)


async def measured(bench: Bench, arm: str, load: Load, work: Coroutine[Any, Any, None]) -> dict[str, Any]:
    """What a load got, and what it took; a signal ends it, and what there is up to then counts."""
    process = bench.process
    sampled = Sampled(process)
    cpu, start = sum(process.cpu_times()[:2]), time.perf_counter()
    jobs = [asyncio.create_task(work), asyncio.create_task(sampled.watch())]

    def row(cut: bool) -> dict[str, Any]:
        spent = sum(process.cpu_times()[:2]) - cpu
        found = figures(load, time.perf_counter() - start, spent, sampled.points)
        return {**found, "resident_growth": flatness(sampled.points), **({"cut": 1} if cut else {})}

    def ended() -> None:
        bench.ended = True
        jobs[0].cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended)
    while not (await asyncio.wait(jobs[:1], timeout=30))[0]:
        bench.keep(arm, row(True), sampled.points)
    jobs[1].cancel()
    with suppress(asyncio.CancelledError):
        await jobs[0]
    found = row(bench.ended)
    bench.keep(arm, found, sampled.points)
    print(f"{arm}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()), flush=True)
    return found


def figures(load: Load, seconds: float, used: float, points: list[tuple[float, int]]) -> dict[str, Any]:
    good = [t for t in load.told if t.status == 200 and not t.fault]
    refused = sum(t.status == 429 for t in load.told)
    firsts = sorted(t.first for t in good) or [0.0]
    tokens = sum(t.tokens for t in good)
    return {
        "requests": load.sent, "answered": len(good), "refused": refused,
        "failed": len(load.told) - len(good) - refused, "under_way": load.sent - len(load.told),
        "prompt_tokens": sum(t.prompt for t in good), "reused_tokens": sum(t.reused for t in good),
        "new_tokens": tokens, "seconds": seconds, "cpu_seconds": used, "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / max(used, 1e-9), "first_token_median": statistics.median(firsts),
        "first_token_p95": firsts[int(0.95 * (len(firsts) - 1))],
        "resident_peak_bytes": max((p[1] for p in points), default=0),
    }  # fmt: skip


def flatness(points: list[tuple[float, int]]) -> float:
    """How much the resident memory grew between the second and the last quarter: 0.03 is three per cent."""
    n = len(points) // 4
    if n == 0:
        return 0.0
    early, late = (statistics.median(p[1] for p in part) for part in (points[n : 2 * n], points[-n:]))
    return late / early - 1


@dataclass
class Bench:
    """A race: the server, and the figures so far, which are on disk at any time."""

    args: argparse.Namespace
    url: str
    process: psutil.Process
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    def keep(self, arm: str, row: dict[str, Any], curve: Any) -> None:
        """The best run of an arm; one that was cut gives way to any other."""
        old = self.rows.get(arm)
        speed = "tokens_per_second"
        if old is None or "cut" in old or ("cut" not in row and row[speed] > old[speed]):
            self.rows[arm], self.curves[arm] = row, curve
        self.write()

    def write(self, **more: Any) -> Report:
        told = {k: v for k, v in vars(self.args).items() if k != "out"}
        facts = provenance(**told, trace=TRACE.name if TRACE.exists() else "drawn")
        report = Report(self.rows, baseline="alone" if "alone" in self.rows else None, provenance=facts)
        place = Path(self.args.out)
        place.with_suffix(".part").write_text(report.to_json(curves=self.curves, **more) + "\n")
        place.with_suffix(".part").replace(place)
        return report


def race(bench: Bench) -> None:
    args, url, name = bench.args, bench.url, Path(bench.args.model).stem
    salts = itertools.count(1)

    def run(arm: str, work: Callable[[Load], Coroutine[Any, Any, None]]) -> None:
        async def once() -> None:
            load = Load()
            await measured(bench, arm, load, work(load))

        if not bench.ended:
            asyncio.run(once())

    def some(count: int) -> list[Asked]:
        return list(itertools.islice(requests(args, next(salts)), count))

    asyncio.run(closed(Load(), url, name, some(2), 1))  # warm
    for _ in range(args.runs):
        for arm, clients in {"alone": 1, "together": CLIENTS}.items():
            if arm in args.only:
                run(arm, lambda load, n=clients: closed(load, url, name, some(args.requests), n))
    if "talks" in args.only:
        run("talks", lambda load: talked(load, url, name))
    if "overload" in args.only and not bench.ended:
        together = bench.rows.get("together")
        rate = args.rate or 2 * together["answered"] / together["seconds"]
        many = list(
            itertools.islice(requests(args), 1000)
        )  # the trace comes in bursts; its rate is that of many
        speed = rate * (many[-1].at - many[0].at) / len(many)
        work = requests(args, next(salts))
        run("overload", lambda load: opened(load, url, name, work, speed, 60 * args.minutes))


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
    parser.add_argument("--rate", type=float, help="requests a second of the overload")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shrink-prompt", type=int, default=64)
    parser.add_argument("--shrink-answer", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="some minutes in all, for a look")
    parser.add_argument("--only", default="alone,together,talks,overload", type=lambda text: text.split(","))
    parser.add_argument("--out", default=str(HERE / "results" / "serve.json"))
    args = parser.parse_args()
    if args.quick:
        args.requests, args.runs, args.minutes = 8, 1, 0.5
    if "overload" in args.only and not args.rate and "together" not in args.only:
        parser.error("overload takes its rate from together, or from --rate")
    with server(args) as (url, process):
        bench = Bench(args, url, process)
        race(bench)
        report = bench.write(memory_after=httpx.get(f"{url}/memory").json())
    shown = ("answered", "refused", "failed", "reused_tokens", "tokens_per_second", "tokens_per_cpu_second",
             "first_token_median", "first_token_p95", "resident_peak_bytes")  # fmt: skip
    print(report.as_table(shown))


if __name__ == "__main__":
    main()
