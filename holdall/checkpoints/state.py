"""A nested state as a tree of plain JSON and named tensors, and back. Nothing is pickled.

A tree holds what is no tensor, and {"x": name, ...} where a tensor is. Tensors that share memory are one leaf: tied
weights and views into a flat buffer are written once, and share memory again where a state is built anew.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")


@dataclass
class Flat:
    """tree: plain JSON. leaves: name -> tensor, each memory once, in the order of the state."""

    tree: Any = None
    leaves: dict[str, Any] = field(default_factory=dict)


def flatten(state: Any) -> Flat:
    """BadInput, with the place, where something in the state can not be told in JSON or as a tensor."""
    flat = Flat()
    nodes: list[tuple[dict[str, Any], Any]] = []
    flat.tree = _node(state, "", flat, nodes)
    _share(flat, nodes)
    return flat


def _node(value: Any, path: str, flat: Flat, nodes: list[tuple[dict[str, Any], Any]]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, torch.Tensor):
        return _leaf(value, path, flat, nodes)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.fields or value.dtype.kind not in "biufc":
            raise BadInput(path or "state", f"an array of {value.dtype}", "arrays of numbers")
        little = np.ascontiguousarray(value).reshape(value.shape).astype(value.dtype.newbyteorder("<"))
        return {**_leaf(torch.from_numpy(little), path, flat, nodes), "numpy": 1}
    if isinstance(value, np.generic):
        return {"v": _node(np.asarray(value), path, flat, nodes)}
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, torch.Size):
        return {"size": [int(n) for n in value]}
    if isinstance(value, tuple | list):
        inner = [_node(v, f"{path}.{i}" if path else str(i), flat, nodes) for i, v in enumerate(value)]
        return {"t" if isinstance(value, tuple) else "l": inner}
    if isinstance(value, Mapping):
        pairs = [(_key(k, path), k, v) for k, v in value.items()]
        return {"d": [[key, _node(v, f"{path}.{k}" if path else str(k), flat, nodes)] for key, k, v in pairs]}
    if isinstance(value, bytes):
        return {"b": base64.b64encode(value).decode()}
    if isinstance(value, torch.dtype | torch.device):
        return {"dtype" if isinstance(value, torch.dtype) else "device": str(value).removeprefix("torch.")}
    wanted = "tensors, numbers, text, None, and dicts, lists and tuples of these"
    raise BadInput(path or "state", f"a {type(value).__name__}", wanted)


def _number(value: int | float) -> Any:
    """JSON has neither nan nor infinities."""
    return value if isinstance(value, int) or math.isfinite(value) else {"f": str(value)}


def _key(key: Any, path: str) -> Any:
    if key is None or isinstance(key, bool | str | int | float):
        return _number(key) if isinstance(key, float) else key
    if isinstance(key, tuple):
        return {"t": [_key(k, path) for k in key]}
    raise BadInput(f"key in {path or 'state'}", repr(key), "text or a number")


def _leaf(tensor: Any, path: str, flat: Flat, nodes: list[tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    grad = bool(tensor.requires_grad)
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # a DTensor: this rank's shard
        tensor = tensor.to_local()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise BadInput(path or "state", f"a tensor {tensor.layout} on {tensor.device}", "dense tensors")
    tensor = tensor.resolve_conj().resolve_neg()
    name = path.lstrip("~") or "tensor"
    while name in flat.leaves or name == "__metadata__":  # {"a.b": x, "a": {"b": y}}
        name += "'"
    node: dict[str, Any] = {"x": name, "is": [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]}
    if not tensor.is_contiguous() and _dense(tensor):
        node["strides"] = list(tensor.stride())
    if grad:
        node["grad"] = 1
    flat.leaves[name] = tensor
    nodes.append((node, tensor))
    return node


def _dense(tensor: Any) -> bool:
    """Whether it is a contiguous one with its axes in another order."""
    order = sorted(range(tensor.dim()), key=lambda i: -tensor.stride(i))
    return bool(tensor.permute(order).is_contiguous())


def _share(flat: Flat, nodes: list[tuple[dict[str, Any], Any]]) -> None:
    """Let a leaf that lies within another one's memory be a view of that."""
    groups: dict[int, list[tuple[dict[str, Any], Any]]] = {}
    for node, tensor in nodes:
        if tensor.numel():
            groups.setdefault(tensor.untyped_storage().data_ptr(), []).append((node, tensor))
    for group in groups.values():
        if len(group) == 1:
            continue
        whole = [(n, t) for n, t in group if t.is_contiguous()]
        whole.sort(key=lambda g: (g[1].data_ptr(), -g[1].nbytes))  # holders before what they hold
        holder: tuple[str, int, int] | None = None
        for node, tensor in whole:
            start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            if holder is not None and stop <= holder[2]:
                del flat.leaves[node["x"]]
                node["x"], node["at"] = holder[0], start - holder[1]
            else:
                holder = node["x"], start, stop
        first: dict[Any, str] = {}
        for node, tensor in group:
            if not tensor.is_contiguous():
                key = tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
                if first.setdefault(key, node["x"]) != node["x"]:
                    del flat.leaves[node["x"]]
                    node["x"] = first[key]


def ordered(leaves: Mapping[str, Any], first: set[str]) -> dict[str, Any]:
    """The same leaves, those named first."""
    return {
        n: leaves[n] for n in (*(n for n in leaves if n in first), *(n for n in leaves if n not in first))
    }


def build(tree: Any, memory: Callable[[str], Any], path: str = "state") -> Any:
    """The state that a tree tells of. memory: a leaf's name -> its bytes, a uint8 tensor that may be kept."""
    made: dict[str, Any] = {}  # leaves that share memory are given the same one

    def tensor(node: Mapping[str, Any]) -> Any:
        name = str(node["x"])
        if name not in made:
            made[name] = memory(name)
        return viewed(made[name], node)

    try:
        return _built(tree, tensor)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as fault:
        raise CorruptArtefact(
            path, f"its tree contradicts its tensors ({' '.join(str(fault).split())})"
        ) from None


def viewed(raw: Any, node: Mapping[str, Any]) -> Any:
    """A leaf's bytes as the tensor that the node says."""
    name, shape = node["is"]
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no type {name}")
    nbytes, at = math.prod(shape) * dtype.itemsize, int(node.get("at", 0))
    if "strides" in node and sorted(node["strides"]) != sorted(_strides(shape, node["strides"])):
        raise ValueError("strides with holes")
    if at < 0 or at + nbytes > raw.numel() or ("at" not in node and nbytes != raw.numel()):
        raise ValueError("a size that its bytes do not have")
    piece = raw[at : at + nbytes]
    if at % dtype.itemsize or (nbytes and piece.data_ptr() % dtype.itemsize):
        piece = piece.clone()
    found = piece.view(dtype).reshape(shape)
    if "strides" in node:  # bytes are in the order of the shape; memory was not
        fresh = torch.empty_strided(shape, node["strides"], dtype=dtype)
        fresh.view(_bits(dtype)).copy_(found.view(_bits(dtype)))
        found = fresh
    return found.requires_grad_(True) if node.get("grad") else found


def _strides(shape: Any, strides: Any) -> list[int]:
    """What the strides would be if the axes lay densely in the order that `strides` tells."""
    found, run = [0] * len(shape), 1
    for i in sorted(range(len(shape)), key=lambda i: (strides[i], shape[i] != 1)):
        found[i], run = run, run * shape[i]
    return found


def _bits(dtype: Any) -> Any:
    """A whole-number type as wide: copies of it are copies of bits for every type."""
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(dtype.itemsize, dtype)


def _built(node: Any, tensor: Callable[[Mapping[str, Any]], Any]) -> Any:
    if not isinstance(node, dict):
        return node
    if "x" in node:
        return tensor(node).numpy() if node.get("numpy") else tensor(node)
    kind, value = next(iter(node.items()))
    if kind == "d":
        return {_built(k, tensor): _built(v, tensor) for k, v in value}
    if kind in ("l", "t"):
        inner = [_built(v, tensor) for v in value]
        return inner if kind == "l" else tuple(inner)
    if kind == "v":
        return _built(value, tensor)[()]
    plain: dict[str, Callable[[Any], Any]] = {
        "f": float, "b": base64.b64decode, "size": torch.Size, "device": torch.device,
        "dtype": lambda name: getattr(torch, name),
    }  # fmt: skip
    return plain[kind](value)


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All that stand for tensors."""
    if isinstance(tree, dict):
        if "x" in tree:
            yield tree
        else:
            for value in tree.values():
                for inner in value if isinstance(value, list) else [value]:
                    for one in inner if isinstance(inner, list) else [inner]:
                        yield from nodes(one)
