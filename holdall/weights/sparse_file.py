"""A pruned module as a file, and back: its sparse layers' streams on end, and everything else as it is.

Sections: `stream` (biases and weights in the order of rows), `gaps` (a byte a non-zero), `counts` (two bytes a row or
group of rows), each of all pruned layers on end; `kept/<type>`, what else there is once normalisations are folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from holdall.errors import BadInput, CorruptArtefact
from holdall.packed import Packed
from holdall.weights.conv_graph import folded
from holdall.weights.kept import keep, put_back
from holdall.weights.pruning import matrix, prunable
from holdall.weights.sparse_rows import SparseRows, pieces, places
from holdall.weights.stored import section


def write(module: Any, block: int, half: bool, head: Mapping[str, Any]) -> Packed:
    made = folded(module)
    layers = _pruned(made)
    dtype, parts = (np.float16 if half else np.float32), []
    for path, owner in layers.items():
        weight = matrix(owner).float().numpy()
        bias = (
            owner.bias.detach().float().numpy()
            if owner.bias is not None
            else np.zeros(len(weight), np.float32)
        )
        largest = np.abs(np.append(weight, bias)).max()
        if not largest <= np.finfo(dtype).max:
            raise BadInput(f"layer {path}", f"numbers as {largest}", "finite ones; half=False beyond 65504")
        if weight.shape[1] >= 1 << 16:
            raise BadInput(f"layer {path}", f"{weight.shape[1]} input channels", "fewer than 65,536")
        parts += pieces(weight.astype(dtype).astype(np.float32), bias, block)
    arrays = {
        "stream": np.concatenate([p.stream for p in parts]).astype(dtype),
        "gaps": np.concatenate([p.gaps() for p in parts]),
        "counts": np.concatenate([p.counts for p in parts]).astype(np.uint16),
    }
    return Packed({**arrays, **keep(_others(made), half)}, {**head, "block": block, "half": half})


def slack(module: Any, block: int) -> int:
    """Bytes that places may take beyond one a non-zero, at most."""
    shapes = [p for owner in prunable(module).values() for p in places(_shape(owner), block)]
    return sum((i - 1) // 255 * (o // nr) for (o, i), nr in shapes)


def read(packed: Packed, like: Any) -> Any:
    block, half = packed.meta.get("block"), packed.meta.get("half")
    if block not in (1, 2, 4) or type(block) is not int or type(half) is not bool:
        raise CorruptArtefact("the header", f"blocks of {block} rows, half {half}")
    made = folded(like)
    layers = _pruned(made)
    reader = _Reader(packed, half)
    for owner in layers.values():
        rows = [reader.take(*place).dense() for place in places(_shape(owner), block)]
        weight, bias = (np.concatenate(piece) for piece in zip(*rows, strict=True))
        with torch.no_grad():
            owner.weight.copy_(torch.from_numpy(weight).reshape(owner.weight.shape))
            if owner.bias is not None:
                owner.bias.copy_(torch.from_numpy(bias))
    reader.end()
    put_back(packed, _others(made), half)
    return made.requires_grad_(False)


def _pruned(module: Any) -> dict[str, Any]:
    found = prunable(module)
    if not found:
        wanted = "1x1 convolutions or linears between first and last layer"
        raise BadInput("module", type(module).__name__, wanted)
    return found


def _shape(owner: Any) -> tuple[int, int]:
    o, i = matrix(owner).shape
    return o, i


def _others(module: Any) -> dict[str, torch.Tensor]:
    """What of a module's state is in no stream."""
    streams = {f"{path}.{name}" for path in prunable(module) for name in ("weight", "bias")}
    return {name: t for name, t in module.state_dict().items() if name not in streams}


class _Reader:
    """Takes one matrix after the other off the three sections."""

    def __init__(self, packed: Packed, half: bool):
        kinds = {"stream": np.float16 if half else np.float32, "gaps": np.uint8, "counts": np.uint16}
        self.held = {name: section(packed, name) for name in kinds}
        for name, kind in kinds.items():
            if self.held[name].dtype != kind or self.held[name].ndim != 1:
                raise CorruptArtefact(f"section {name}", f"{self.held[name].dtype} {self.held[name].shape}")
        if not np.isfinite(self.held["stream"]).all():
            raise CorruptArtefact("section stream", "numbers that are not finite")
        self.ends = np.flatnonzero(self.held["gaps"] != 255)

    def take(self, shape: tuple[int, int], nr: int) -> SparseRows:
        counts = self._cut("counts", shape[0] // nr)
        many = int(counts.sum(dtype=np.int64))
        stream = self._cut("stream", nr * (len(counts) + many))
        if many > len(self.ends):
            raise CorruptArtefact("section gaps", f"{len(self.ends)} places where {many} more are asked for")
        start = len(self.held["gaps"])
        gaps = self._cut("gaps", int(self.ends[many - 1]) + 1 if many else 0)
        self.ends = self.ends[many:] - (start - len(self.held["gaps"]))
        return SparseRows.stored(shape, nr, stream, gaps, counts)

    def _cut(self, name: str, count: int) -> np.ndarray:
        found, self.held[name] = self.held[name][:count], self.held[name][count:]
        if len(found) != count:
            raise CorruptArtefact(f"section {name}", "shorter than the layers of this module")
        return found

    def end(self) -> None:
        if any(len(rest) for rest in self.held.values()):
            raise CorruptArtefact("the file", "more than the layers of this module hold")
