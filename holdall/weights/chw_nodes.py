"""What each step of a traced net is to the kernels: one of a dozen words, or BadInput that names the step."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from holdall.errors import BadInput
from holdall.weights.chw_kernels import CURVES
from holdall.weights.conv_graph import layer_of

_SAME = (nn.Identity, nn.Dropout, nn.Dropout2d)
_CLAMPS: dict[Any, tuple[float, float]] = {
    key: bounds
    for keys, bounds in (
        ((nn.ReLU, F.relu, torch.relu, "relu", "relu_"), (0.0, math.inf)),
        ((nn.ReLU6, F.relu6), (0.0, 6.0)),
    )
    for key in keys
}
_CURVES: dict[Any, str] = {
    key: name
    for name, keys in {
        "silu": (nn.SiLU, F.silu),
        "sigmoid": (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"),
        "hardswish": (nn.Hardswish, F.hardswish),
        "hardsigmoid": (nn.Hardsigmoid, F.hardsigmoid),
    }.items()
    for key in keys
}
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_SIZES = ("size",)  # of an image, which reshaping asks for
_FLAT = (nn.Flatten, torch.flatten, "flatten", "view", "reshape", "squeeze")


def told(node: Any, module: nn.Module) -> tuple[str, Any]:
    """(word, detail): input, output, layer, same, clamp, curve, mean, flat, pad, add, product; weights: nothing."""
    if node.op in ("placeholder", "output", "get_attr"):
        return {"placeholder": "input", "output": "output", "get_attr": "weights"}[node.op], None
    layer = layer_of(node, module)
    if layer is not None:
        if layer.odd:
            raise BadInput("net", f"{layer.path} with {layer.odd}", "plain convolutions")
        return "layer", layer
    if node.op == "call_module":
        return _of_module(node, module.get_submodule(node.target))
    return _of_function(node)


def _refuse(node: Any, why: object = "") -> BadInput:
    return BadInput("net", f"{node.name} ({node.target}) {why}".strip(), "what `compile_sparse` lists")


def _of_module(node: Any, owner: Any) -> tuple[str, Any]:
    kind = type(owner)
    if getattr(owner, "inplace", False) and len(node.args[0].users) > 1:
        raise _refuse(node, "in place on what others read")
    if kind in _SAME:
        return "same", None
    if kind in _CLAMPS:
        return "clamp", _CLAMPS[kind]
    if kind is nn.Hardtanh:
        return "clamp", (float(owner.min_val), float(owner.max_val))
    if kind in _CURVES:
        return "curve", CURVES.index(_CURVES[kind])
    if kind is nn.AdaptiveAvgPool2d and owner.output_size in (1, (1, 1)):
        return "mean", None
    if kind in _FLAT and owner.start_dim == 1:
        return "flat", None
    if kind is nn.ZeroPad2d or (kind is nn.ConstantPad2d and owner.value == 0):
        return "pad", tuple(owner.padding)
    raise _refuse(node, owner)


def _of_function(node: Any) -> tuple[str, Any]:
    what, given = node.target, {**node.kwargs}
    if what in _SIZES:
        return "weights", None
    if what in _CLAMPS:
        return "clamp", _CLAMPS[what]
    if what is F.hardtanh:
        bounds = {**dict(zip(("min_val", "max_val"), node.args[1:], strict=False)), **given}
        return "clamp", (float(bounds.get("min_val", -1)), float(bounds.get("max_val", 1)))
    if what in _CURVES:
        return "curve", CURVES.index(_CURVES[what])
    if what is F.dropout:
        return "same", None
    if what in _ADDS or what in _PRODUCTS:
        if len(node.args) == 2 and all(isinstance(a, torch.fx.Node) for a in node.args) and not given:
            return "add" if what in _ADDS else "product", None
        raise _refuse(node, "of other things than two results")
    if what is F.adaptive_avg_pool2d and tuple(node.args[1:]) in ((1,), ((1, 1),)):
        return "mean", None
    if what in (torch.mean, "mean"):
        axes = node.args[1] if len(node.args) > 1 else given.get("dim")
        if axes is not None and sorted(a % 4 for a in axes) == [2, 3]:
            return "mean", None
    if what in _FLAT:
        return "flat", None
    plain = len(node.args) == 2 and given.get("mode", "constant") == "constant" and not given.get("value")
    if what is F.pad and plain and len(node.args[1]) == 4 and all(isinstance(n, int) for n in node.args[1]):
        return "pad", tuple(node.args[1])
    raise _refuse(node)
