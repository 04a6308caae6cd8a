"""A torch net, folded and planned, as a module that runs in compiled code, channel by channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from holdall.errors import BadInput
from holdall.parts.rows import by_rows
from holdall.weights.chw_choice import Choice, by_cost, by_time
from holdall.weights.chw_kernels import flush
from holdall.weights.chw_plan import Plan
from holdall.weights.chw_program import as_ops, run
from holdall.weights.conv_graph import folded
from holdall.weights.sparse_rows import pieces
from holdall.weights.spmm_kernels import zeros

_ENOUGH = (
    4_000_000  # multiply-adds of one operation from which a second thread gains more than waking it costs
)


class Compiled:
    """Operations for images of one size, with the strips that were chosen for them."""

    def __init__(self, module: nn.Module, shape: tuple[int, int, int], choose: Callable[..., list[Choice]]):
        self.threads = torch.get_num_threads()
        self.plan = plan = Plan(module, shape, self.threads)
        self.arenas = [zeros(plan.size)]
        self.choices = choose(plan, self.arenas[0])
        chosen, ops = iter(self.choices), []
        for i, op in enumerate(plan.ops):
            ops += self._rows(op, *plan.rows[i], next(chosen)) if i in plan.rows else [op]
        self.ops = as_ops(ops)
        self.stream, self.steps, self.counts = plan.streams.arrays()

    def _rows(
        self, op: dict[str, Any], weight: np.ndarray, bias: np.ndarray, choice: Choice
    ) -> list[dict[str, Any]]:
        made, out = [], op["out"]
        for rows in pieces(weight, bias, choice.nr):
            placed = self.plan.streams.add(rows.stream, rows.steps(op["x_stride"]), rows.counts)
            more = {"nr": rows.nr, "vectors": choice.vectors, "first": rows.first, "outputs": rows.shape[0]}
            made.append({**op, **more, **placed, "out": out})
            out += rows.shape[0] * op["out_stride"]
        return made

    def __call__(self, x: np.ndarray, out: np.ndarray) -> None:
        """Images [N, C, H, W] to [N, ...]: one by one, or at once as many as there are threads."""
        while len(self.arenas) < min(self.threads, len(x)):
            self.arenas.append(zeros(self.plan.size))
        many = min(self.threads, len(x))
        by_rows(self._images, many, many, x, out, many)

    def _images(self, x: np.ndarray, out: np.ndarray, many: int, first: int, last: int) -> None:
        for worker in range(first, last):
            for i in range(len(x) * worker // many, len(x) * (worker + 1) // many):
                self._image(x[i], out[i], self.arenas[worker], 1 if many > 1 else self.threads)

    def _image(self, x: np.ndarray, out: np.ndarray, arena: np.ndarray, threads: int) -> None:
        given, wanted = self.plan.given, self.plan.wanted
        into = arena[given.at : given.at + given.size].reshape(given.channels, -1)
        into[:, : given.pixels].reshape(x.shape)[...] = x
        flush(into.reshape(-1))
        arrays = (self.ops, arena, arena, self.stream, self.steps, self.counts)
        if threads == 1:
            run(*arrays, 0, len(self.ops), 1, 0, 1)
        else:
            for i, work in enumerate(self.ops["work"]):
                by_rows(run, threads, work / _ENOUGH, *arrays, i, i + 1, threads)
        found = arena[wanted.at : wanted.at + wanted.channels * wanted.stride].reshape(wanted.channels, -1)
        out[...] = found[:, : wanted.pixels].reshape(out.shape)


class SparseNet(nn.Module):
    """What `compile_sparse` gives: images [N, C, H, W] in, what the net gives out; planned for each size of image."""

    def __init__(self, module: nn.Module, choose: str = "timing"):
        super().__init__()
        ways = {"timing": by_time, "model": by_cost}
        if choose not in ways:
            raise BadInput("choose", choose, "timing or model")
        self.net = folded(module).requires_grad_(False)
        self._choose, self._made = ways[choose], {}  # type: ignore[var-annotated]

    def compiled(self, shape: tuple[int, int, int]) -> Compiled:
        key = (*shape, torch.get_num_threads())
        if key not in self._made:
            self._made[key] = Compiled(self.net, shape, self._choose)
        return self._made[key]

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
            raise BadInput(
                "images", f"{x.dtype} {tuple(x.shape)} on {x.device}", "float32 [N, C, H, W] on the CPU"
            )
        made = self.compiled((x.shape[1], x.shape[2], x.shape[3]))
        wanted = made.plan.wanted
        shape = (wanted.channels,) if wanted.vector else (wanted.channels, wanted.h, wanted.w)
        out = np.empty((len(x), *shape), np.float32)
        if len(x):
            made(x.numpy(), out)
        return torch.from_numpy(out)
