"""Modules that keep matrices packed while they run. Imported only when a model is opened, for torch's sake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from holdall.weights.model import Model, fill, tied
from holdall.weights.packed_gradient import multiplied


class Held(Protocol):
    """A packed matrix [O, I]."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T [T, O] for float32 x [T, I], contiguous and without gradients."""

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Some rows, float32 [len(ids), I]."""

    def dense(self) -> np.ndarray:
        """float32 [O, I]."""


class PackedLinear(torch.nn.Module):
    """y = x W^T + bias with a packed W, which does not learn; gradients reach x."""

    def __init__(self, held: Held, bias: torch.Tensor | None):
        super().__init__()
        self.held = held
        self.out_features, self.in_features = held.shape
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = multiplied(self.held, x.reshape(-1, self.in_features))
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], self.out_features).to(x.dtype)


class PackedEmbedding(torch.nn.Module):
    """Rows of W by number."""

    def __init__(self, held: Held, inner: torch.nn.Module):
        super().__init__()
        self.held = held
        self.num_embeddings, self.embedding_dim = held.shape
        # Gemma multiplies what it looks up; its buffer is empty as long as the module is a skeleton
        self.scale = getattr(inner, "scalar_embed_scale", getattr(inner, "embed_scale", None))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = torch.from_numpy(self.held.rows(ids.reshape(-1).numpy())).reshape(*ids.shape, -1)
        return found if self.scale is None else found * self.scale


class PackedConv2d(torch.nn.Module):
    """A convolution whose kernels [O, C, h, w] are the rows of a packed W [O, C h w]; one group, zeros around."""

    def __init__(self, held: Held, inner: torch.nn.Conv2d):
        super().__init__()
        self.held = held
        self.size, self.dilation, self.stride = inner.kernel_size, inner.dilation, inner.stride
        self.padding = inner.padding if isinstance(inner.padding, tuple) else _same(inner)
        self.bias = (
            None if inner.bias is None else torch.nn.Parameter(inner.bias.detach(), requires_grad=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tall, wide = (
            (x.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (self.size[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        seen = torch.nn.functional.unfold(
            x.float(), self.size, self.dilation, self.padding, self.stride
        )  # [B, C h w, places]
        out = multiplied(self.held, seen.transpose(1, 2).reshape(-1, self.held.shape[1]))
        if self.bias is not None:
            out += self.bias
        return out.reshape(len(x), tall, wide, -1).permute(0, 3, 1, 2).to(x.dtype)


def _same(inner: torch.nn.Conv2d) -> tuple[int, ...]:
    if inner.padding == "valid":
        return (0, 0)
    return tuple(d * (k - 1) // 2 for k, d in zip(inner.kernel_size, inner.dilation, strict=True))


def stands_for(owner: torch.nn.Module, held: Held) -> torch.nn.Module | None:
    """The packed module in place of `owner`; None where there is none, and its weights must be numbers."""
    if isinstance(owner, torch.nn.Embedding):
        return PackedEmbedding(held, owner)
    if type(owner) is torch.nn.Linear:
        return PackedLinear(held, owner.bias)
    if type(owner) is torch.nn.Conv2d and owner.groups == 1 and owner.padding_mode == "zeros":
        even = owner.padding == "same" and any(k % 2 == 0 for k in owner.kernel_size)
        return None if even else PackedConv2d(held, owner)
    return None


def install(shell: Model, held: Mapping[str, Held]) -> torch.nn.Module:
    """A transformers module with packed matrices in it; `shell` holds the files and all other tensors."""
    module = shell.skeleton()
    state = {n: t.float() if t.is_floating_point() else t for n, t in shell.state.items()}
    owners, twins = dict(module.named_modules()), tied(module)
    names = [*((n, n) for n in held), *((t, kept) for t, kept in twins.items() if kept in held)]
    packed: set[str] = set()
    for name, kept in names:
        path = name.removesuffix(".weight")
        owner = owners.get(path, module) if name.endswith(".weight") else module
        new = stands_for(owner, held[kept])
        if new is None and name != kept and kept not in packed:
            continue
        if new is None:
            state[name] = torch.from_numpy(held[kept].dense())
            continue
        put(module, path, new)
        packed.add(kept)
    _untie(module, packed)
    fill(module, state, shell.name)
    return module


def put(module: torch.nn.Module, path: str, new: torch.nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(module.get_submodule(parent), child, new)


def _untie(module: torch.nn.Module, packed: set[str]) -> None:
    """Packed tables are shared already: transformers must not look for their parameters."""
    keys = getattr(module, "all_tied_weights_keys", None)
    if keys:
        left = {a: b for a, b in keys.items() if a not in packed and b not in packed}
        module.__dict__["all_tied_weights_keys"] = left
        module.__dict__["config"].tie_word_embeddings = bool(left)
