"""Everything that can go wrong between a client and an answer, in the shape that OpenAI's clients know."""

from __future__ import annotations

import errno
import math
from typing import Any

from holdall.errors import BadInput, BudgetError, HoldallError

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "invalid_request_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 499: "client_closed_request", 500: "server_error", 503: "server_error",
    504: "timeout_error",
}  # fmt: skip


class Refusal(HoldallError):
    """A request that is not answered: an HTTP status, and what the client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ):
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        told = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return told | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def full(retry_after: float) -> Refusal:
    return Refusal(429, "the queue is full; try again later", "queue_full", retry_after=retry_after)


def stopping() -> Refusal:
    return Refusal(503, "the server is shutting down", "shutting_down", retry_after=5)


def too_slow(seconds: float) -> Refusal:
    return Refusal(504, f"no complete answer within {seconds:g} seconds", "timeout")


def gone() -> Refusal:
    return Refusal(499, "the client went away", "client_closed_request")


def too_long(message: str, param: str) -> Refusal:
    return Refusal(400, message, "context_length_exceeded", param)


def of(fault: BaseException) -> Refusal:
    """Any fault of a request as what its client is told."""
    if isinstance(fault, Refusal):
        return fault
    if isinstance(fault, BudgetError):
        return too_long(f"this does not fit into the memory: {fault}", "messages")
    if isinstance(fault, BadInput):
        return Refusal(400, str(fault), "invalid_value", fault.what)
    if _no_memory(fault):
        return Refusal(503, "out of memory; try a shorter prompt, or later", "out_of_memory", retry_after=5)
    return Refusal(500, "the server failed to answer this request", "internal_error")


def _no_memory(fault: BaseException) -> bool:
    """As Python, torch's allocator and the kernel say it."""
    if isinstance(fault, OSError):
        return fault.errno == errno.ENOMEM
    return isinstance(fault, MemoryError) or (
        isinstance(fault, RuntimeError) and "allocate memory" in str(fault)
    )
