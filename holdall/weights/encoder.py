"""Cuts a model into blocks: calibrates, decomposes matrix by matrix, and says what each block is worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from holdall.optional import lazy
from holdall.progress import track
from holdall.weights.fitting import Inputs
from holdall.weights.fuse import fuse
from holdall.weights.iavd import Block, decompose
from holdall.weights.layout import Layout
from holdall.weights.scaling import Seen, Slopes, Walk, windows

if TYPE_CHECKING:
    import torch

    from holdall.weights.bitstack import BitStack
    from holdall.weights.model import Model
else:
    torch = lazy("torch", extra="weights")


class Encoder:
    """blocks: for each piece its blocks, as stored bytes. gain(piece, block): what a block takes off the loss."""

    def __init__(self, recipe: BitStack, model: Model, layout: Layout, depths: list[int]):
        self.recipe, self.layout, self.depths = recipe, layout, depths
        self.state = dict(model.state)
        self.blocks: list[list[Any]] = [[] for _ in layout.pieces]
        self._errors: list[list[torch.Tensor]] = [
            [] for _ in layout.pieces
        ]  # per level, each row's output error
        self._by_name: dict[str, list[int]] = {}
        for i, piece in enumerate(layout.pieces):
            self._by_name.setdefault(layout.tensors[piece.tensor][0], []).append(i)
        self._slopes = Slopes()
        self._head: Seen | None = None
        self._head_name = ""
        with torch.no_grad():
            self._run(model)

    def _run(self, model: Model) -> None:
        walk = self._walk(model)
        if walk is not None:
            blocks = walk.statistics()
            for seen in track(blocks, "cutting the blocks", total=len(walk.blocks) + 1):
                if self.recipe.fold == "previous":
                    seen = fuse(self.state, seen)
                for name, found in seen.items():
                    if name in self._by_name and not self._tables(name):
                        self._cut(name, Inputs.measured(found.scale, found.gram, self.recipe.damp))
                    if name == walk.head_name:
                        self._head = found
            self._slopes, self._head_name = walk.slopes(), walk.head_name
        rest = [n for n, where in self._by_name.items() if not self.blocks[where[0]]]
        for name in track(rest, "cutting tables"):
            self._cut(name, self._table_inputs() if self._tables(name) else None)

    def _walk(self, model: Model) -> Walk | None:
        """None where there is nothing to run: plain tensors."""
        if not self.recipe.scaling or not {"config.json", "tokenizer.json"} <= set(model.files):
            return None
        tokens = windows(model, self.recipe.windows, self.recipe.window)
        return Walk(model.build(), tokens, self.recipe.slope_windows)

    def _tables(self, name: str) -> bool:
        return self.layout.pieces[self._by_name[name][0]].table

    def _cut(self, name: str, inputs: Inputs | None) -> None:
        recipe = self.recipe
        for i in self._by_name[name]:
            piece = self.layout.pieces[i]
            weight = self.state[name][piece.start : piece.stop].detach().float()
            known = inputs if inputs is not None else Inputs.unknown(piece.columns)
            self._errors[i].append(known.energy(weight))
            steps: Iterator[tuple[Block, torch.Tensor]] = decompose(
                weight, self.depths[i], piece.rank, known,
                stretch=recipe.stretch, feedback=recipe.feedback, fit=recipe.refit, aim=recipe.aim, seed=recipe.seed,
            )  # fmt: skip
            for block, residual in steps:
                self.blocks[i].append(block.to_bytes())
                self._errors[i].append(known.energy(residual))

    def _table_inputs(self) -> Inputs | None:
        """A table is read twice when the head shares it: what the head sees, and the slopes where it is looked up."""
        slopes, head = self._slopes, self._head
        if head is None or slopes.embedded is None:
            return None
        gram = slopes.outputs[self._head_name].sum() * head.gram + torch.diag(slopes.embedded)
        return Inputs.measured(gram.diagonal().sqrt(), gram, self.recipe.damp)

    def _counts(self) -> torch.Tensor:
        """How often each row of the largest table was looked up."""
        rows = max(self.layout.tensors[p.tensor][2][0] for p in self.layout.pieces if p.table)
        counts = torch.zeros(rows)
        if self._slopes.counts is not None:
            counts[: len(self._slopes.counts)] = self._slopes.counts[:rows].float()
        return counts

    def gain(self, i: int, block: int) -> float:
        """Estimated loss that block number `block` of piece i takes away, a byte; second order, rows weighted."""
        piece, errors = self.layout.pieces[i], self._errors[i]
        saved = errors[block] - errors[block + 1]
        name = self.layout.tensors[piece.tensor][0]
        slopes = self._slopes.outputs.get(name)
        if slopes is not None:
            return float((slopes[piece.start : piece.stop] * saved).sum()) / piece.block_bytes
        if piece.table and self._head is not None:  # its errors carry the slopes of head and look-up already
            counts = self._counts() + 1
            share = counts[piece.start : piece.stop] * (len(counts) / counts.sum())
            return float((share * saved).mean()) / piece.block_bytes
        whole = float(errors[0].sum())
        return float(saved.sum()) / (whole if whole > 0 else 1.0) / piece.block_bytes
