"""Stored boxes, and files of a checkpoint that are read straight to where their bytes are wanted."""

from __future__ import annotations

import os
import threading
from typing import Any, NamedTuple

from holdall.checkpoints.boxes import Box
from holdall.errors import BadInput, CorruptArtefact
from holdall.files import Reader, is_local, local_path, open_reader


class Entry(NamedTuple):
    """A stored box: which bytes of which file, and their checksum."""

    name: str
    box: Box
    each: int
    file: str
    start: int
    stop: int
    xxh3: str


class Files:
    """Files of one checkpoint, opened when they are read; bytes go straight to where they are wanted."""

    def __init__(self, folder: str):
        self.folder, self._lock = folder, threading.Lock()
        self._open: dict[str, int | Reader] = {}
        self.traffic = 0

    def read(self, name: str, start: int, into: Any) -> None:
        """Fill a writable buffer from byte `start` on."""
        view = memoryview(into)
        with self._lock:
            self.traffic += len(view)
            if name not in self._open:
                self._open[name] = self._opened(name)
        file = self._open[name]
        if isinstance(file, Reader):
            view[:] = file.read(start, start + len(view))
            return
        done = 0
        while done < len(view):
            n = os.preadv(file, [view[done:]], start + done)
            if not n:
                raise CorruptArtefact(f"{self.folder}/{name}", f"cut short at byte {start + done}")
            done += n

    def _opened(self, name: str) -> int | Reader:
        url = f"{self.folder}/{name}"
        try:
            if is_local(url):
                return os.open(local_path(url), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return open_reader(url)
        except (BadInput, FileNotFoundError):
            raise CorruptArtefact(url, "a file of the checkpoint is missing") from None

    def close(self) -> None:
        while self._open:
            file = self._open.popitem()[1]
            if isinstance(file, Reader):
                file.close()
            else:
                os.close(file)

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
