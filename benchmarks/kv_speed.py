"""What reading into a cache and decoding from it cost; part of benchmarks/kv.py."""

from __future__ import annotations

import gc
import time
from typing import Any

import psutil
import torch
from transformers import DynamicCache

from holdall.dropins.transformers import Cache
from holdall.kv import EMS, H2O, Duo, KVMerger, KVSelector, MiKV, PrefixKV, SnapKV, ZipCache
from holdall.kv.asking import read, reading_cost
from holdall.memory import release

READ: dict[str, tuple[KVSelector | None, str | None]] = {
    "full": (None, None),
    "snapkv 10%": (SnapKV(), "10%"),
    "ems 10%": (EMS(), "10%"),
    "prefixkv 10%": (PrefixKV(), "10%"),
    "kvmerger 10%": (KVMerger(), "10%"),
    "h2o 10%": (H2O(), "10%"),
    "zipcache 25%": (ZipCache(), "25%"),
    "zipcache over snapkv 5%": (ZipCache(inner=SnapKV()), "5%"),
    "mikv 25%": (MiKV(), "25%"),
    "mikv 25%, all queries": (MiKV(probes=1.0), "25%"),
    "duo 12%": (Duo(), "12%"),
}
HELD: dict[str, tuple[KVSelector, str]] = {
    "snapkv 25%": (SnapKV(), "25%"),
    "snapkv 10%": (SnapKV(), "10%"),
    "ems 10%": (EMS(), "10%"),
    "zipcache 25%": (ZipCache(), "25%"),
    "zipcache 12%": (ZipCache(), "12%"),
    "zipcache over snapkv 5%": (ZipCache(inner=SnapKV()), "5%"),
    "mikv 25%": (MiKV(), "25%"),
    "duo 12%": (Duo(), "12%"),
    "duo 8%": (Duo(), "8%"),
}


def reading(net: Any, ids: list[int]) -> dict[str, dict[str, float]]:
    """Peak memory and CPU seconds of reading one prompt; the least of three runs, taken in turn.

    held_bytes: what the cache says; resident_bytes: what the kernel says that it added to the process.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in READ}
    ways = {n: (m if m is None else m.prepared(net), budget) for n, (m, budget) in READ.items()}
    for _ in range(3):
        for name, way in ways.items():
            runs[name].append(reading_cost(net, ids, *way) | resident(net, ids, *way))
    return {name: {k: min(r[k] for r in found) for k in found[0]} for name, found in runs.items()}


def resident(net: Any, ids: list[int], method: KVSelector | None, budget: str | None) -> dict[str, float]:
    gc.collect()
    release()
    before = psutil.Process().memory_info().rss
    cache = Cache(method, budget)
    with torch.inference_mode():
        net(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1)
    cache.compress()
    gc.collect()
    release()
    return {"held_bytes": cache.nbytes, "resident_bytes": psutil.Process().memory_info().rss - before}


def decoding(net: Any, ids: list[int], lengths: list[int]) -> dict[str, dict[str, float]]:
    """CPU milliseconds of a decode step and bytes of the cache, by context length."""
    rows: dict[str, dict[str, float]] = {}
    ways = {n: (m.prepared(net), budget) for n, (m, budget) in HELD.items()}
    for length in lengths:
        base = Cache(H2O())  # which looks back at every query
        read(net, base, ids[:length])
        plain = DynamicCache()
        for i, layer in enumerate(base.layers):
            plain.update(layer.keys, layer.values, i)
        held: dict[str, Any] = {"DynamicCache": plain, "full": base.compressed(SnapKV(), "100%")}
        held |= {name: base.compressed(*way) for name, way in ways.items()}
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
