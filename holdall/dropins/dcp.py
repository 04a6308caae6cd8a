"""torch.distributed.checkpoint on any fsspec URL, written so that a kill leaves the old or the new checkpoint.

    import torch.distributed.checkpoint as dcp
    from holdall.dropins.dcp import LoadPlanner, Reader, SavePlanner, Writer
    dcp.save(state, storage_writer=Writer("s3://bucket/run", step=120, keep=3), planner=SavePlanner())
    dcp.load(state, storage_reader=Reader("s3://bucket/run"), planner=LoadPlanner())

`checkpoints.bytecheckpoint` reads what this writes, and the other way round. No file is pickled. The planners are
optional: one balances writers, the other refuses pickled values.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from holdall.checkpoints import planning
from holdall.checkpoints.boxes import Box
from holdall.checkpoints.planning import Item
from holdall.dropins.dcp_reader import Reader
from holdall.dropins.dcp_writer import Writer

_CHUNK = 1 << 20
_WASTE = 1 << 16


__all__ = ["LoadPlanner", "Reader", "SavePlanner", "Writer"]


class SavePlanner(DefaultSavePlanner):
    """Replicas go to the rank that has the least to write, the largest first."""

    def _dedup_save_plans(self, all_plans: list[SavePlan]) -> list[SavePlan]:
        named = {(i.index.fqn, str(i.index.offset)): i for p in all_plans for i in p.items}
        held = [[_whole(i) for i in plan.items] for plan in all_plans]
        given = planning.deal(held, 0)
        return [
            dataclasses.replace(plan, items=[named[i.name, i.kind] for i in own])
            for plan, own in zip(all_plans, given, strict=True)
        ]


def _whole(item: WriteItem) -> Item:
    """An item as it is; its place instead of a kind, by which it is found again."""
    told = item.tensor_data
    box = Box((), ()) if told is None else Box(tuple(told.chunk.offsets), tuple(told.chunk.sizes))
    each = 1 if told is None else told.properties.dtype.itemsize
    return Item(item.index.fqn, box, each, str(item.index.offset))


class LoadPlanner(DefaultLoadPlanner):
    """Values come in without unpickling."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)
        if self.flatten_state_dict:
            from torch.distributed.checkpoint._nested_dict import set_element

            set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain)
        else:
            self.state_dict[read_item.dest_index.fqn] = plain
