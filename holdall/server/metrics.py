"""Figures for Prometheus, and the parts of the memory for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdall.server.ticket import Ticket
    from holdall.server.worker import Worker

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """One registry a server, so that two in one process do not mix."""

    def __init__(self, worker: Worker):
        self.registry = CollectorRegistry()
        self.registry.register(_Now(worker))
        self.requests = Counter(
            "holdall_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.first = self._seconds("holdall_first_token_seconds", "From request to first token.")
        self.waited = self._seconds("holdall_queue_seconds", "Time that requests waited for their turn.")
        self.whole = self._seconds("holdall_request_seconds", "From request to the end of its answer.")

    def _seconds(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, buckets=_SECONDS, registry=self.registry)

    def answered(self, ticket: Ticket) -> None:
        if ticket.first:
            self.first.observe(ticket.first - ticket.born)
        if ticket.started:
            self.waited.observe(ticket.started - ticket.born)
        if ticket.done:
            self.whole.observe(ticket.done - ticket.born)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Now:
    """Figures that are read when they are asked for."""

    def __init__(self, worker: Worker):
        self.worker = worker

    def collect(self) -> Iterator[Any]:
        worker, counts = self.worker, self.worker.counts
        for name, value, about in (
            ("prompt_tokens", counts.prompt_tokens, "Tokens of prompts."),
            (
                "reused_tokens",
                counts.reused_tokens,
                "Of these, those that stood in memory and were not read again.",
            ),
            ("new_tokens", counts.new_tokens, "Tokens written."),
            ("answered", counts.answered, "Answers that were completed."),
            ("cancelled", counts.cancelled, "Requests whose client went away, or that took too long."),
            ("failed", counts.failed, "Requests that ended in a fault of the server."),
            ("refused", counts.refused, "Requests for which the queue had no place."),
        ):
            yield CounterMetricFamily(f"holdall_{name}", about, value=value)
        running, waiting = worker.load
        yield GaugeMetricFamily("holdall_running", "Requests that are being answered.", value=running)
        yield GaugeMetricFamily("holdall_waiting", "Requests that wait.", value=waiting)
        yield GaugeMetricFamily("holdall_resident_bytes", "Resident memory.", value=worker.resident)
        memory = GaugeMetricFamily("holdall_memory_bytes", "Where the memory is.", labels=["part"])
        for part in parts(worker)["parts"]:
            memory.add_metric([part["name"]], part["bytes"])
        yield memory


def parts(worker: Worker) -> dict[str, Any]:
    """Where the memory is now: weights, contexts by tier, the rest of what is resident, and what is free.

    With a limit it is shared out; without one what is resident is.
    """
    now = worker.memory
    held = now.weights + sum(now.kv.values())
    beside = worker.resident - worker.base  # the interpreter and its libraries are not counted
    total = max(held, beside) if now.limit is None else max(now.limit, held)
    other = min(max(0, beside - held), total - held)
    rows = [{"name": "weights", "kind": "weights", "bytes": now.weights}]
    rows += [{"name": f"KV {tier}", "kind": "kv", "bytes": size} for tier, size in now.kv.items()]
    rows.append({"name": "other", "kind": "other", "bytes": other})
    rows.append({"name": "free", "kind": "free", "bytes": total - held - other})
    running, waiting = worker.load
    return {
        "total": total, "limit": now.limit, "resident": worker.resident, "base": worker.base, "kv_full": now.kv_full,
        "running": running, "waiting": waiting, "parts": rows,
    }  # fmt: skip
