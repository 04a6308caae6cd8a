"""PyTorch-Direct beside what people use to gather rows of a table in a file.

    OMP_NUM_THREADS=1 python benchmarks/training_gather.py [--parts zipf,uniform,graph,warm,knobs,lines,steps]
        [--gb 4] [--batches 6] [--folder /somewhere/on/a/disk] [--allowed 512]

zipf, uniform: batches of 8,192 rows of 512 bytes (and of 2,048 bytes) of a table of --gb gigabytes; private memory is
capped (RLIMIT_DATA), and the file leaves the page cache before every batch. graph: two-hop neighbourhoods in a graph
of 37,700 developers (../shared/data), rows of 4,096 bytes. warm: the same with all of the file in the cache. steps: a
loop that may fill --allowed megabytes of page cache before it is emptied. Ways take turns, each its own batch of the
same kind; what is told is the median of batches and the ratio to ours. device_mb is what the disk gave
(/proc/self/io), grew_mb what the process grew by, batch and mapped pages. Results are merged into
results/training_gather.json.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdall.meter import resident_bytes
from holdall.report import provenance
from holdall.training import PyTorchDirect
from holdall.training.pytorch_direct_lines import lines

RESULTS = Path(__file__).parent / "results" / "training_gather.json"
GRAPH = Path(__file__).parents[2] / "shared" / "data" / "graphs" / "github-edges.csv"
Way = Callable[[np.ndarray], Any]


def keep(part: str, name: str, row: dict[str, Any]) -> None:
    """Print a row and merge it into the results."""
    told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float | int) else f"{k} {v}" for k, v in row.items())
    print(f"{part}: {name:44s} {told}", flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found.setdefault(part, {})[name] = row
    found["provenance"] = provenance(threads=os.environ.get("OMP_NUM_THREADS"))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def written(folder: str, nbytes: int, width: int) -> str:
    """A .npy table of float32; each block of 64 MB is another, from a drawn one."""
    path, block = f"{folder}/table{width}.npy", (64 << 20) // width
    drawn = np.random.default_rng(0).normal(size=(block, width // 4)).astype("f4")
    out = np.lib.format.open_memmap(path, "w+", np.float32, (nbytes // width, width // 4))
    for i in range(0, len(out), block):
        out[i : i + block] = drawn[: len(out) - i] + np.float32(i)
    out.flush()
    return path


class Ways:
    """The ways to gather rows of one file, and how its pages leave memory."""

    def __init__(self, path: str, most: int):
        self.path, self.fd = path, os.open(path, os.O_RDONLY)
        self.plain, self.random = (np.load(path, mmap_mode="r") for _ in range(2))
        self.random._mmap.madvise(mmap.MADV_RANDOM)
        shape = (most, self.plain.shape[1])
        self.staging, self.batch = torch.empty(shape), torch.empty(shape)
        self.direct = {
            "direct": PyTorchDirect(), "direct, unsorted": PyTorchDirect(sort=False),
            "direct, one thread": PyTorchDirect(threads=1), "direct, gap 0": PyTorchDirect(gap=0),
            "direct, gap 16 kB": PyTorchDirect(gap=16 << 10), "direct, 16 threads": PyTorchDirect(threads=16),
        }  # fmt: skip
        self.open: dict[str, Any] = {}

    def named(self, name: str) -> Way:
        made = {
            "memmap[idx]": lambda i: self.plain[i],
            "memmap[idx], no read-ahead": lambda i: self.random[i],
            "memmap[idx] + pinned + copy": lambda i: self.staged(self.plain, i),
            "memmap[idx] + pinned + copy, no read-ahead": lambda i: self.staged(self.random, i),
            "pread a row, in Python": self.by_row,
        }
        if name in self.direct and name not in self.open:
            self.open[name] = self.direct[name].open(self.path)
        return made[name] if name in made else self.open[name].step

    def staged(self, table: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """Gather, copy into the buffer that a device would read, copy into the batch."""
        held, out = self.staging[: len(rows)], self.batch[: len(rows)]
        held.copy_(torch.from_numpy(table[rows]))
        return out.copy_(held)

    def by_row(self, rows: np.ndarray) -> np.ndarray:
        out, width = np.empty((len(rows), self.plain.shape[1]), np.float32), self.plain.shape[1] * 4
        for place, row in zip(out, rows.tolist(), strict=True):
            os.preadv(self.fd, [place.data], self.plain.offset + row * width)
        return out

    def cold(self) -> None:
        for table in (self.plain, self.random):
            table._mmap.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for session in self.open.values():
            session.close()
        self.open.clear()


def device() -> int:
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["read_bytes"])


def race(
    part: str, ways: Ways, names: list[str], batches: Iterator[np.ndarray], count: int, cold: bool
) -> None:
    rows: dict[str, list[tuple[float, float, int, int]]] = {n: [] for n in names}
    for turn in range(count + 1):
        for name in names:
            wanted, act = next(batches), ways.named(name)
            truth = ways.random[wanted] if turn == 0 else None
            if cold:
                ways.cold()
            else:
                ways.random[wanted].sum()  # in the cache
            held, read, cpu, start = resident_bytes(), device(), time.process_time(), time.perf_counter()
            got = act(wanted)
            told = (time.perf_counter() - start, time.process_time() - cpu, device() - read)
            told = (*told, resident_bytes() - held)
            if truth is not None:  # the first turn warms up, and is where results are compared
                assert np.array_equal(np.asarray(got), truth), name
            else:
                rows[name].append(told)
            del got
    ours = np.median([t for t, *_ in rows["direct"]])
    for name in names:
        seconds, cpu, read, held = (float(np.median(x)) for x in zip(*rows[name], strict=True))
        row = {
            "ms": seconds * 1e3,
            "cpu_ms": cpu * 1e3,
            "times_ours": seconds / ours,
            "device_mb": read / 1e6,
            "grew_mb": held / 1e6,
        }
        if name in ways.open:
            went = ways.open[name].traffic()
            row |= {f"{k}_a_batch": went[k] / went["steps"] for k in ("reads", "pages")}
        keep(part, name, row)
    ways.close()


def zipf(count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(seed)
    places = draw.permutation(count)  # the wanted ones lie all over
    while True:
        found = draw.zipf(1.2, 3 * batch)
        found = found[found <= count][:batch]
        yield places[found - 1]


def uniform(count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(seed)
    while True:
        yield draw.integers(0, count, batch)


def neighbourhoods(count: int, seeds: int = 256, fan: int = 8) -> Iterator[np.ndarray]:
    """Two hops from drawn nodes, at most `fan` neighbours each; what a sampler of graphs asks for."""
    edges = np.loadtxt(GRAPH, delimiter=",", skiprows=1, dtype=np.int64)
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    starts = np.searchsorted(both[:, 0], np.arange(count + 1))
    draw = np.random.default_rng(0)
    while True:
        found = [draw.integers(0, count, seeds)]
        for _ in range(2):
            last = found[-1]
            degree = starts[last + 1] - starts[last]
            at = starts[last][:, None] + (draw.random((len(last), fan)) * degree[:, None]).astype(np.int64)
            found.append(np.unique(both[at[degree > 0].reshape(-1), 1]))
        yield np.unique(np.concatenate(found))


PEERS = ["memmap[idx], no read-ahead", "memmap[idx] + pinned + copy, no read-ahead", "pread a row, in Python"]
TRAP = ["memmap[idx]", "memmap[idx] + pinned + copy"]
KNOBS = ["direct, unsorted", "direct, one thread", "direct, 16 threads", "direct, gap 0", "direct, gap 16 kB"]


def steps(ways: Ways, count: int, allowed: int) -> None:
    """A loop whose page cache may grow to `allowed` bytes: what a machine with as little memory would keep of it."""
    for name in ["direct", *PEERS[:2]]:
        batches, ways_read, since, seconds = zipf(count, 8192, 7), 0, 0, 0.0
        ways.cold()
        for _ in range(40):
            wanted, before, start = next(batches), device(), time.perf_counter()
            ways.named(name)(wanted)
            seconds += time.perf_counter() - start
            ways_read, since = ways_read + device() - before, since + device() - before
            if since > allowed:
                ways.cold()
                since = 0
        ways.close()
        keep("steps", f"{name}, {allowed >> 20} MB", {"s_40_batches": seconds, "device_mb": ways_read / 1e6})


def capped(extra: int) -> int:
    """Private memory of this process from now on, at most."""
    held = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (held + extra, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    return held + extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", default="zipf,uniform,graph,warm,knobs,lines,steps")
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--allowed", type=int, default=512, help="MB of page cache in steps")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if "lines" in parts:
        for width in (256, 257, 300, 1000):
            starts = np.arange(4096) * width * 4
            plain, shifted = (int(lines(starts, width, 4, s).sum()) for s in (False, True))
            keep("lines", f"{width} float32", {"plain": plain, "shifted": shifted, "ratio": shifted / plain})
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for width in (512, 2048):
            size = int(args.gb * (1 << 30)) // width * width
            ways = Ways(written(folder, size, width), 8192)
            ways.cold()
            capped(512 << 20)
            count = len(ways.plain)
            for part, draw in (("zipf", zipf), ("uniform", uniform)):
                if part in parts:
                    names = ["direct", *PEERS]
                    race(f"{part} {width}", ways, names, draw(count, 8192, 1), args.batches, True)
                    if part == "zipf":  # each of its batches reads the whole file
                        race(
                            f"{part} {width}, read-ahead",
                            ways,
                            ["direct", *TRAP],
                            draw(count, 8192, 2),
                            1,
                            True,
                        )
            if "knobs" in parts:
                for part, draw in (("zipf", zipf), ("uniform", uniform)):
                    names = ["direct", *KNOBS]
                    race(f"knobs, {part} {width}", ways, names, draw(count, 8192, 3), args.batches, True)
            if "warm" in parts:
                names = ["direct", *PEERS]
                race(f"warm {width}", ways, names, zipf(count, 8192, 4), args.batches, False)
            if "steps" in parts:
                steps(ways, count, args.allowed << 20)
            Path(ways.path).unlink()
        if "graph" in parts and GRAPH.exists():
            ways = Ways(written(folder, 37_700 * 4096, 4096), 37_700)
            race("graph", ways, ["direct", *PEERS, *TRAP], neighbourhoods(37_700), args.batches, True)


if __name__ == "__main__":
    main()
