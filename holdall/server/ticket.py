"""A request's place in the queue, and what it is told from there on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from holdall.server.answer import Answer
from holdall.server.faults import Refusal
from holdall.server.protocol import Job


@dataclass(frozen=True)
class Told:
    """A piece of an answer, its end, or why there is none."""

    text: str = ""
    end: str | None = None
    fault: Refusal | None = None


@dataclass(eq=False)
class Ticket:
    """A request's place in the queue, and what it is told from there on. Made and read on the event loop."""

    key: int
    job: Job
    answer: Answer
    loop: asyncio.AbstractEventLoop
    deadline: float
    news: asyncio.Queue[Told] = field(default_factory=asyncio.Queue)
    born: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    done: float = 0.0
    reused: int = 0  # tokens of the prompt that were not read again


@dataclass
class Counts:
    """What went by since the server started."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
