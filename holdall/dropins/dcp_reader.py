"""torch.distributed.checkpoint's StorageReader of a folder of checkpoints (see `dcp.py`)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from holdall.checkpoints import bytecheckpoint_state as states
from holdall.checkpoints.boxes import Box
from holdall.checkpoints.bytecheckpoint_files import Entry, Files
from holdall.checkpoints.bytecheckpoint_load import read_box
from holdall.checkpoints.bytecheckpoint_meta import Stored
from holdall.checkpoints.publish import Folder
from holdall.dropins.dcp_writer import STORE
from holdall.errors import CorruptArtefact

_CHUNK = 1 << 20
_WASTE = 1 << 16


class Reader(StorageReader):
    """A step of a folder of checkpoints, by default the newest; whoever wrote it, under whatever layout."""

    def __init__(self, url: str = "", step: int | None = None, threads: int = 4):
        self.checkpoint_id, self._step, self._threads = str(url), step, threads

    def reset(self, checkpoint_id: Any = None) -> None:
        self.checkpoint_id = str(checkpoint_id) if checkpoint_id is not None else self.checkpoint_id

    def read_metadata(self, *args: Any, **named: Any) -> Metadata:
        folder = Folder(self.checkpoint_id, STORE)
        told, self._data = folder.read(folder.chosen(self._step))
        stored = Stored.of(told, folder.url)
        with Files(self._data) as files:
            trees = states.together(stored.shared(files) + stored.own(files, _rank()))
        self._values = {n: v for key, node in trees for n, v in _leaves(str(key), node)}
        own = [n for key, node in trees for n in states.named(node)]
        self._names = {
            n.rpartition("@")[0] or n if states.kind(n) in ("loader", "extra") else n: n for n in own
        }
        self._entries: dict[str, list[Entry]] = {}
        for entry in stored.entries:
            self._entries.setdefault(entry.name, []).append(entry)
        found: dict[str, Any] = {n: BytesStorageMetadata() for n in self._values}
        for name, held in self._names.items():
            self._names[name] = real = stored.alias.get(held, held)
            dtype, shape, _, _, grad = stored.basics[held]
            chunks = [
                ChunkStorageMetadata(torch.Size(e.box.offset), torch.Size(e.box.lengths))
                for e in self._entries.get(real, ())
            ]
            properties = TensorProperties(dtype=getattr(torch, dtype), requires_grad=grad)
            found[name] = TensorStorageMetadata(properties, torch.Size(shape), chunks)
        return Metadata(found)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **named: Any
    ) -> None:
        pass

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        return plans

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        tensors = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                value = io.BytesIO()
                torch.save(self._values[item.dest_index.fqn], value)
                value.seek(0)
                planner.load_bytes(item, value)
            else:
                tensors.append(item)
        with Files(self._data) as files, ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(lambda item: self._put(item, planner, files), tensors):
                pass
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _put(self, item: Any, planner: Any, files: Files) -> None:
        index = item.storage_index
        named = self._entries[self._names[index.fqn]]
        entry = next((e for e in named if index.offset is None or e.box.offset == tuple(index.offset)), None)
        if entry is None:
            raise CorruptArtefact(self._data, f"{index.fqn} has no box at {index.offset}")
        box = Box(tuple(item.storage_offsets), tuple(item.lengths)).moved(entry.box.offset)
        raw = np.empty(box.elements * entry.each, np.uint8)
        read_box(files, entry, box, raw, _WASTE)
        target = planner.resolve_tensor(item).detach()
        target.copy_(torch.from_numpy(raw).view(target.dtype).reshape(target.shape))
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _leaves(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Values under the names that torch gives them: a list without dicts and tensors in it is one value."""
    if not isinstance(node, dict):
        yield name, node
    elif "d" in node:
        for key, one in node["d"]:
            yield from _leaves(f"{name}.{key}", one)
    elif "x" not in node:
        parts = states.inner(node)
        if "t" in node or not any(isinstance(p, dict) and ("d" in p or "x" in p) for p in parts):
            yield name, states.built(node, str)
        else:
            for i, one in enumerate(parts):
                yield from _leaves(f"{name}.{i}", one)
