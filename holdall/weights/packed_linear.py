"""Modules that keep a BitStack model packed while it runs. Imported only when one is opened, for torch's sake."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from holdall.weights.layout import Layout
from holdall.weights.model import Model, fill, tied
from holdall.weights.parts import Part, Scratch

_FEW = 128  # up to so many tokens are multiplied from the signs; for more, W is rebuilt once
_NEAR = 1 << 18  # weights rebuilt at a time: 1 MB, half of a core's second cache,
_LEAST = 64  # but not fewer rows than a product pays for


class PackedLinear(torch.nn.Module):
    """y = x W_hat^T + bias with W_hat in signs and factors; inference only."""

    def __init__(self, parts: list[Part], bias: torch.Tensor | None, scratch: Scratch):
        super().__init__()
        self.parts, self._scratch = parts, scratch
        self.in_features, self.out_features = parts[0].piece.columns, parts[-1].piece.stop
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.detach().reshape(-1, self.in_features).float().contiguous()
        out = torch.empty(len(flat), self.out_features)
        if len(flat) <= _FEW:
            spare = -self.in_features % 16
            tokens = torch.nn.functional.pad(flat, (0, spare)) if spare else flat
            for part in self.parts:
                part.product(tokens.numpy(), out.numpy(), part.piece.start)
        else:
            for part in self.parts:
                self._many(part, flat, out[:, part.piece.start : part.piece.stop])
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def _many(self, part: Part, x: torch.Tensor, out: torch.Tensor) -> None:
        """Some rows of W_hat at a time are rebuilt once for all tokens, few enough to stay in a near cache."""
        piece, factors = part.piece, part.factors()
        step = max(_LEAST, _NEAR // piece.columns)
        for start in range(0, piece.rows, step):
            stop = min(start + step, piece.rows)
            weight = self._scratch.take(stop - start, piece.columns)
            part.dense(weight, start, factors)
            out[:, start:stop] = x @ torch.from_numpy(weight).T


class PackedEmbedding(torch.nn.Module):
    """Rows of W_hat by number."""

    def __init__(self, parts: list[Part], inner: torch.nn.Module):
        super().__init__()
        self.parts = parts
        self.scale = getattr(inner, "embed_scale", None)  # Gemma multiplies what it looks up

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        flat = ids.reshape(-1).numpy()
        out = np.zeros((len(flat), self.parts[0].piece.columns), np.float32)
        for part in self.parts:
            here = np.flatnonzero((flat >= part.piece.start) & (flat < part.piece.stop))
            if len(here):
                out[here] = part.rows(flat[here] - part.piece.start)
        found = torch.from_numpy(out).reshape(*ids.shape, -1)
        return found if self.scale is None else found * self.scale


def install(shell: Model, layout: Layout, parts: list[Part]) -> torch.nn.Module:
    """A transformers module with the pieces in place of its matrices; `shell` holds the files and the kept tensors."""
    module = shell.skeleton()
    by_name: dict[str, list[Part]] = {}
    for piece, part in zip(layout.pieces, parts, strict=True):
        by_name.setdefault(layout.tensors[piece.tensor][0], []).append(part)
    scratch, state = Scratch(), dict(shell.state)
    twins = tied(module)
    owners = dict(module.named_modules())
    for name, held in [*by_name.items(), *((t, by_name[k]) for t, k in twins.items() if k in by_name)]:
        path = name.removesuffix(".weight")
        owner = owners[path]
        if isinstance(owner, torch.nn.Embedding):
            new: torch.nn.Module = PackedEmbedding(held, owner)
        else:
            new = PackedLinear(held, state.pop(path + ".bias", None), scratch)
        parent, _, child = path.rpartition(".")
        setattr(owners[parent], child, new)
    _untie(module, by_name)
    fill(module, state, shell.name)
    return module


def _untie(module: torch.nn.Module, by_name: Mapping[str, list[Part]]) -> None:
    """Packed tables are shared already: transformers must not look for their parameters."""
    keys = getattr(module, "all_tied_weights_keys", None)
    if keys:
        left = {a: b for a, b in keys.items() if a not in by_name and b not in by_name}
        module.__dict__["all_tied_weights_keys"] = left
        module.__dict__["config"].tie_word_embeddings = bool(left)
