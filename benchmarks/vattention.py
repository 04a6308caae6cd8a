"""Contexts of many requests, side by side: memory as the kernel counts it, and the time of a decode step's attention.

    python benchmarks/vattention.py [--only memory|decode|exact|mapping|serving] [--packed smollm2.hold] [--threads 1]

Memory: 64 requests with Poisson arrivals, log-normal lengths (a fifth of 2,048 tokens on average) and the keys and
values of SmolLM2-135M in float32, in 8 slots. "static": all slots at full length; "doubling": each request's tensors
are doubled and copied when they are full, as caches that grow do; "paged": blocks of 16 tokens in a pool as large as
the most that was needed, attention gathers them; "vattention". Every arm writes the same tokens; resident memory is
the growth of the process's resident set (VmRSS), peaks by polling after each step.
Decode: attention of 8 slots at one length, 30 layers, the same kernel (torch's) for all; CPU seconds, least of several.
Serving: tokens a CPU second at 1, 4, 8 and 16 concurrent requests through `holdall.batching`.
Last, the lines that the card (066) expects, each with its bar.
Writes benchmarks/results/vattention.json; arms that were not run keep their last figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from vattention_arms import BLOCK, SMOLLM2, B, Doubling, Mapped, Paged, S, Static, exact, lines

from holdall.kv import VAttention
from holdall.kv.slot_load import Moment, arrivals, replay, within
from holdall.memory import release, return_early
from holdall.meter import resident_bytes
from holdall.report import provenance

RESULT = Path(__file__).parent / "results" / "vattention.json"
LOAD = arrivals(64, S, S / 5, gap=20)


def memory(make: Callable[[], Any], fits: Any = None) -> dict[str, float]:
    gc.collect()
    release()
    base = resident_bytes()
    start = time.process_time()
    arm = make()
    peak, before, needed, steps, waited = 0, [0] * B, 0, 0, 0
    for moment in replay(LOAD, B, fits(arm) if fits else lambda _: True):
        arm.step(moment, before)
        before = list(moment.lengths)
        peak = max(peak, resident_bytes() - base)
        needed = max(needed, sum(before) * SMOLLM2.token)
        steps, waited = steps + 1, waited + moment.waiting
    row: dict[str, float] = {
        "peak_resident_bytes": peak, "needed_bytes": needed, "copied_bytes": arm.copied, "steps": steps,
        "waited_steps": waited, "cpu_seconds": time.process_time() - start,
    }  # fmt: skip
    if isinstance(arm, Mapped):
        told = arm.slots.traffic()
        tokens = sum(a.length for a in LOAD)
        row |= {"smaps_bytes_at_end": arm.slots.resident(), **told}
        row["page_groups_mapped_or_unmapped_a_token"] = (
            (told["mapped"] + told["unmapped"]) * told["page_groups"] / tokens
        )
        arm.slots.close()
    return row


def memories() -> dict[str, dict[str, float]]:
    needed = max(sum(m.lengths) * SMOLLM2.token for m in replay(LOAD, B))
    blocks = max(sum(-(-n // BLOCK) for n in m.lengths) for m in replay(LOAD, B))
    page = 64 << 10
    pool = needed + 2 * SMOLLM2.layers * B * page
    budgeted = {"fits": lambda arm: within(arm.slots)}
    arms: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
        "static": (Static, {}),
        "doubling": (Doubling, {}),
        f"paged, blocks of {BLOCK}": (lambda: Paged(blocks), {}),
        "vattention, needed and a page group a tensor and slot": (lambda: Mapped(pool), {}),
        "vattention, 35 %": (lambda: Mapped(VAttention().whole(SMOLLM2) * 35 // 100), budgeted),
        "vattention, half of the need": (lambda: Mapped(pool // 2), budgeted),
        "vattention, no limit": (lambda: Mapped(), {}),
        "vattention, no limit, unmapped at once": (lambda: Mapped(reclaim="at once", background=False), {}),
        "vattention, no limit, sliced": (lambda: Mapped(sliced=True), {}),
        "vattention, unmapped at once, 16 kB": (lambda: Mapped(reclaim="at once", page=16 << 10), {}),
    }
    return shown("memory", {name: (lambda m=m, k=k: memory(m, **k)) for name, (m, k) in arms.items()})


def decode(lengths: tuple[int, ...] = (64, 256, 1024, 2040)) -> dict[str, dict[str, float]]:
    """Milliseconds of attention of all slots in all layers."""
    q = torch.randn(B, SMOLLM2.layers, 9, SMOLLM2.dim)
    arms = {
        "static": Static(), "doubling": Doubling(), "paged": Paged(B * S // BLOCK), "vattention": Mapped(),
        "vattention, sliced": Mapped(sliced=True), "vattention, 4 kB": Mapped(page=4096),
        "vattention, 2 MB": Mapped(page=2 << 20),
    }  # fmt: skip
    rows: dict[str, dict[str, float]] = {name: {} for name in arms}
    before = [0] * B
    for t in lengths:
        moment = Moment((), (t,) * B, 0)
        for arm in arms.values():
            arm.step(moment, before)
        before = [t] * B
        best = dict.fromkeys(arms, float("inf"))
        for _ in range(7):  # in turn, so that a busy moment of the machine hits all
            for name, arm in arms.items():
                start = time.process_time()
                for layer in range(SMOLLM2.layers):
                    for slot in range(B):
                        arm.attend(q[slot, layer], slot, layer, t)
                best[name] = min(best[name], time.process_time() - start)
        for name, seconds in best.items():
            rows[name][f"milliseconds_at_{t}"] = 1000 * seconds
    for name, row in rows.items():
        row["times_as_fast_as_paged_at_1024"] = (
            rows["paged"]["milliseconds_at_1024"] / row["milliseconds_at_1024"]
        )
        print(f"{name:24}", {k: round(v, 2) for k, v in row.items()}, flush=True)
    return rows


def mapping() -> dict[str, dict[str, float]]:
    """Milliseconds that a step waits for a new block, and with the thread ahead of it."""
    rows = {}
    for page in (4 << 10, 16 << 10, 64 << 10, 256 << 10):
        for ahead in (False, True):
            with VAttention(slots=B, length=S, page=page, background=ahead).open(SMOLLM2) as slots:
                waits, tokens = [], max(1, page // SMOLLM2.row)
                slots.step([1])
                for n in range(2, min(S, 24 * tokens)):
                    groups = slots.cost(n) > slots.cost(n - 1)
                    time.sleep(0.002 if groups and ahead else 0)  # the pass that goes on meanwhile
                    start = time.perf_counter()
                    slots.step([n])
                    waits += [time.perf_counter() - start] if groups else []
            name = f"{page >> 10} kB{', thread' if ahead else ''}"
            waits.sort()
            rows[name] = {"tokens_a_block": tokens, "milliseconds_a_block": 1000 * waits[len(waits) // 2]}
            print(f"{name:16}", rows[name], flush=True)
    return rows


def serving(net: Any, ids: list[int], sizes: tuple[int, ...], new: int) -> dict[str, dict[str, float]]:
    """Tokens a CPU second of concurrent requests with 64 tokens of prompt, once all are read."""
    from holdall.batching import Batch, Request

    best: dict[int, float] = {}
    for _ in range(2):
        for n in sizes:
            batch = Batch.open(net, slots=n, length=512)
            for i in range(n):  # n steps go by until all are read
                batch.submit(i, Request(ids[64 * i : 64 * i + 64], n + new))
            first: set[Any] = set()
            while len(first) < n:
                first |= {given.key for given in batch.step()}
            start, tokens = time.process_time(), 0
            while batch.running == n:
                tokens += len(batch.step())
            best[n] = max(best.get(n, 0), tokens / (time.process_time() - start))
            batch.close()
    rows = {str(n): {"tokens_a_cpu_second": v, "times_one": v / best[sizes[0]]} for n, v in best.items()}
    print({n: {k: round(v, 2) for k, v in r.items()} for n, r in rows.items()}, flush=True)
    return rows


def servings(packed: str | None) -> dict[str, Any]:
    from holdall.weights.model import Model
    from holdall.weights.texts import held_out_text

    sizes, model = (1, 2, 4, 8, 16), Model.read("smollm2")
    ids = model.tokenizer().encode(held_out_text()[:8000])
    found = {"float32": serving(model.build(), ids, sizes, 8)}
    del model
    if packed:
        from holdall.packed import Packed
        from holdall.verbs import method_of

        artefact = Packed.open(packed)
        method: Any = method_of(artefact)
        found["packed"] = serving(method.open(artefact, None).float(), ids, sizes, 8)
        found["packed"]["bytes"] = {"bytes": artefact.nbytes}
    return found


def shown(what: str, arms: dict[str, Callable[[], dict[str, float]]]) -> dict[str, dict[str, float]]:
    rows = {}
    for name, run in arms.items():
        rows[name] = run()
        share = rows[name]["peak_resident_bytes"] / rows["static"]["peak_resident_bytes"]
        rows[name]["share_of_static"] = share
        print(
            f"{what}: {name:56} {rows[name]['peak_resident_bytes'] / 1e6:7.1f} MB  {share:.3f} of static",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("memory", "decode", "exact", "mapping", "serving"))
    parser.add_argument("--packed", help="a SmolLM2 that weights.bitstack packed, for the serving arm")
    parser.add_argument("--threads", type=int, default=1)
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    return_early()  # else the C library keeps what doubling frees, and its figure would be worse than it is
    torch.manual_seed(0)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    parts: dict[str, Callable[[], Any]] = {
        "memory": memories, "decode": decode, "exact": exact, "mapping": mapping,
        "serving": lambda: servings(told.packed),
    }  # fmt: skip
    with torch.inference_mode():
        for name, run in parts.items():
            if told.only in (None, name):
                found[name] = run()
    if {"memory", "decode", "exact"} <= set(found):
        found["lines"] = lines(found)
    found["provenance"] = provenance(threads=told.threads, requests=len(LOAD), slots=B, longest=S)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
