"""How a budget is spent before anything is known of activations: what stays, how large pieces are, what may wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdall.errors import BudgetError
from holdall.training.base import Run
from holdall.training.fuyou_groups import Group, blocks_of, groups_of, need_adamw, pageable

if TYPE_CHECKING:
    from holdall.training.fuyou import Fuyou

_LEAST_PIECE = 1 << 14
_MOST = (
    0.5,
    0.6,
    0.7,
    0.8,
)  # of a budget, the least that can be had: the rest is for activations, not known yet
_ROOM = 1 << 20  # bytes for threads' stacks, records and lists


@dataclass(frozen=True)
class Memory:
    """blocks, groups, pageable: of the model. piece: elements. buffers: pieces in memory at once. gradients: bytes that
    may wait. paged: blocks leave memory. spills: gradients that wait for a norm do so on disk. fits: in the end all
    states may be in memory. fixed: bytes of all this; limit: None where there is no budget."""

    blocks: list[Any]
    groups: list[Group]
    pageable: list[Group]
    piece: int
    buffers: int
    gradients: int
    paged: bool
    spills: bool
    fits: bool
    fixed: int
    limit: int | None


def whole(model: Any) -> int:
    """Bytes of parameters, gradients and two moments, and of buffers."""
    held = sum((4 if p.requires_grad else 1) * p.numel() * p.element_size() for p in model.parameters())
    return held + sum(b.nbytes for b in model.buffers())


def shared_out(recipe: Fuyou, run: Run, limit: int | None) -> Memory:
    need_adamw(run.optimizer)
    blocks = blocks_of(run.model)
    groups = groups_of(run.model, run.optimizer, blocks)
    leave = [g for g in groups if g.block is not None and pageable(g)]
    all_of = {True: 0, False: 0}
    for p in (*run.model.parameters(), *run.model.buffers()):
        all_of[False] += p.numel() * p.element_size()
    all_of[True] = all_of[False] - sum(_bytes(g) for g in leave)
    most = max((_bytes(g) for g in leave), default=0)
    fp32 = max((4 * g.count for g in leave), default=0)
    rest = sum(_bytes(g) for g in groups if g.block is None)
    largest = max((_bytes(g) for g in groups if g.block is None), default=0)
    growing = rest + largest + most  # gradients that are being summed up, and one more of the largest
    waiting = sum(map(_bytes, groups)) if recipe.clip or not recipe.overlap else 0
    least = 0
    for paged, part in ((False, _MOST[0]), *((True, part) for part in _MOST), (True, 1.0), (False, 1.0)):
        for spills in (False, True) if waiting else (False,):
            sizes = _pieces(recipe.piece, max((g.count for g in groups), default=1))
            for piece in sizes if part < 1 else sizes[::-1]:
                held = all_of[paged] + 3 * 12 * piece + growing + most + (0 if spills else waiting) + _ROOM
                held += (2 * most + (1 + recipe.ahead) * fp32) if paged else 0
                least = min(least or held, held)
                if limit is None or held <= part * limit:
                    fits = limit is None or whole(run.model) <= limit
                    return Memory(blocks, groups, leave, piece, 3, most, paged, spills, fits, held, limit)
    raise BudgetError(
        limit, least, who="training.fuyou", why="parameters outside of blocks and one block in turn"
    )


def _bytes(group: Group) -> int:
    return sum(p.numel() * p.element_size() for p in group.params)


def _pieces(asked: int, most: int) -> list[int]:
    """Sizes from the one that was asked for down to the smallest that a disk is still fast with."""
    sizes = [min(asked, -(-most // 1024) * 1024)]
    while sizes[-1] // 2 >= _LEAST_PIECE:
        sizes.append(sizes[-1] // 2 // 1024 * 1024)
    return sizes
