"""What a drive reads and what crosses its link, by length; and whether its cost model foretells its time (paper 053).

    python benchmarks/drive.py [--quick]

Keys with runs of tokens that stand out (holdall/kv/drive_quality.py), 4 layers of 3 heads of 64 channels, contexts of
2,048, 4,096 and 8,192 tokens. Pages lie in files that are read past the kernel's cache. The model, seconds = a pages +
b, is fitted on two lengths and foretells the third, each in turn; seconds are the least of several steps, in the drive
and over the link. What a real drive would take is computed (`modelled`), not measured. Answers of a model with its
context on drives are `holdall measure kv.instinfer`'s. Writes benchmarks/results/drive.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from holdall.kv import InstInfer
from holdall.kv.drive_model import Hardware, Machine, Task
from holdall.kv.drive_quality import planted
from holdall.report import provenance

OUT = Path(__file__).parent / "results" / "drive.json"
LAYERS, HEADS, GROUP, DIM = 4, 3, 3, 64
LINES: list[dict[str, Any]] = []


def say(what: str, value: float, bar: str = "") -> None:
    sign, most = bar.split() if bar else ("", "nan")
    met = None if not bar else value <= float(most) if sign == "<=" else value >= float(most)
    LINES.append({"line": what, "figure": value, "bar": bar, "met": met})
    told = "" if met is None else f"  (bar {bar}: {'met' if met else 'NOT met'})"
    print(f"{what}: {value:.4g}{told}", flush=True)


def went(method: InstInfer, lengths: Sequence[int], steps: int) -> dict[int, dict[str, float]]:
    """Traffic of one step of all layers at each length, and the least seconds of one; lengths take turns."""
    lot, rows = np.random.default_rng(0), {}
    with ExitStack() as stack:
        drives, took = {}, {tokens: [] for tokens in lengths}
        for tokens in lengths:
            task = Task(layers=LAYERS, heads=HEADS, dim=DIM, length=tokens + 2 * steps)
            drives[tokens] = stack.enter_context(method.open(task))
            for layer in range(LAYERS):
                drives[tokens].step((layer, None, *planted(lot, tokens, HEADS)))
            drives[tokens].settle()
        before = {tokens: drive.traffic() for tokens, drive in drives.items()}
        for _ in range(steps):
            for tokens, drive in drives.items():
                start = time.perf_counter()
                for layer in range(LAYERS):
                    q = lot.normal(size=(1, HEADS, GROUP, DIM)) * np.exp(lot.normal(size=DIM))
                    drive.step((layer, q, *lot.normal(size=(2, 1, HEADS, 1, DIM))))
                took[tokens].append(time.perf_counter() - start)
        for tokens, drive in drives.items():
            after = drive.traffic()
            rows[tokens] = {k: (after[k] - before[tokens][k]) / steps for k in after}
            rows[tokens]["least_seconds"] = min(took[tokens])
    return rows


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="few steps")
    steps = 8 if parse.parse_args().quick else 40
    method = InstInfer()
    rows = went(method, (2048, 4096, 8192), steps)
    for tokens, r in rows.items():
        print(f"{tokens} tokens: {r['pages_read']:.0f} pages of {r['dense_pages']:.0f},"
              f" {r['payload_bytes']:.0f} bytes of q, k, v, o, {1000 * r['least_seconds']:.1f} ms a step")  # fmt: skip
        say(f"c pages read / dense pages, {tokens} tokens", r["pages_read"] / r["dense_pages"], "<= 0.4")
        say(f"c page bytes / wanted bytes, {tokens} tokens", r["page_bytes"] / r["wanted_bytes"])
    whole, lot = (went(method.but(dense=10**6, placement=p), (2048,), 2)[2048] for p in ("striped", "random"))
    say("c busiest lane, striped / pages by lot", whole["busiest_pages"] / lot["busiest_pages"], "<= 1")
    bare = went(method.but(copy=False), (4096,), 2)[4096]
    say(
        "d key pages / all of them, without the channel-indexed copy",
        2 * bare["key_pages"] / bare["dense_pages"],
        ">= 1",
    )
    say(
        "e link bytes a step, 8,192 tokens / 2,048",
        rows[8192]["payload_bytes"] / rows[2048]["payload_bytes"],
        "<= 1",
    )
    moved = 2 * LAYERS * HEADS * 8192 * DIM * 2
    say(
        "e keys and values that would cross / what crosses, 8,192 tokens", moved / rows[8192]["payload_bytes"]
    )
    for tokens, row in rows.items():
        others = [(r["page_bytes"], r["least_seconds"]) for t, r in rows.items() if t != tokens]
        told = Machine.fitted(others).modelled(row["page_bytes"])
        say(
            f"f cost model / measured, {tokens} tokens (off by)",
            abs(told / row["least_seconds"] - 1),
            "<= 0.3",
        )
    row = rows[8192]
    each = (row[k] / LAYERS for k in ("page_bytes", "flops", "payload_bytes"))
    print("one layer on the paper's hardware, modelled:", Hardware().modelled(*each, kv_bytes=moved / LAYERS))
    OUT.write_text(
        json.dumps(
            {"lines": LINES, "rows": rows, "provenance": provenance(method=method.to_dict())}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
