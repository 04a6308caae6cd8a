"""The one thread that generates, the bounded queue before it, and tickets for those who wait for answers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from holdall.meter import resident_bytes
from holdall.server import faults
from holdall.server.answer import Answer
from holdall.server.protocol import Event, Job, Memory, Runner
from holdall.server.ticket import Counts, Ticket, Told

if TYPE_CHECKING:
    from holdall.dropins.tokenizer import Tokenizer

_LOG = logging.getLogger("holdall.server")
_EVERY = 0.1  # seconds between two readings of the memory


class Worker:
    """Runs jobs on a thread of its own.

    queue: requests that may wait beside those that are being answered; one more is refused with the seconds after
    which a place should be free. base: resident bytes before a model was there.
    """

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, lock: threading.Lock, queue: int = 64, base: int = 0
    ):
        self.runner, self.queue, self.base, self.counts = runner, queue, base, Counts()
        self.memory: Memory = runner.memory()
        self.resident = resident_bytes()
        self._tokenizer, self._lock = tokenizer, lock
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, Ticket] = {}
        self._dropped: set[int] = set()
        self._keys, self._looked = 0, 0.0
        self._seconds = 1.0  # that an answer takes, lately
        self._stopping = self._ended = False
        self._thread = threading.Thread(target=self._run, name="holdall-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job, stops: Sequence[str], timeout: float) -> Ticket:
        """A place in the queue; called on the event loop."""
        with self._changed:
            if self._stopping:
                raise faults.stopping()
            inside = len(self._waiting) + len(self._running)
            if inside >= self.queue + self.runner.slots:
                self.counts.refused += 1
                raise faults.full(self.wait())
            self._keys += 1
            answer = Answer(self._tokenizer, stops)
            loop = asyncio.get_running_loop()
            ticket = Ticket(self._keys, job, answer, loop, time.monotonic() + timeout)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def wait(self) -> float:
        """Seconds until a place in the queue should be free: answers take as long as they did lately."""
        return min(60.0, self._seconds / self.runner.slots)

    def drop(self, ticket: Ticket) -> None:
        """Forget a request, wherever it is; its memory is free before the next step."""
        with self._changed:
            if not ticket.done:
                self._dropped.add(ticket.key)
                self._changed.notify()

    def stop(self) -> None:
        """Refuse what is new; what is inside goes on."""
        self._stopping = True

    def abandon(self, fault: faults.Refusal) -> None:
        """Tell everybody inside that there will be no answer. Works also while the engine is busy."""
        with self._changed:
            inside = [*self._waiting, *self._running.values()]
            self._dropped |= {t.key for t in inside}
            self._changed.notify()
        self._send([(t, Told(fault=fault)) for t in inside])

    def close(self, seconds: float = 5.0) -> None:
        """End the thread, within some seconds if it is in the middle of something."""
        with self._changed:
            self._stopping = self._ended = True
            self._changed.notify()
        self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def load(self) -> tuple[int, int]:
        """Requests that are being answered, and that wait."""
        return len(self._running), len(self._waiting)

    def _run(self) -> None:
        try:
            self._work()
        finally:  # a fault of the server itself: nobody must wait for a thread that is gone
            self._stopping = True
            self.abandon(faults.stopping())

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._ended or self._dropped or self._waiting or self._running):
                    self._changed.wait()
                if self._ended:
                    break
            self._drop()
            self._admit()
            self._step()
            self._look()
        for key in list(self._running):
            self.runner.cancel(key)
        self.runner.close()

    def _drop(self) -> None:
        with self._changed:
            keys, self._dropped = self._dropped, set()
            for ticket in [t for t in self._waiting if t.key in keys]:
                self._waiting.remove(ticket)
                ticket.done = time.monotonic()
                self.counts.cancelled += 1
        for key in keys & self._running.keys():
            self.runner.cancel(key)
            self._leave(self._running[key])
            self.counts.cancelled += 1

    def _admit(self) -> None:
        """First come, first served: one that does not fit yet is not overtaken by a smaller one."""
        while self._waiting and self.runner.admits(self._waiting[0].job):
            with self._changed:
                ticket = self._waiting.popleft()
                self._running[ticket.key] = ticket
            ticket.started = time.monotonic()
            try:
                self.runner.submit(ticket.key, ticket.job)
            except Exception as fault:  # noqa: BLE001 - one request's fault must not end the others
                self._fail([ticket], fault)
            self.counts.prompt_tokens += len(ticket.job.ids)

    def _step(self) -> None:
        try:
            events = self.runner.step()
        except Exception as fault:  # noqa: BLE001 - as above; whoever it was, all that ran are told
            self._fail(list(self._running.values()), fault)
            return
        told = []
        for event in events:
            ticket = self._running.get(event.key)
            if ticket is not None:
                told += [(ticket, t) for t in self._tell(ticket, event)]
        self._send(told)

    def _tell(self, ticket: Ticket, event: Event) -> list[Told]:
        if event.fault is not None:
            self._fail([ticket], event.fault)
            return []
        text, end = "", event.end
        ticket.reused += event.reused
        self.counts.reused_tokens += event.reused
        with self._lock:
            if event.token is not None:
                ticket.first = ticket.first or time.monotonic()
                self.counts.new_tokens += 1
                text = ticket.answer.add(event.token)
            if end is not None and not ticket.answer.stopped:
                text += ticket.answer.rest()
        if ticket.answer.stopped:
            if end is None:
                self.runner.cancel(ticket.key)
            end = "stop"
        if end is not None:
            self._leave(ticket)
            self.counts.answered += 1
            self._seconds += 0.2 * (ticket.done - ticket.started - self._seconds)
        return [Told(text, end)] if text or end else []

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            ticket.done = time.monotonic()
            self._running.pop(ticket.key, None)

    def _fail(self, tickets: list[Ticket], fault: Exception) -> None:
        refusal = faults.of(fault)
        if refusal.status == 500:
            _LOG.error("an answer failed", exc_info=fault)
        for ticket in tickets:
            self.runner.cancel(ticket.key)
            self._leave(ticket)
            self.counts.failed += 1
        self._send([(t, Told(fault=refusal)) for t in tickets])

    def _send(self, told: list[tuple[Ticket, Told]]) -> None:
        """One call to each event loop, whatever the number of tickets."""
        for loop in {t.loop for t, _ in told}:
            mine = [(t, news) for t, news in told if t.loop is loop]
            with suppress(RuntimeError):  # a loop that is closed by now: nobody listens any more
                loop.call_soon_threadsafe(_put, mine)

    def _look(self) -> None:
        """Read the memory, now and then and whenever nothing runs any more."""
        now = time.monotonic()
        if now - self._looked >= _EVERY or not self._running:
            self._looked, self.memory, self.resident = now, self.runner.memory(), resident_bytes()


def _put(told: list[tuple[Ticket, Told]]) -> None:
    for ticket, news in told:
        ticket.news.put_nowait(news)
