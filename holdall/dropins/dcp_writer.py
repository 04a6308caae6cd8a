"""torch.distributed.checkpoint's StorageWriter into a folder of checkpoints (see `dcp.py`)."""

from __future__ import annotations

import dataclasses
import io
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import xxhash
from torch.distributed.checkpoint.metadata import (
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from holdall.checkpoints import boxes
from holdall.checkpoints import bytecheckpoint_state as states
from holdall.checkpoints.boxes import Box
from holdall.checkpoints.bytecheckpoint_files import Entry
from holdall.checkpoints.bytecheckpoint_header import header, tag
from holdall.checkpoints.bytecheckpoint_meta import Stored
from holdall.checkpoints.planning import Item
from holdall.checkpoints.publish import Folder, nobody
from holdall.errors import BadInput
from holdall.files import atomic_write

_CHUNK = 1 << 20
STORE = "checkpoints.bytecheckpoint"
_WASTE = 1 << 16


class Writer(StorageWriter):
    """Into a folder of checkpoints, as its step `step`. keep: newest ones that stay; 0: all. part: bytes of a box."""

    def __init__(self, url: str = "", step: int = 0, keep: int = 0, part: int = 8 << 20):
        self._step, self._keep, self._part, self._rank = step, keep, part, 0
        self.checkpoint_id, self._world = str(url), 1

    def reset(self, checkpoint_id: Any = None) -> None:
        self.checkpoint_id = str(checkpoint_id) if checkpoint_id is not None else self.checkpoint_id

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **named: Any) -> None:
        if not self.checkpoint_id:
            raise BadInput("checkpoint_id", "none", "the URL of a folder")
        if named.get("use_collectives", True) is False:
            raise BadInput("use_collectives", "False", "True: one rank writes what is where")
        self._folder = Folder(self.checkpoint_id, STORE)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=secrets.token_hex(8))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._token, self._world = f"{self._step}-{secrets.token_hex(4)}", len(plans)
        return [dataclasses.replace(p, storage_data=(self._token, rank)) for rank, p in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: Any) -> Future[list[WriteResult]]:
        """A file for each kind of state, straight from the tensors, which do not change meanwhile."""
        token, rank = plan.storage_data
        self._folder.begin(token)
        kinds: dict[str, list[WriteItem]] = {}
        found = []
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                found.append(_value(item, planner))
            else:
                kinds.setdefault(states.kind(item.index.fqn), []).append(item)
        for kind, items in kinds.items():
            found += self._file(f"{kind}_{rank}", token, items, planner)
        done: Future[list[WriteResult]] = Future()
        done.set_result(found)
        return done

    def _file(self, name: str, token: str, items: Sequence[WriteItem], planner: Any) -> Iterator[WriteResult]:
        cut = {id(i): self._boxes(i) for i in items}
        tags = {i.index.fqn: tag(i.tensor_data.properties.dtype) for i in items if i.tensor_data is not None}
        with atomic_write(f"{self._folder.data(token)}/{name}") as f:
            head = header([box for i in items for box in cut[id(i)]], tags, None)
            f.write(head)
            at, told = len(head), []
            for item in items:
                data = planner.resolve_data(item).detach()
                base = (
                    Box(cut[id(item)][0].box.offset, tuple(data.shape))
                    if cut[id(item)]
                    else boxes.whole(data.shape)
                )
                places = []
                for box in cut[id(item)]:
                    part = data[box.box.slices(base)].contiguous().cpu()
                    raw = part.reshape(-1).view(torch.uint8).numpy().data
                    places.append([box.box, name, at, at + len(raw), xxhash.xxh3_128_hexdigest(raw)])
                    for start in range(0, len(raw), _CHUNK):
                        f.write(raw[start : start + _CHUNK])
                    at += len(raw)
                told.append(WriteResult(item.index, sum(b.nbytes for b in cut[id(item)]), places))
            f.publish()
        return iter(told)

    def _boxes(self, item: WriteItem) -> list[Item]:
        assert item.tensor_data is not None
        chunk, each = item.tensor_data.chunk, item.tensor_data.properties.dtype.itemsize
        box = Box(tuple(chunk.offsets), tuple(chunk.sizes))
        cut = boxes.rows(box, max(1, self._part // each)) if box.elements else []
        return [Item(item.index.fqn, b, each, "") for b in cut]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        basics: dict[str, Any] = {}
        for name, told in metadata.state_dict_metadata.items():
            if isinstance(told, TensorStorageMetadata):
                dtype = str(told.properties.dtype).removeprefix("torch.")
                basics[name] = [dtype, list(told.size), None, "cpu", told.properties.requires_grad]
        stored = Stored(self._step, self._world, basics, [])
        values: dict[str, Any] = {}
        for result in (r for some in results for r in some):
            if isinstance(result.storage_data, dict):
                values[result.index.fqn] = result.storage_data["node"]
                continue
            for box, file, start, stop, xxh3 in result.storage_data:
                each = (stop - start) // box.elements
                stored.entries.append(Entry(result.index.fqn, box, each, file, start, stop, xxh3))
                stored.files[file] = max(stop, stored.files.get(file, 0))
        self._trees(stored, {n: {"x": n} for n in basics} | values, metadata.planner_data or {})
        self._folder.publish(stored.step, stored.to_dict(), self._token, self._keep, nobody)

    def _trees(self, stored: Stored, nodes: dict[str, Any], paths: dict[str, Any]) -> None:
        """What is no tensor, and how all of it nests: a small file of its own."""
        kinds: dict[str, list[Any]] = {}
        for place, (key, node) in enumerate(_nested(nodes, paths)["d"]):
            kinds.setdefault(states.kind(str(key)), []).append([place, key, node])
        for kind, tree in kinds.items():
            raw = states.written(tree)
            head, name = header([], {}, raw), f"{kind}_tree"
            with atomic_write(f"{self._folder.data(self._token)}/{name}") as f:
                f.write(head + raw)
                f.publish()
            stored.files[name] = len(head) + len(raw)
            stored.trees[kind] = {0: (name, len(head), len(head) + len(raw), xxhash.xxh3_128_hexdigest(raw))}
            stored.owners[kind] = [0] * stored.world

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _value(item: WriteItem, planner: Any) -> WriteResult:
    """A number, text or list, out of what the planner pickled: anything else is refused."""
    raw = planner.resolve_data(item).getvalue()
    try:
        value = torch.load(io.BytesIO(raw), weights_only=True)
    except Exception as fault:  # noqa: BLE001 (torch raises several kinds; all mean one thing)
        raise BadInput(
            item.index.fqn, type(fault).__name__, "tensors, numbers, text, dicts and lists"
        ) from None
    return WriteResult(item.index, len(raw), {"node": states.node_of(value, item.index.fqn)})


def _nested(nodes: dict[str, Any], paths: dict[str, Any]) -> Any:
    """Nodes of flat names as one node; a path's whole numbers are places in a list."""
    top: dict[Any, Any] = {}
    for name, node in nodes.items():
        *above, last = paths.get(name, (name,))
        at = top
        for key in above:
            at = at.setdefault(key, {})
        at[last] = _Leaf(node)
    return _node(top)


class _Leaf:
    def __init__(self, node: Any):
        self.node = node


def _node(tree: Any) -> Any:
    if isinstance(tree, _Leaf):
        return tree.node
    if tree and all(isinstance(k, int) for k in tree):
        return {"l": [_node(tree[k]) for k in sorted(tree)]}
    return {"d": [[k, _node(v)] for k, v in tree.items()]}
