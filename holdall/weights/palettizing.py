"""Palettes in a training loop of your own: put them in, train, take the packed module out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    from holdall.weights.coded import Coded
else:
    torch = lazy("torch", extra="weights")


def palettize_(
    module: torch.nn.Module, bits: int | dict[str, int] = 3, table_bits: int = 8, **knobs: Any
) -> torch.nn.Module:
    """Let each weight matrix of a module be one of 2**bits numbers, in place; returns the module.

    In training mode weights are soft and learn with the optimiser you have (tell it of `module.parameters()` before or
    after, they stay the same); in evaluation each is its nearest centroid. `freeze_` makes it a packed module.
    bits: of all linears and convolutions, or by parameter name; table_bits: of embeddings, where bits is one number.
    knobs: of `palettes.Palette` (rows, group, start, share, hard, fast=False for the paper's maps, ...). Cool by
    `cool_(module, share)`. `with Saving(): ...` (`saved_tensors`) around the forward pass holds what the way back needs
    in less memory.
    """
    from holdall.weights.coded import WIDTHS
    from holdall.weights.palettes import palettes, put_palettes

    for width in (*(bits.values() if isinstance(bits, dict) else (bits,)), table_bits):
        if width not in WIDTHS:
            raise BadInput("bits", width, f"one of {', '.join(map(str, WIDTHS))}")
    before = len(palettes(module))
    put_palettes(module, bits, table_bits, **knobs)
    if len(palettes(module)) == before:
        raise BadInput("module", type(module).__name__, "one with Linear, Conv2d or Embedding in it")
    return module


def cool_(module: torch.nn.Module, share: float) -> None:
    """Set tau of all palettes, in squared gaps between centroids: small is near to the nearest centroid."""
    from holdall.weights.palettes import palettes

    for palette, _ in palettes(module).values():
        palette.share = share


def coded_weights(module: torch.nn.Module) -> dict[str, Coded]:
    """The matrices as they are stored now, by parameter name."""
    from holdall.weights.palettes import palettes

    return {name: palette.coded(weight) for name, (palette, weight) in palettes(module).items()}


def freeze_(module: torch.nn.Module) -> torch.nn.Module:
    """Put packed matrices in place of the palettes, in place; for inference from then on."""
    from torch.nn.utils import parametrize

    from holdall.weights.coded_linear import CodedMatrix
    from holdall.weights.packed_linear import put, stands_for
    from holdall.weights.palettes import Palette

    made: dict[int, CodedMatrix] = {}
    for path, owner in list(module.named_modules(remove_duplicate=False)):
        if not parametrize.is_parametrized(owner, "weight"):
            continue
        found: Any = owner.parametrizations
        palette, original = found.weight[0], found.weight.original
        if not isinstance(palette, Palette):
            continue
        held = made.setdefault(id(palette), CodedMatrix(palette.coded(original)))
        parametrize.remove_parametrizations(owner, "weight", leave_parametrized=False)
        new = stands_for(owner, held)
        if new is not None and path:
            put(module, path, new.train(owner.training))
            continue
        with torch.no_grad():
            weight: Any = owner.weight
            weight.copy_(torch.from_numpy(held.dense()).reshape(weight.shape))
    return module
