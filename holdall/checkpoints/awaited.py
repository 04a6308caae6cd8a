"""The receipt of a save that goes on in the background: what it came to, for whoever waits."""

from __future__ import annotations

import threading

from holdall.errors import HoldallError
from holdall.kinds import Receipt


class Awaited(Receipt):
    """`ended`: set when it is durable, or failed. `told`: whether somebody was told what went wrong."""

    def __init__(self, step: int):
        self.step, self.blocked, self.told = step, 0.0, False
        self.fault: BaseException | None = None
        self.ended = threading.Event()
        self._nbytes = 0

    def end(self, nbytes: int, fault: BaseException | None = None) -> None:
        self._nbytes, self.fault = nbytes, fault
        self.ended.set()

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout):
            raise HoldallError(f"step {self.step} is not durable after {timeout:.3g} s; it goes on")
        if self.fault is not None:
            self.told = True
            raise self.fault
        return self._nbytes

    @property
    def done(self) -> bool:
        return self.ended.is_set() and self.fault is None
