"""Measures of the room: exactness, bytes against what people use today, speed, and a search."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

from holdall.errors import BadInput
from holdall.files import open_stream
from holdall.kinds import Spend
from holdall.packed import Packed
from holdall.report import Report, provenance

FLOORS: tuple[str, ...] = ("logs.none", "logs.zstd", "logs.xz")
UNITS = {"bytes": "B", "pack_mb_per_cpu_second": "MB/s", "unpack_mb_per_cpu_second": "MB/s"}
_SUBJECTS = (
    "cache lookup of shard",
    "slow query over table",
    "session token for user",
    "upstream link to node",
)
_FATES = ("took this many ms:", "was retried, attempts so far:", "was refused by policy number")
_SAID = [f"{subject} %d {fate} %d" for subject in _SUBJECTS for fate in _FATES]


def specimens() -> dict[str, bytes]:
    """Small inputs of every awkward kind."""
    lines = [b"2024-05-%02d 10:%02d:%02d,%03d INFO worker-%d took %d ms for job_%x" % (
        1 + i // 40, i % 60, i * 7 % 60, i * 13 % 1000, i % 5, i * i % 977, i * 7919) for i in range(63)]  # fmt: skip
    every = bytes(range(256))
    return {
        "one": b"x",
        "three": b"a 1\nb 2\nc 3\n",
        "odd63": b"\n".join(lines),
        "constant": b"the same line 17\n" * 200,
        "empty": b"",
        "blank": b"\n\n \n\n",
        "crlf": b"\r\n".join(lines) + b"\r\n",
        "binary": every * 8,
        "invalid utf-8": b"caf\xc3\xa9 \xff\xfe\x80 %d\n" % 12 * 99,
        "wildcards": b"<*> is <*> and <*> 5\nis <*>\n" * 40,
        "nul": b"a\0b 1\n" * 70,
    }


@cache
def real() -> bytes:
    """What the standard library's web server logs under a scripted load, by a clock of its own.

    The clock and the clients' ports are scripted too, so that the bytes are the same in every process.
    """
    import http.client
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    lines: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            i = len(lines)
            if i % 5 == 0:
                self.log_message(_SAID[i // 5 % len(_SAID)], i * 31 % 77, i % 13)
            if "missing" in self.path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, form: str, *values: Any) -> None:
            second = len(lines) * 7 // 5
            at = f"{second // 3600 + 9:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
            said = form % values
            lines.append(f"10.0.{len(said) % 3}.{len(lines) * 31 % 200} - - [17/May/2024 {at}] {said}\n")

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        client = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
        for i in range(1800):
            kind = "missing" if i % 17 == 0 else ("user", "item", "session")[i * i % 3]
            client.request("GET", f"/api/{kind}/{i * 7919 % 997}?page={i % 23}")
            client.getresponse().read()
        client.close()
        server.shutdown()
        thread.join()
    return "".join(lines).encode()


def loss(x: bytes, y: bytes) -> float:
    """The share of lines that are not as they were."""
    a, b = bytes(x).split(b"\n"), bytes(y).split(b"\n")
    kept = sum(p == q for p, q in zip(a, b, strict=False))
    return 1 - kept / max(len(a), len(b))


def same(x: bytes, y: bytes) -> bool:
    return bytes(x) == bytes(y)


def original_bytes(x: bytes) -> int:
    return len(x)


def fingerprint(x: bytes) -> bytes:
    return bytes(x)


def measure(
    method: Any, budget: Spend = None, *, model: str | None = None, on: str | None = None, quick: bool = False
) -> Report:
    """Bytes, ratio and CPU speed of the method beside the floors. on: a log, by default the one of `real`."""
    if model is not None:
        raise BadInput("--model", model, "no model: logs are measured --on a file")
    x = real()
    if on is not None:
        with open_stream(on) as f:
            x = f.read(4 << 20) if quick else f.read()
    from holdall.registry import get

    rows = {"original": {"bytes": float(len(x))}}
    for name in FLOORS:
        rows[name] = figures(get(name)(), x)
    rows[method.full_name()] = figures(method, x, budget)
    told = provenance(
        method=method.to_dict(),
        budget=str(budget),
        on=Path(on).name if on else "a web server under a scripted load",
    )
    return Report(rows, baseline="original", units=UNITS, provenance=told)


def figures(method: Any, x: bytes, budget: Spend = None) -> dict[str, float]:
    """Bytes and CPU speeds of one method, and the share of lines that came back as they were."""
    method.decode(method.encode(x[: 64 << 10]))  # loads and compiles outside the measure
    start = time.process_time()
    raw = method.encode(x, budget).to_bytes()
    packed_in = time.process_time() - start
    start = time.process_time()
    back = method.decode(Packed.from_bytes(raw))
    unpacked_in = time.process_time() - start
    megabytes = len(x) / 1e6
    return {
        "bytes": len(raw),
        "ratio": len(x) / len(raw),
        "lines_kept": 1 - loss(x, back),
        "pack_mb_per_cpu_second": megabytes / max(packed_in, 1e-9),
        "unpack_mb_per_cpu_second": megabytes / max(unpacked_in, 1e-9),
    }
