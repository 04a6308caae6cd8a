"""A server that runs for long: memory stays flat, and what it tells about itself is true."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
parser = pytest.importorskip("prometheus_client.parser")

from server.conftest import Served, serving  # noqa: E402

from holdall.memory import release  # noqa: E402
from holdall.meter import resident_bytes  # noqa: E402


async def crowd(url: str, count: int, seed: int) -> dict[str, int]:
    """Clients of every kind, 16 at a time: patient, streaming, gone in the middle, and wrong."""
    lot, seen = random.Random(seed), {"whole": 0, "streamed": 0, "gone": 0, "refused": 0}
    gate = asyncio.Semaphore(16)

    async def one(client: Any, kind: str, most: int) -> None:
        asked = {
            "model": "tiny",
            "prompt": "x" * lot.randint(1, 200),
            "max_tokens": most,
            "stream": kind != "whole",
        }
        async with gate:
            if kind == "refused":
                asked["max_tokens"] = 10**6
            async with client.stream("POST", "/v1/completions", json=asked) as answer:
                assert answer.status_code == (400 if kind == "refused" else 200)
                async for _ in answer.aiter_lines():
                    if kind == "gone":
                        break
            seen[kind] += 1

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.gather(*(one(client, lot.choice(list(seen)), lot.randint(1, 30)) for _ in range(count)))
    return seen


def settled(served: Served) -> int:
    """Resident bytes when nobody is served any more."""
    end = time.monotonic() + 10
    while served.service.worker.load != (0, 0):
        assert time.monotonic() < end
        time.sleep(0.02)
    gc.collect()
    release()
    return resident_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 4])
def test_memory_is_flat(opened: Callable[..., Any], slots: int) -> None:
    """Three hundred requests more leave nothing behind that is worth a name: less than 10 kB each."""
    with serving(*opened(slots=slots)) as served:
        asyncio.run(crowd(served.url, 120, 0))
        before = settled(served)
        asyncio.run(crowd(served.url, 300, 1))
        grown = settled(served) - before
        assert grown < 300 * 10_000


def test_metrics_say_what_happened(opened: Callable[..., Any]) -> None:
    with serving(*opened(slots=1)) as served:
        seen = asyncio.run(crowd(served.url, 40, 2))
        settled(served)
        counts = served.service.worker.counts
        text = httpx.get(f"{served.url}/metrics").text
    found = {
        (s.name, s.labels.get("status"), s.labels.get("part")): s.value
        for family in parser.text_string_to_metric_families(text)
        for s in family.samples
    }
    assert found["holdall_requests_total", "400", None] == seen["refused"] > 0
    assert found["holdall_requests_total", "200", None] == sum(seen.values()) - seen["refused"]
    assert found["holdall_new_tokens_total", None, None] == counts.new_tokens > 0
    assert counts.answered + counts.cancelled == sum(seen.values()) - seen["refused"]
    assert found["holdall_first_token_seconds_count", None, None] >= seen["whole"] + seen["streamed"]
    assert found["holdall_running", None, None] == found["holdall_waiting", None, None] == 0
    assert found["holdall_memory_bytes", None, "weights"] == served.service.worker.memory.weights
    assert found["holdall_resident_bytes", None, None] > 10**7
