"""What a convolutional net computes, as torch.fx traces it, and its batch normalisations folded away."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Layer:
    """A use of a convolution or a linear. path: of the module that has the weights."""

    path: str
    owner: Any
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    odd: str = ""  # what no kernel here does


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def traced(module: nn.Module) -> fx.Graph:
    """Raises torch.fx's own error where a module decides by values what to compute."""
    return fx.Tracer().trace(module)


def layer_of(node: Any, module: nn.Module) -> Layer | None:
    """The layer that a node applies, written as a module or as a function of a module's weights."""
    if node.op == "call_module":
        owner: Any = module.get_submodule(node.target)
        if isinstance(owner, nn.Linear):
            return Layer(node.target, owner)
        if not isinstance(owner, nn.Conv2d):
            return None
        odd = "padding of other numbers than 0" if owner.padding_mode != "zeros" else ""
        return _conv(node.target, owner, owner.stride, owner.padding, owner.dilation, owner.groups, odd)
    functions = {torch.conv2d: 5, nn.functional.conv2d: 5, nn.functional.linear: 0}
    if node.op != "call_function" or node.target not in functions:
        return None
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    place = str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""
    if not place.endswith(".weight"):
        return None
    path = place.removesuffix(".weight")
    owner = module.get_submodule(path)
    if not functions[node.target]:
        return Layer(path, owner)
    names = ("stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, node.args[3:], strict=False)), **node.kwargs}
    stride, padding, dilation, groups = (given.get(n, d) for n, d in zip(names, (1, 0, 1, 1), strict=True))
    return _conv(path, owner, stride, padding, dilation, groups, "")


def _conv(path: str, owner: Any, stride: Any, padding: Any, dilation: Any, groups: int, odd: str) -> Layer:
    if padding == "same" or padding == "valid":
        k = owner.weight.shape[2:]
        odd = odd or (
            "padding of even kernels" if padding == "same" and (k[0] % 2 == 0 or k[1] % 2 == 0) else ""
        )
        padding = (k[0] // 2, k[1] // 2) if padding == "same" else 0
    if _two(dilation) != (1, 1):
        odd = "dilation"
    return Layer(path, owner, _two(stride), _two(padding), groups, odd)


def normalising(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of a batch normalisation with running statistics, in double precision."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def folded(module: nn.Module) -> nn.Module:
    """An evaluated copy whose normalisations are in the layers before them, where nothing reads what is between."""
    made = copy.deepcopy(module).eval()
    pairs = _pairs(made)
    for path, norm_path in pairs.items():
        layer: Any = made.get_submodule(path)
        norm: Any = made.get_submodule(norm_path)
        with torch.no_grad():
            scale, bias = normalising(norm)
            if layer.bias is not None:
                bias = bias + layer.bias.double() * scale
            wide = scale.reshape(-1, *([1] * (layer.weight.ndim - 1)))
            dtype = layer.weight.dtype
            layer.weight = nn.Parameter((layer.weight.double() * wide).to(dtype))
            layer.bias = nn.Parameter(bias.to(dtype))
        made.set_submodule(norm_path, nn.Identity())
    return made


def _pairs(module: nn.Module) -> dict[str, str]:
    """Layer -> normalisation, each used once. None where a module has no normalisation or cannot be traced."""
    norms = {n for n, m in module.named_modules() if type(m) in NORMS and m.running_mean is not None}
    if not norms:
        return {}
    try:
        nodes = list(traced(module).nodes)
    except fx.proxy.TraceError:  # it then keeps its normalisations, and is as right with them
        return {}
    layers = [(n, layer_of(n, module)) for n in nodes]
    paths = [layer.path for _, layer in layers if layer is not None]
    targets = [n.target for n in nodes if n.op == "call_module"]
    found = {}
    for node, layer in layers:
        if layer is None or paths.count(layer.path) != 1 or len(node.users) != 1:
            continue
        user = next(iter(node.users))
        if user.op == "call_module" and user.target in norms and targets.count(user.target) == 1:
            norm: Any = module.get_submodule(user.target)
            if norm.num_features == len(layer.owner.weight) and (
                isinstance(norm, nn.BatchNorm2d) or isinstance(layer.owner, nn.Linear)
            ):
                found[layer.path] = user.target
    return found
