"""One step of a batch by the number of requests in it: what sharing a pass over the weights gives.

    OMP_NUM_THREADS=1 python benchmarks/serve_steps.py [--model smollm2] [--dtype float32] [--requests 1,2,4,8,16]
    OMP_NUM_THREADS=1 python benchmarks/serve_steps.py --model small.hold

No server and no sampling beside the likeliest token: prompts of --tokens tokens of real text are read, then --steps
steps are timed, one token for each request. Medians; CPU time is that of all threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from holdall.batching import Batch, Request
from holdall.dropins.tokenizer import Tokenizer
from holdall.engine_plan import Source
from holdall.packed import Packed
from holdall.report import Report, provenance
from holdall.verbs import method_of
from holdall.weights.model import Model
from holdall.weights.texts import held_out_text


def opened(path: str, dtype: torch.dtype) -> Any:
    """A model as the engine runs it: packed weights stay packed."""
    if not path.endswith(".hold"):
        return Model.read(path).build(dtype)
    packed = Packed.open(path)
    net = method_of(packed).open(packed).to(dtype)
    if dtype is not torch.float32:  # what packed tables give out is float32
        net.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out.to(dtype))
    return net


def timed(net: Any, ids: list[int], requests: int, tokens: int, steps: int) -> dict[str, float]:
    """Medians of a step, and what a token of a prompt took."""
    batch = Batch.open(net, slots=requests, length=tokens + steps + 16, reuse=False)
    for i in range(requests):
        start = 3 * tokens * i % (len(ids) - tokens)
        batch.submit(i, Request(ids[start : start + tokens], steps + 16))
    cpu, first = time.process_time(), True
    read, took = 0.0, []
    while first or len(took) < steps:
        wall, before = time.perf_counter(), time.process_time()
        news = batch.step()
        if len(news) == requests and not first:
            took.append((time.process_time() - before, time.perf_counter() - wall))
        elif len(news) == requests:
            read, first = time.process_time() - cpu, False
    batch.close()
    seconds = [statistics.median(t) for t in zip(*took, strict=True)]
    return {
        "cpu_ms": 1e3 * seconds[0], "wall_ms": 1e3 * seconds[1], "tokens_per_cpu_second": requests / seconds[0],
        "tokens_per_second": requests / seconds[1], "reading_cpu_ms": 1e3 * read / requests / tokens,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--requests", default="1,2,4,8,16")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    net = opened(args.model, getattr(torch, args.dtype))
    ids = Tokenizer(Source.of(args.model).files).encode(held_out_text()[:400_000])
    rows: dict[str, dict[str, float]] = {}
    for count in args.requests.split(","):
        rows[count] = timed(net, ids, int(count), args.tokens, args.steps)
        print(f"{count}: " + ", ".join(f"{k} {v:.4g}" for k, v in rows[count].items()), flush=True)
    report = Report(rows, baseline=next(iter(rows)), provenance=provenance(**vars(args)))
    print(report.as_table(("cpu_ms", "wall_ms", "tokens_per_cpu_second", "tokens_per_second")))


if __name__ == "__main__":
    main()
