"""Where blocks wait while others train: on disk, all their numbers and Adam's moments, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import xxhash
from torch import Tensor

from holdall.errors import CorruptArtefact
from holdall.parts.paging import Arena, Span, as_bytes


class _Put(NamedTuple):
    dtype: Any
    shape: tuple[int, ...]
    span: Span
    total: bytes


class Shelf:
    """States of blocks, {name: tensor}, by number, in one unnamed file: it goes with the process, killed or not. What
    was put last stays until the next is written whole."""

    def __init__(self, folder: str | Path | None = None, *, name: str | None = None):
        self._arena = Arena(folder, threads=1, name=name)
        self._kept: dict[int, dict[str, _Put]] = {}

    def put(self, block: int, state: Mapping[str, Tensor]) -> None:
        new: dict[str, _Put] = {}
        try:
            for name, tensor in state.items():
                raw = as_bytes(tensor.detach().contiguous())
                span = self._arena.place(raw.size)
                new[name] = _Put(tensor.dtype, tuple(tensor.shape), span, xxhash.xxh3_128(raw.data).digest())
                self._arena.write(span, raw).result()
        except BaseException:
            self._free(new)
            raise
        self._free(self._kept.pop(block, {}))
        self._kept[block] = new

    def get(self, block: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The state, or some of it; CorruptArtefact where the disk gives other bytes than it was given."""
        found = {}
        for name in self._kept[block] if names is None else names:
            put = self._kept[block][name]
            found[name] = tensor = torch.zeros(put.shape, dtype=put.dtype)
            raw = as_bytes(tensor)
            self._arena.read(put.span, raw).result()
            if xxhash.xxh3_128(raw.data).digest() != put.total:
                raise CorruptArtefact(self._arena.path, f"{name} of block {block} is not what was written")
        return found

    def _free(self, puts: Mapping[str, _Put]) -> None:
        for put in puts.values():
            self._arena.free(put.span)

    def traffic(self) -> dict[str, float]:
        return self._arena.traffic()

    @property
    def path(self) -> str:
        return self._arena.path

    def close(self) -> None:
        self._arena.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Memory(Shelf):
    """All blocks in memory: what the disk is compared with."""

    def __init__(self) -> None:
        self._states: dict[int, dict[str, Tensor]] = {}

    def put(self, block: int, state: Mapping[str, Tensor]) -> None:
        self._states[block] = {name: t.detach() for name, t in state.items()}

    def get(self, block: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        state = self._states[block]
        return dict(state) if names is None else {name: state[name] for name in names}

    def traffic(self) -> dict[str, float]:
        return {}

    @property
    def path(self) -> str:
        return ""

    def close(self) -> None:
        self._states.clear()
