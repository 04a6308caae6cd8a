"""The link to a drive that is a process of its own: what crosses it is counted, and its end is an error, never a wait.

A message is a length, a line of JSON and raw arrays; nothing is pickled. `python -m holdall.kv.link FD` is the drive's
side: it ends when the link does, with its parent that is, and takes its files along, which never had a name.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import sys
from typing import Any

import numpy as np

from holdall.errors import BadInput

_HEAD = struct.Struct("<II")  # bytes of the line, and of the arrays


class Link:
    """The host's side. `bytes` counts everything that crossed, `sent` the messages."""

    def __init__(self, spec: dict[str, Any], folder: str):
        mine, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, "-P", "-m", "holdall.kv.link", str(theirs.fileno())]
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self._process = subprocess.Popen(
                words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **threads}
            )
        self._socket = mine
        self.bytes = self.sent = self.waiting = 0
        self.ask("open", spec=spec, folder=folder)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, verb: str, *arrays: np.ndarray, **words: Any) -> None:
        """Send a request; `hear` brings its answer, and answers come in order."""
        try:
            self.bytes += _send(self._socket, {"verb": verb, **words}, arrays)
        except OSError as fault:
            raise _gone() from fault
        self.waiting += 1
        self.sent += 1

    def hear(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        try:
            told, arrays, size = _receive(self._socket)
        except OSError as fault:
            raise _gone() from fault
        self.waiting -= 1
        self.bytes += size
        if "errno" in told:
            raise OSError(told["errno"], f"in the drive: {told['why']}")
        if "why" in told:
            raise BadInput("drive", told["why"], "a request that it can serve")
        return told, arrays

    def settle(self) -> None:
        """Wait until everything that was sent is done."""
        while self.waiting:
            self.hear()

    def ask(self, verb: str, *arrays: np.ndarray, **words: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        self.settle()
        self.tell(verb, *arrays, **words)
        return self.hear()

    def close(self) -> None:
        self._socket.close()  # which ends the process
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _gone() -> OSError:
    return OSError(errno.EPIPE, "the drive's process has ended; open another session")


def _send(to: socket.socket, told: dict[str, Any], arrays: Any) -> int:
    arrays = [np.ascontiguousarray(a) for a in arrays]
    line = json.dumps({**told, "arrays": [[a.dtype.str, list(a.shape)] for a in arrays]}).encode()
    size = sum(a.nbytes for a in arrays)
    to.sendall(_HEAD.pack(len(line), size) + line)
    for a in arrays:
        to.sendall(memoryview(a.reshape(-1)).cast("B") if a.size else b"")
    return _HEAD.size + len(line) + size


def _receive(of: socket.socket) -> tuple[dict[str, Any], list[np.ndarray], int]:
    line, size = _HEAD.unpack(_exactly(of, _HEAD.size))
    told = json.loads(_exactly(of, line))
    raw, at, arrays = _exactly(of, size), 0, []
    for kind, shape in told.pop("arrays"):
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(raw, np.dtype(kind), count, at).reshape(shape))
        at += arrays[-1].nbytes
    return told, arrays, _HEAD.size + line + size


def _exactly(of: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    room = memoryview(found)
    while room:
        done = of.recv_into(room)
        if not done:
            raise ConnectionResetError(errno.ECONNRESET, "the other side has ended")
        room = room[done:]
    return found


def serve(link: socket.socket) -> None:
    """The drive's side: answers until the link ends."""
    from holdall.kv.drive import Drive

    drive: Drive | None = None
    while True:
        try:
            told, arrays, _ = _receive(link)
        except OSError:
            return
        answer: dict[str, Any] = {}
        out: list[np.ndarray] = []
        try:
            if told["verb"] == "open":
                drive = Drive(told["spec"], told["folder"])
            elif drive is None:
                raise ValueError("it is not open")
            elif told["verb"] == "append":
                drive.append(told["layer"], *arrays)
            elif told["verb"] == "attend":
                drive.append(told["layer"], *arrays[1:])
                out = [drive.attend(told["layer"], arrays[0]).astype(drive.dtype)]
            elif told["verb"] == "traffic":
                answer = drive.traffic()
        except OSError as fault:
            answer = {"errno": fault.errno or errno.EIO, "why": fault.strerror or str(fault)}
        except (ValueError, KeyError, IndexError, TypeError) as fault:
            answer = {"why": f"{type(fault).__name__}: {fault}"}
        try:
            _send(link, answer, out)
        except OSError:
            return


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as given:
        serve(given)
