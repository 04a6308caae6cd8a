"""SPANN beside what else searches vectors on disk and in memory; recall against bytes, reads, time and memory.

    OMP_NUM_THREADS=1 python benchmarks/vectors.py [--parts disk,sweep,memory,card,scale] [--sets sift,glove,tokens]
        [--glove all.npy] [--peers recipe,lists,view] [--lance-python PATH] [--diskann-python PATH]

disk: a tenth of the vectors' bytes in memory, files taken out of the page cache before every query; bytes are those
that the device gave (/proc/self/io). sweep: 2, 5, 10 and 20 % in memory. memory: all in memory, time of a query. card:
what SPANN's paper promises. scale: 50,000 to a million generated vectors. One thread; times are CPU times where not
said. Results are merged into results/vectors.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import vectors_peers as peers
from keeping import keeper
from vectors_data import apart, cold, load, spectrum

from holdall.vectors import SPANN
from holdall.vectors.quality import recall

RESULTS = Path(__file__).parent / "results" / "vectors.json"
HELD = """
import sys
import numpy as np
from vectors_data import anonymous
from holdall.vectors import SPANN
url, queries = sys.argv[1:]
asked = np.load(queries)
some = np.random.default_rng(0).normal(size=(500, 8)).astype("f4")
for x in (some, np.abs(np.rint(some))):  # which kernels are loaded goes by the type that is stored
    for layout in ("codes", "lists"):
        with SPANN(layout=layout).build(x) as small:
            small.search(x[:5], 3)
from holdall.memory import release
release()
start = anonymous()
index = SPANN().open(url)
for query in asked[:200]:
    index.search(query, 10)
release()
print(index.nbytes, anonymous() - start)
"""


keep = keeper(RESULTS, 44)


def aims(index: Any, queries: np.ndarray, wanted: np.ndarray, goal: float) -> dict[str, Any] | None:
    """Of some settings that reach a recall the one that reads least, then takes the least by its own account."""
    best = None
    for knobs, account in index.settings():
        index.recipe = index.recipe.but(**knobs)
        before = index.traffic()
        found = recall(index.search(queries, 10).ids, wanted)
        if found < goal:
            continue
        cost = index.traffic()["reads"] - before["reads"], account
        if best is None or cost < best[0]:
            best = cost, knobs
    return None if best is None else best[1]


def spann(
    name: str, budget: str, part: str, data: Any, goals: tuple[float, ...] = (0.9, 0.95, 0.99), **knobs: Any
) -> None:
    base, queries, wanted = data
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/v.index"
        np.save(f"{folder}/x.npy", base)
        np.save(f"{folder}/q.npy", queries)
        started = time.process_time()
        with SPANN(**knobs).build(f"{folder}/x.npy", budget, to=url) as index:
            built = time.process_time() - started
            files = [f"{url}/{n}" for n in index.folder.files]
            disk = sum(Path(f).stat().st_size for f in files) + Path(url, "index.hold").stat().st_size
            held, private = map(int, apart(HELD, url, f"{folder}/q.npy").split())
            row: dict[str, Any] = {
                "layout": "codes" if "entries" in index.folder.meta else "lists", "build_cpu_s": built,
                "held": held / base.nbytes, "private_of_budget": private / index.limit, "files": disk / base.nbytes,
            }  # fmt: skip
            keep(part, f"{name}, {budget}", row)
            for goal in goals:
                settings = aims(index, queries[:300], wanted[:300], goal)
                if settings is None:
                    keep(part, f"{name}, {budget}, recall {goal}", {"reached": 0})
                    continue
                index.recipe = index.recipe.but(**settings)
                before = index.traffic()
                told = cold(
                    lambda q, index=index: index.search(q, 10).ids[0], files, queries[:500], wanted[:500]
                )
                reads = (index.traffic()["reads"] - before["reads"]) / (3 + len(queries[:500]))
                keep(part, f"{name}, {budget}, recall {goal}", {**told, "reads": reads, **settings})


def disk(args: argparse.Namespace) -> None:
    for name in args.sets:
        data = load(name, args.glove)
        spann(f"{name}: spann", "10%", "disk", data)
        spann(f"{name}: spann, lists", "10%", "disk", data, layout="lists")
        spann(
            f"{name}: spann, few long lists",
            "10%",
            "disk",
            data,
            layout="lists",
            ratio=0.03,
            list_bytes=65_536,
        )
        for told, row in peers.on_disk(data, args):
            keep("disk", f"{name}: {told}", row)


def sweep(args: argparse.Namespace) -> None:
    for name in args.sets:
        data = load(name, args.glove)
        for budget in ("2%", "5%", "10%", "20%"):
            spann(f"{name}: spann", budget, "sweep", data, (0.8, 0.9, 0.95, 0.99))


def memory(args: argparse.Namespace) -> None:
    """Batches of queries, in turn, the median of five rounds."""
    for name in args.sets:
        base, queries, wanted = load(name, args.glove)
        with SPANN(layout="codes").build(base, "30%") as index:
            settings = aims(index, queries[:300], wanted[:300], 0.95)
            ways: dict[str, Any] = {}
            if settings is not None:
                index.recipe = index.recipe.but(**settings)
                ways["spann, 30 %"] = (lambda q: index.search(q, 10).ids, index.nbytes / base.nbytes)
            ways |= peers.in_memory(base, queries, wanted)
            times: dict[str, list[float]] = {w: [] for w in ways}
            shares = {w: recall(act(queries), wanted) for w, (act, _) in ways.items()}
            for _ in range(5):
                for way, (act, _) in ways.items():
                    begun = time.process_time()
                    act(queries)
                    times[way].append((time.process_time() - begun) / len(queries) * 1e6)
        for way, (_, share) in ways.items():
            row = {"recall": shares[way], "cpu_us": float(np.median(times[way])), "memory": share}
            keep("memory", f"{name}: {way}", row)


def scale(args: argparse.Namespace) -> None:
    sizes, costs, builds = (50_000, 200_000, 1_000_000), [], []
    whole = spectrum(max(sizes) + 300)
    queries, whole = whole[:300], whole[300:]
    for count in sizes:
        base = whole[:count]
        from holdall.vectors.metrics import nearest

        _, wanted = nearest(queries, base, 10, "l2")
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/x.npy", base)
            url = f"{folder}/v.index"
            peak = int(apart(BUILD, f"{folder}/x.npy", url))
            with SPANN().open(url) as index:
                settings = aims(index, queries, wanted, 0.95)
                if settings is None:
                    keep("scale", f"{count}", {"reached": 0, "build_peak_mb": peak / 1e6})
                    continue
                index.recipe = index.recipe.but(**settings)
                before = index.traffic()
                begun = time.process_time()
                found = recall(index.search(queries, 10).ids, wanted)
                cost = (time.process_time() - begun) / len(queries) * 1e3
                told = index.traffic()
                reads = (told["reads"] - before["reads"]) / len(queries)
                built = json.loads((Path(folder) / "cpu.json").read_text())
            keep("scale", f"{count}", {
                "recall": found, "cpu_ms": cost, "reads": reads, "held": index.nbytes / base.nbytes,
                "build_cpu_s": built,
                "build_peak_mb": peak / 1e6, "raw_mb": base.nbytes / 1e6, **settings,
            })  # fmt: skip
            costs.append(cost)
            builds.append(built)
    if len(costs) == len(sizes):
        grown = np.log(sizes[-1] / sizes[0])
        keep("scale", "exponents", {
            "query": float(np.log(costs[-1] / costs[0]) / grown),
            "build": float(np.log(builds[-1] / builds[0]) / grown),
        })  # fmt: skip


BUILD = """
import json, sys, time
from pathlib import Path
from holdall.meter import Meter
from holdall.vectors import SPANN
SPANN(layout="codes").build(__import__("numpy").random.default_rng(0).normal(size=(500, 8)).astype("f4")).close()
start = time.process_time()
with Meter() as meter:
    SPANN(build_bytes=64 << 20).build(sys.argv[1], "10%", to=sys.argv[2]).close()
Path(sys.argv[1]).with_name("cpu.json").write_text(json.dumps(time.process_time() - start))
print(int(meter.peak_bytes))
"""


def card(args: argparse.Namespace) -> None:
    from vectors_card import lines

    for name, row in lines(args):
        keep("card", name, row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="disk,sweep,memory,card,scale", type=lambda s: s.split(","))
    parser.add_argument("--sets", default="sift,glove,tokens", type=lambda s: s.split(","))
    parser.add_argument("--glove")
    parser.add_argument("--peers", default="recipe,lists,view", type=lambda s: s.split(","))
    parser.add_argument("--lance-python")
    parser.add_argument("--diskann-python")
    args = parser.parse_args()
    for part in args.parts:
        {"disk": disk, "sweep": sweep, "memory": memory, "card": card, "scale": scale}[part](args)
    print(RESULTS)


if __name__ == "__main__":
    main()
