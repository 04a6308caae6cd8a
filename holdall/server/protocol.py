"""What the server needs of anything that generates. One thread makes all calls but `check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from holdall.errors import HoldallError


@dataclass(frozen=True)
class Job:
    """A prompt to be answered.

    ids: the prompt. most: tokens that the answer may have. temperature, top_p, seed: how tokens are drawn.
    """

    ids: Sequence[int]
    most: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Event:
    """What a step brought to one job: a token, the end ("stop": the model's own; "length": `most`), or a fault.

    reused: with the first news, tokens of the prompt that stood in memory already and were not read again.
    """

    key: int
    token: int | None = None
    end: str | None = None
    fault: HoldallError | None = None
    reused: int = 0


@dataclass(frozen=True)
class Memory:
    """Where the memory is now, in bytes.

    limit: what weights, contexts and workspace may take together; None: no limit was given. kv: contexts held, by
    tier ("16 bit", "4 bit" ...). kv_full: what those contexts would take if they were kept whole.
    """

    weights: int
    kv: dict[str, int] = field(default_factory=dict)
    kv_full: int = 0
    limit: int | None = None


class Runner(Protocol):
    """Generates answers, some at a time, in steps."""

    slots: int  # answers that it works on at a time, at most
    context: int  # tokens that prompt and answer may have together

    def check(self, tokens: int, most: int) -> None:
        """Raises BudgetError if a prompt of `tokens` and an answer of `most` could not be held, ever."""

    def admits(self, job: Job) -> bool:
        """Whether there is room for the job now. A job that passed `check` is admitted once nothing else runs."""

    def submit(self, key: int, job: Job) -> None:
        """Take the job; `key` names it from now on."""

    def cancel(self, key: int) -> None:
        """Forget the job, if it is there, and free its memory."""

    def step(self) -> list[Event]:
        """Go on by one token (or one piece of a prompt) with all jobs. An ended job is forgotten, its memory free."""

    def memory(self) -> Memory:
        """The figures of this moment."""

    def close(self) -> None:
        """Free everything."""
