"""Whole tensors over the files that they are in: read when they are looked at, copied page by page when changed."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash

from holdall.checkpoints import boxes
from holdall.checkpoints.bytecheckpoint_files import Entry
from holdall.checkpoints.monitoring import Watch
from holdall.errors import CorruptArtefact
from holdall.files import is_local, local_path
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")


def mapped(
    entries: Sequence[Entry], basics: Mapping[str, Any], folder: str, threads: int, watch: Watch
) -> dict[str, Any]:
    """Of the tensors that lie in one piece, in order, in one local file, those; their checksums are compared."""
    if not is_local(folder):
        return {}
    named: dict[str, list[Entry]] = {}
    for entry in entries:
        named.setdefault(entry.name, []).append(entry)
    named = {n: sorted(some, key=lambda e: (e.file, e.start)) for n, some in named.items()}
    fit = {n: some for n, some in named.items() if _in_one_piece(some, basics[n])}
    views = {file: _view(folder, file) for file in {some[0].file for some in fit.values()}}

    def compare(entry: Entry) -> None:
        raw = views[entry.file][entry.start : entry.stop]
        with watch.phase("read", len(raw)):
            if len(raw) != entry.stop - entry.start:
                raise CorruptArtefact(f"{folder}/{entry.file}", "cut short")
            if xxhash.xxh3_128_hexdigest(raw.data) != entry.xxh3:
                raise CorruptArtefact(f"{folder}/{entry.file}", f"{entry.name!r} does not match its checksum")

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(compare, e) for some in fit.values() for e in some]:
            done.result()
    found = {}
    for name, some in fit.items():
        dtype, shape, _, _, grad = basics[name]
        raw = torch.from_numpy(views[some[0].file][some[0].start : some[-1].stop])
        found[name] = raw.view(getattr(torch, dtype)).reshape(shape).requires_grad_(grad)
    return found


def _in_one_piece(some: Sequence[Entry], basic: Sequence[Any]) -> bool:
    """Whether boxes follow each other as the elements of the tensor do, and no stride says otherwise."""
    dtype, shape, strides, _, _ = basic
    whole, at, byte = boxes.whole(shape), 0, some[0].start
    plain = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    if some[0].start % max(1, getattr(torch, dtype).itemsize) or strides not in (None, plain):
        return False
    for entry in some:
        first, stop, _ = boxes.span(entry.box, whole)
        if (
            first != at
            or stop - first != entry.box.elements
            or entry.start != byte
            or entry.file != some[0].file
        ):
            return False
        at, byte = stop, entry.stop
    return at == whole.elements


def _view(folder: str, file: str) -> np.ndarray:
    try:
        with local_path(f"{folder}/{file}").open("rb") as f:
            held = mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    except FileNotFoundError:
        raise CorruptArtefact(f"{folder}/{file}", "a file of the checkpoint is missing") from None
    return np.frombuffer(held, np.uint8)
