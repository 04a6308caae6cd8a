"""What is updated together: the parameters of one block, or one parameter outside of them, cut into pieces on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.parts.paging import Span, aligned
from holdall.parts.partition import Piece as Part
from holdall.parts.partition import offsets, pieces

torch = lazy("torch", extra="training")
_WORDS = 1024  # elements: fp32 pieces that begin at whole blocks of the disk


@dataclass(eq=False)
class Piece:
    """Elements `start` to `stop` of a group; two places on disk, of which the group's `slot` holds what counts."""

    group: Group
    start: int
    stop: int
    parts: list[Part]  # of which parameters
    spans: list[Span] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def section(self) -> int:
        """Bytes of each of p, m and v on disk."""
        return aligned(4 * self.count)

    def sections(self, held: np.ndarray) -> list[np.ndarray]:
        """p, m, v, each fp32 [count], in a buffer of three sections."""
        step = self.section
        return [held[i * step : i * step + 4 * self.count].view(np.float32) for i in range(3)]


@dataclass(eq=False)
class Group:
    """Parameters whose update is one job. homes: the optimizer's settings of each. block: its number, or None."""

    params: list[Any]
    homes: list[dict[str, Any]]
    block: int | None
    t: list[int] = field(default_factory=list)  # steps of each, as committed
    slot: int = 0
    pieces: list[Piece] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # gradients of each that have come since its last update

    def __post_init__(self) -> None:
        self.sizes = [p.numel() for p in self.params]
        self.count = offsets(self.sizes)[-1]
        self.t, self.counts = [0] * len(self.params), [0] * len(self.params)

    def cut(self, size: int) -> None:
        """Into pieces of at most `size` elements."""
        each = max(size // _WORDS, 1) * _WORDS
        spans = [(a, min(a + each, self.count)) for a in range(0, self.count, each)]
        self.pieces = [Piece(self, a, b, pieces(self.sizes, (a, b))) for a, b in spans]


def blocks_of(model: Any) -> list[Any]:
    """The layers that a model repeats: the children of the list or chain of modules that has most parameters."""
    best: list[Any] = []
    most = 0
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
            inside = [m for m in module if any(True for _ in m.parameters())]
            size = sum(p.numel() for m in inside for p in m.parameters())
            if len(inside) > 1 and size > most:
                best, most = inside, size
    return list(dict.fromkeys(best))  # a layer that is used twice is one


def groups_of(model: Any, optimizer: Any, blocks: list[Any]) -> list[Group]:
    """The parameters that the optimizer trains: one group for each block, and one for each parameter that is not in
    exactly one block."""
    homes = {id(p): home for home in optimizer.param_groups for p in home["params"] if p.requires_grad}
    owners: dict[int, set[int]] = {}
    for i, block in enumerate(blocks):
        for p in block.parameters():
            owners.setdefault(id(p), set()).add(i)
    for module in model.modules():  # a parameter that is also elsewhere belongs to no block
        if not any(module is m for block in blocks for m in block.modules()):
            for p in module.parameters(recurse=False):
                owners[id(p)] = set()
    found: dict[Any, list[Any]] = {}
    for p in model.parameters():
        if id(p) in homes:
            _checked(p, homes[id(p)])
            mine = owners.get(id(p), set())
            found.setdefault(next(iter(mine)) if len(mine) == 1 else f"rest{id(p)}", []).append(p)
    if sum(map(len, found.values())) < len(homes):
        raise BadInput("optimizer", "parameters that the model does not train", "the model's own")
    return [
        Group(ps, [homes[id(p)] for p in ps], key if isinstance(key, int) else None)
        for key, ps in found.items()
        if sum(p.numel() for p in ps)
    ]


def _checked(p: Any, home: dict[str, Any]) -> None:
    if not p.is_contiguous() or p.device.type != "cpu":
        raise BadInput("parameter", f"{tuple(p.shape)} on {p.device}", "contiguous tensors in host memory")
    if p.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise BadInput("parameter", str(p.dtype), "fp32, bf16 or fp16")
    if home.get("amsgrad") or home.get("capturable") or home.get("differentiable"):
        raise BadInput("optimizer", "amsgrad, capturable or differentiable", "torch's AdamW without these")


def need_adamw(optimizer: Any) -> None:
    """BadInput for other optimizers: what updates by itself knows this one."""
    if not isinstance(optimizer, torch.optim.AdamW):
        raise BadInput("optimizer", type(optimizer).__name__, "torch.optim.AdamW")


def pageable(group: Group) -> bool:
    """Whether its memory can be given back: each parameter alone has its storage."""
    own = [p.untyped_storage() for p in group.params]
    alone = len({s._cdata for s in own}) == len(own)
    return alone and all(s.nbytes() == p.nbytes for s, p in zip(own, group.params, strict=True))
