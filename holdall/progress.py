"""Progress bars for long work: only on a terminal, only after two seconds, and free otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 2.0  # seconds of work before a bar appears


def track(iterable: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The same items; when they take over two seconds and stderr is a terminal, a bar says how far they are.

    Rich is imported only at the moment when a bar appears, so piped work pays nothing.
    """
    if not sys.stderr.isatty():
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    started, bar = time.monotonic(), None
    try:
        for done, item in enumerate(iterable):
            if bar is None and time.monotonic() - started > PATIENCE:
                bar = _Bar(what, total, done)
            if bar is not None:
                bar.to(done)
            yield item
        if bar is not None and total is not None:
            bar.to(total)
    finally:
        if bar is not None:
            bar.close()


class _Bar:
    """One Rich bar on stderr, gone when the work is done."""

    def __init__(self, what: str, total: int | None, done: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(what, total=total, completed=done)

    def to(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        self._progress.stop()
