"""Requests for the server's benchmark: what they ask for, and clients that send them."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from holdall.dropins.tokenizer import Tokenizer
from holdall.engine_plan import Source
from holdall.weights.texts import held_out_text

TRACE = Path(__file__).parent.parent.parent / "shared" / "data" / "traces" / "mooncake_conversation.jsonl"
CLIENTS = 8
TURNS = 4


@dataclass(frozen=True)
class Asked:
    at: float  # seconds in the trace
    ids: list[int]
    most: int


@dataclass
class Told:
    status: int
    prompt: int = 0
    reused: int = 0
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    fault: str = ""
    text: str = ""


@dataclass
class Load:
    """Requests under way: how many were sent, and what came of those that ended."""

    sent: int = 0
    told: list[Told] = field(default_factory=list)


def requests(args: argparse.Namespace, salt: int = 0) -> Iterator[Asked]:
    """The trace's conversations, over and over; each prompt is another part of a real text, by the salt too."""
    ids = Tokenizer(Source.of(args.model).files).encode(held_out_text()[:2_000_000])
    if TRACE.exists():
        rows = [json.loads(line) for line in TRACE.read_text().splitlines()]
        lengths = [(r["timestamp"] / 1000, r["input_length"], r["output_length"]) for r in rows]
    else:
        lot = random.Random(0)
        drawn = [(lot.lognormvariate(8.9, 1.0), lot.lognormvariate(5.6, 0.8)) for _ in range(2000)]
        lengths = [(0.3 * i, int(a), int(b)) for i, (a, b) in enumerate(drawn)]
    start = 0.0
    for turn in itertools.count():
        for i, (at, before, after) in enumerate(lengths):
            size = min(1500, max(16, before // args.shrink_prompt))
            where = (7919 * (i + turn) + 104_729 * salt) % (len(ids) - size)
            yield Asked(start + at, ids[where : where + size], min(400, max(4, after // args.shrink_answer)))
        start += lengths[-1][0]


async def ask(client: httpx.AsyncClient, load: Load, path: str, body: dict[str, Any]) -> Told:
    """One streamed request. The model's own end may come early: what counts is what was really generated."""
    body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    start, told = time.perf_counter(), Told(0)
    load.sent += 1
    async with client.stream("POST", path, json=body) as answer:
        told.status = answer.status_code
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                told.fault = event.get("error", {}).get("message", told.fault)
                for choice in event.get("choices", ()):
                    piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                    told.text += piece
                    told.first = told.first or (time.perf_counter() - start if piece else 0.0)
                if event.get("usage"):
                    told.tokens, told.prompt = (
                        event["usage"][f"{k}_tokens"] for k in ("completion", "prompt")
                    )
                    told.reused = event["usage"]["prompt_tokens_details"]["cached_tokens"]
    told.seconds = time.perf_counter() - start
    load.told.append(told)
    return told


def completion(model: str, asked: Asked) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {"model": model, "prompt": asked.ids, "max_tokens": asked.most}


async def closed(load: Load, url: str, model: str, work: list[Asked], clients: int) -> None:
    """So many clients, each with the next request as soon as its last one is answered."""
    left = iter(work)

    async def one() -> None:
        for asked in left:
            await ask(client, load, *completion(model, asked))

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await asyncio.gather(*(one() for _ in range(clients)))


async def talked(load: Load, url: str, model: str) -> None:
    """Eight conversations at a time, turn by turn: each asks with all that was said before."""
    text = held_out_text()

    async def one(who: int) -> None:
        said = [{"role": "system", "content": "You read a text, part by part. Answer in a sentence."}]
        for turn in range(TURNS):
            at = 100_000 + 9_000 * who + 600 * turn
            said.append({"role": "user", "content": text[at : at + 600]})
            told = await ask(
                client, load, "/v1/chat/completions", {"model": model, "messages": said, "max_tokens": 24}
            )
            said.append({"role": "assistant", "content": told.text or "."})

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await asyncio.gather(*(one(who) for who in range(CLIENTS)))


async def opened(
    load: Load, url: str, model: str, work: Iterator[Asked], speed: float, seconds: float
) -> None:
    """Requests by the trace's clock, `speed` times as fast, whether or not anything was answered."""
    tasks: list[asyncio.Task[Told]] = []
    start = time.perf_counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        try:
            for asked in work:
                wait = asked.at / speed - (time.perf_counter() - start)
                if wait > 0:
                    await asyncio.sleep(wait)
                if time.perf_counter() - start > seconds:
                    break
                tasks.append(asyncio.create_task(ask(client, load, *completion(model, asked))))
            await asyncio.gather(*tasks)
        finally:  # only a run that was ended has some left
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
