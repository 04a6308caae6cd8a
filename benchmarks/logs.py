"""Logs: logs.logzip beside what people use today, in one run: bytes, CPU speeds, and searches.

    OMP_NUM_THREADS=1 python benchmarks/logs.py [--quick] [--data FOLDER]

Every round trip is compared byte by byte and every search line by line before a figure is written. Speeds are CPU
time (user and system, children included), for the machine may be shared; read them as ratios within one run.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import lzma
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import brotli
import pyppmd
import zstandard

from holdall.logs import Logzip
from holdall.packed import Packed
from holdall.report import Report, provenance

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data" / "logs"
_BROTLI = 8 << 20  # bytes: at half a MB/s it is not asked for more
UNITS = {"pack": "MB/s", "unpack": "MB/s"}


def logs(folder: Path, quick: bool) -> dict[str, bytes]:
    """The logs by name, unpacked; quick: the small ones and 4 MB of the others."""
    found = {f.stem: f.read_bytes() for f in sorted(folder.glob("loghub-2k/*_2k.log"))}
    found["linux"] = (folder / "linux-full.log").read_bytes()
    found["apache_access"] = (folder / "apache_access.log").read_bytes()
    found["zeek_ssl"] = gzip.decompress((folder / "zeek-ssl.log.gz").read_bytes())
    with zipfile.ZipFile(folder / "windows-events-1.jsonl.zip") as z, z.open(z.namelist()[0]) as f:
        raw = f.read(25_160_000)
    found["windows_events"] = raw[: raw.rfind(b"\n") + 1]
    found["hdfs"] = lzma.decompress((folder / "hdfs-222k.log.xz").read_bytes())
    return {k: v[: 4 << 20] if quick else v for k, v in found.items()}


def ppmd(raw: bytes) -> bytes:
    coder = pyppmd.Ppmd8Encoder(16, 256 << 20, 0)
    return coder.encode(raw) + coder.flush()


def unppmd(packed: bytes, size: int) -> bytes:
    return bytes(pyppmd.Ppmd8Decoder(16, 256 << 20, 0).decode(packed, size))


def long_zstd(raw: bytes) -> bytes:
    told = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=told).compress(raw)


def unzstd(packed: bytes, size: int) -> bytes:
    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(packed, max_output_size=size)


def codecs() -> dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]]:
    one = Logzip()
    return {
        "xz -9e": (
            lambda r: lzma.compress(r, preset=9 | lzma.PRESET_EXTREME),
            lambda p, n: lzma.decompress(p),
        ),
        "none": (bytes, lambda p, n: bytes(p)),
        "gzip -9": (lambda r: gzip.compress(r, 9), lambda p, n: gzip.decompress(p)),
        "zstd -3": (zstandard.ZstdCompressor(level=3).compress, unzstd),
        "zstd -19 --long": (long_zstd, unzstd),
        "bzip2 -9": (bz2.compress, lambda p, n: bz2.decompress(p)),
        "brotli 11 w24": (
            lambda r: brotli.compress(r, quality=11, lgwin=24),
            lambda p, n: brotli.decompress(p),
        ),
        "PPMd o16": (ppmd, unppmd),
        "logs.logzip": (lambda r: one.encode(r).to_bytes(), lambda p, n: one.decode(Packed.from_bytes(p))),
    }


def clocked(work: Callable[[], bytes]) -> tuple[bytes, float]:
    start = time.process_time()
    out = work()
    return out, max(time.process_time() - start, 1e-6)


def race(name: str, raw: bytes, folder: Path) -> dict[str, dict[str, float]]:
    """bytes, and CPU MB/s both ways, of every codec on one log."""
    rows: dict[str, dict[str, float]] = {}
    for codec, (pack, unpack) in codecs().items():
        if codec.startswith("brotli") and len(raw) > _BROTLI:
            continue
        packed, there = clocked(lambda pack=pack: pack(raw))
        back, again = clocked(lambda unpack=unpack, packed=packed: unpack(packed, len(raw)))
        if back != raw:
            raise SystemExit(f"{codec} did not give {name} back")
        rows[codec] = {"bytes": len(packed), "pack": len(raw) / 1e6 / there, "unpack": len(raw) / 1e6 / again}
    for tool, ask in {"zpaq": ["a", "-m5"], "7z": ["a", "-m0=PPMd:o=16:mem=256m"]}.items():
        if shutil.which(tool):
            (folder / "in").write_bytes(raw)
            target = folder / f"out.{tool}"
            used = child([tool, ask[0], str(target), str(folder / "in"), ask[1]])[0]
            rows[f"{tool} {ask[1]}"] = {"bytes": target.stat().st_size, "pack": len(raw) / 1e6 / used}
            target.unlink()
    for row in rows.values():
        row["of xz"] = rows["xz -9e"]["bytes"] / row["bytes"]
    return rows


def child(command: list[str] | str) -> tuple[float, bytes]:
    """CPU seconds of a command and all its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, shell=isinstance(command, str), capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def searches(raw: bytes, folder: Path) -> dict[str, dict[str, float]]:
    """CPU seconds to find a term's lines: ours in a warm process, and grep on what xz and zstd unpack."""
    (folder / "h.log").write_bytes(raw)
    (folder / "h.xz").write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    (folder / "h.zst").write_bytes(zstandard.ZstdCompressor(level=9).compress(raw))
    Logzip().encode(raw, to=str(folder / "h.hold")).close()
    lines = raw.split(b"\n")
    block = next(w for w in lines[len(lines) // 2].split() if w.startswith(b"blk_")).decode()
    terms = {
        "a block id that is not there": "blk_-1234567890123456789",
        "a word that is not there": "kernel panic",
        "a block id": block,
        "a rare message": "Got exception while serving",
        "an address": "10.251.43.21:50010",
        "a frequent message": "PacketResponder 2",
    }
    rows: dict[str, dict[str, float]] = {}
    for what, term in terms.items():
        wanted = [(i, x) for i, x in enumerate(lines, 1) if term.encode() in x]
        row: dict[str, float] = {"hits": len(wanted)}
        ours = []
        for _ in range(4):  # the first one loads and compiles
            start = time.process_time()
            with Packed.open(str(folder / "h.hold")) as packed:
                got = list(Logzip().grep(packed, term))
            ours.append(time.process_time() - start)
        if got != wanted:
            raise SystemExit(f"{term!r}: {len(got)} lines found, {len(wanted)} are there")
        row["logzip"] = min(ours[1:])
        for label, cat in {"grep": "cat h.log", "xz": "xz -dc h.xz", "zstd": "zstd -dc h.zst"}.items():
            command = f"cd {folder} && {cat} | LC_ALL=C grep -nF -e '{term}'"
            best, out = min((child(command) for _ in range(3)), key=lambda x: x[0])
            if out.splitlines() != [b"%d:%s" % x for x in wanted]:
                raise SystemExit(f"{label} | grep found other lines for {term!r}")
            row[f"{label} | grep"] = best
        row["of xz"], row["of zstd"] = row["logzip"] / row["xz | grep"], row["logzip"] / row["zstd | grep"]
        rows[what] = row
    return rows


def mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(
    per_log: dict[str, dict[str, dict[str, float]]], sizes: dict[str, int]
) -> dict[str, dict[str, float]]:
    """By codec: geometric mean, least and most of xz's size over its own, and CPU MB/s over all logs together."""
    rows: dict[str, dict[str, float]] = {}
    total = sum(sizes.values()) / 1e6
    for codec in per_log[next(iter(per_log))]:
        ratios = [rows_[codec]["of xz"] for rows_ in per_log.values() if codec in rows_]
        row = {"logs": len(ratios), "geo-mean of xz": mean(ratios), "least": min(ratios), "most": max(ratios)}
        for way in ("pack", "unpack"):
            if all(way in r.get(codec, ()) for r in per_log.values()):
                row[way] = total / sum(sizes[k] / 1e6 / r[codec][way] for k, r in per_log.items())
        rows[codec] = row
    for row in rows.values():
        for way in ("pack", "unpack"):
            if way in row:
                row[f"{way} of xz"] = row[way] / rows["xz -9e"][way]
    return rows


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--data", type=Path, default=DATA)
    asked.add_argument("--quick", action="store_true", help="4 MB of each log; no results are written")
    args = asked.parse_args()
    texts = logs(args.data, args.quick)
    warm = Logzip()
    warm.decode(warm.encode(texts["Linux_2k"], None))  # numba loads what it compiled
    warm.decode(warm.but(segment=200).encode(texts["BGL_2k"]))
    told = provenance(
        command=" ".join(["python", *sys.argv]), xz=child(["xz", "--version"])[1].decode().split()[3]
    )
    with tempfile.TemporaryDirectory() as name:
        folder, per_log = Path(name), {}
        for log, raw in texts.items():
            per_log[log] = race(log, raw, folder)
            report = Report(per_log[log], units=UNITS)
            print(report.as_table(title=f"\n{log}: {len(raw):,} bytes"), flush=True)
        totals = Report(summary(per_log, {k: len(v) for k, v in texts.items()}), units=UNITS, provenance=told)
        print(
            totals.as_table(title="\nall logs: xz -9e's size over the codec's (higher is smaller), CPU MB/s")
        )
        found = Report(searches(texts["hdfs"], folder), units={}, provenance=told)
        print(found.as_table(title="\nCPU seconds to search hdfs"))
    if not args.quick:
        (HERE / "results").mkdir(exist_ok=True)
        text = totals.to_json(logs=per_log, searches=dict(found.rows))
        (HERE / "results" / "logs.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
