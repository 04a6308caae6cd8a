"""A module with binary layers as a file, and back.

Sections: `bits`, where weights have a minus, a bit each, layer by layer from a whole byte on; `scales`, for each layer
its outputs' scale and shift and its inputs' shift, as far as there are such, in whole or half precision; `kept/<type>`,
everything else. The header names the layers, the normalisations that they took in, and the size that xnor++ fixes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from holdall.errors import BadInput, CorruptArtefact
from holdall.packed import Packed
from holdall.weights.binary_folding import takes_in
from holdall.weights.binary_layers import KINDS, binary_layers, unfused
from holdall.weights.binary_operators import OPERATORS, Operator
from holdall.weights.binary_packed import Frozen, freeze, packed_layer, put
from holdall.weights.kept import keep, put_back
from holdall.weights.stored import section


def write(module: nn.Module, folds: Mapping[str, str], half: bool, head: Mapping[str, Any]) -> Packed:
    """folds: layer -> normalisation, of `foldable`."""
    layers = dict(binary_layers(module))
    if not layers:
        raise BadInput("module", type(module).__name__, "one with binary layers, made by binarize")
    parts = {n: module.get_submodule(f) for n, f in folds.items()}
    frozen = {n: freeze(layer, parts.get(n)) for n, layer in layers.items()}
    bits = [np.packbits(f.minus.reshape(-1), bitorder="little") for f in frozen.values()]
    scales = np.concatenate([*_scales(layers, frozen, folds), np.zeros(0, np.float32)])
    if not np.isfinite(scales).all():
        raise BadInput("scales", "numbers that are not finite", "a module that has learned something")
    if half and not (np.abs(scales) < 65504).all():
        raise BadInput("scales", "numbers beyond half precision", "a budget that holds whole ones")
    arrays = {"bits": np.concatenate(bits), "scales": scales.astype(np.float16 if half else np.float32)}
    told = [[n, folds.get(n), [len(a) for a in f.along]] for n, f in frozen.items()]
    operator = next(iter(layers.values())).operator.name
    meta = {"room": "weights", **head, "operator": operator, "half": half, "layers": told}
    shell = _shell(module, frozen, folds)
    return Packed({**arrays, **keep(shell.state_dict(), half)}, meta)


def _scales(
    layers: Mapping[str, Any], frozen: Mapping[str, Frozen], folds: Mapping[str, str]
) -> Iterable[np.ndarray]:
    for name, f in frozen.items():
        if layers[name].operator.stored_scale or name in folds:
            yield f.scale
        if layers[name].bias is not None or name in folds:
            yield f.shift
        if f.move is not None:
            yield f.move
        yield from f.along


def _shell(module: nn.Module, frozen: Mapping[str, Frozen], folds: Mapping[str, str]) -> nn.Module:
    """A copy for inference."""
    shell = copy.deepcopy(module)
    for name, f in frozen.items():
        put(shell, name, packed_layer(f, shell.get_submodule(name)))
    for name in folds.values():
        put(shell, name, nn.Identity())
    return unfused(shell).eval().requires_grad_(False)


class _Reader:
    """Takes one array after the other off a section."""

    def __init__(self, packed: Packed, name: str, kind: type[np.generic]):
        self.array, self.at, self.name = section(packed, name), 0, name
        if self.array.dtype != kind or self.array.ndim != 1:
            raise CorruptArtefact(f"section {name}", f"{self.array.dtype} {self.array.shape}")

    def take(self, count: int) -> np.ndarray:
        self.at += count
        if self.at > len(self.array):
            raise CorruptArtefact(f"section {self.name}", "shorter than the layers of this module")
        return self.array[self.at - count : self.at]

    def end(self) -> None:
        if self.at != len(self.array):
            raise CorruptArtefact(f"section {self.name}", "longer than the layers of this module")


def read(packed: Packed, like: nn.Module) -> nn.Module:
    """A copy of the float module `like`, with what was packed in it, for inference."""
    operator, half, told = _header(packed)
    bits = _Reader(packed, "bits", np.uint8)
    scales = _Reader(packed, "scales", np.float16 if half else np.float32)
    if not np.isfinite(scales.array).all():
        raise CorruptArtefact("section scales", "numbers that are not finite")
    frozen, folds = {}, {}
    parts = dict(like.named_modules())
    for name, norm, along in told:
        layer = parts.get(name)
        if type(layer) not in KINDS or (norm is not None and not takes_in(layer, parts.get(norm))):
            raise BadInput(
                "module", type(like).__name__, f"one with the layers {name} and {norm}, as it was packed"
            )
        frozen[name] = _layer(operator, layer, norm is not None, along, bits, scales)
        if norm is not None:
            folds[name] = norm
    bits.end()
    scales.end()
    shell = _shell(like, frozen, folds)
    put_back(packed, shell.state_dict(), half)
    return shell


def _layer(
    operator: type[Operator], layer: Any, folds: bool, along: list[int], bits: _Reader, scales: _Reader
) -> Frozen:
    outputs, channels = layer.weight.shape[:2]
    size = layer.weight.numel()
    inputs = channels * getattr(layer, "groups", 1)

    def take(count: int) -> np.ndarray:
        return scales.take(count).astype(np.float32)

    minus = np.unpackbits(bits.take(-(-size // 8)), count=size, bitorder="little").astype(bool)
    wanted = 0 if isinstance(layer, nn.Linear) or not operator.fixed else layer.weight.ndim - 2
    if len(along) != wanted:
        raise CorruptArtefact("the header", f"sizes {along} where {wanted} are wanted")
    return Frozen(
        minus.reshape(outputs, channels, -1),
        take(outputs) if operator.stored_scale or folds else np.ones(outputs, np.float32),
        take(outputs) if layer.bias is not None or folds else np.zeros(outputs, np.float32),
        take(inputs) if operator.moves else None,
        tuple(take(n) for n in along),
        operator.mean,
    )


def _header(packed: Packed) -> tuple[type[Operator], bool, list[tuple[str, str | None, list[int]]]]:
    try:
        told = [(n, f, list(a)) for n, f, a in packed.meta["layers"]]
        operator, half = OPERATORS[packed.meta["operator"]], packed.meta["half"]
        names = [n for n, _, _ in told] + [f for _, f, _ in told if f is not None]
        if type(half) is not bool or any(type(n) is not str for n in names) or len(set(names)) != len(names):
            raise ValueError("names of layers")
        if any(type(v) is not int or not 0 < v < 1 << 20 for _, _, a in told for v in a):
            raise ValueError("sizes of outputs")
    except (KeyError, TypeError, ValueError) as fault:
        raise CorruptArtefact("the header", f"it contradicts itself ({fault})") from fault
    return operator, half, told


def sizes(packed: Packed, like: nn.Module) -> tuple[int, int]:
    """Bytes of the binary layers and of the normalisations that they took in: as float32 in the module, and of their
    sections in the file."""
    parts = dict(like.named_modules())
    whole = 0
    for names in ((n, f) for n, f, _ in packed.meta["layers"]):
        state = [t for n in names if n is not None for t in parts[n].state_dict().values()]
        whole += sum(4 * t.numel() for t in state if t.is_floating_point())
    return whole, sum(section(packed, n).nbytes for n in ("bits", "scales"))
