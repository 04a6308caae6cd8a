"""A rank's state as named parts and plain trees, each of one kind of file, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdall.checkpoints.bytecheckpoint_meta import OWN
from holdall.checkpoints.bytecheckpoint_parts import Piece, is_tensor, piece
from holdall.checkpoints.planning import Item
from holdall.errors import BadInput
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")

_STARTS = {"optim": "optim", "loader": "loader", "dataloader": "loader", "extra": "extra", "rng": "extra"}
_PLAIN = (str, int, float, bool, type(None))


def kind(key: str) -> str:
    """Which file a key of a state goes to: what is not of the optimizer, the loader or a rank's own is the model's."""
    return next((k for start, k in _STARTS.items() if key.lower().startswith(start)), "model")


@dataclass
class Taken:
    """parts: stored name -> what this rank holds of it. names: the state's own name of each. alias: the same memory
    under a second name. trees: for each kind [place, key, node]."""

    rank: int
    parts: dict[str, Piece] = field(default_factory=dict)
    leaves: dict[str, Any] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    trees: dict[str, list[Any]] = field(default_factory=dict)

    def stored(self, name: str, of: str) -> str:
        return f"{name}@{self.rank}" if of in OWN else name

    def whole(self) -> bool:
        """Whether no tensor is split: what is not there yet is then whole, too."""
        return all(part.data.numel() == math.prod(part.shape) for part in self.parts.values())

    def items(self) -> Iterator[Item]:
        for name, part in self.parts.items():
            for box in part.boxes():
                yield Item(name, box, part.data.element_size(), kind(name), self.alias.get(name, ""))

    def basics(self) -> dict[str, Any]:
        """Of each tensor: type, shape, strides, device, whether it wants gradients."""
        found = {}
        for name, part in self.parts.items():
            data, leaf = part.data, self.leaves[name]
            strides = list(data.stride()) if tuple(data.shape) == part.shape else None
            grad = bool(getattr(leaf, "requires_grad", False))
            found[name] = [
                str(data.dtype).removeprefix("torch."),
                list(part.shape),
                strides,
                data.device.type,
                grad,
            ]
        return found


def take(state: Any, rank: int) -> Taken:
    """BadInput where something in the state is neither tensor, number, text nor None."""
    taken = Taken(rank)
    seen: dict[Any, str] = {}
    top = state if isinstance(state, dict) else {"": state}
    for place, (key, value) in enumerate(top.items()):
        of = kind(str(key))
        node = _node(value, str(key), taken, of, seen)
        taken.trees.setdefault(of, []).append([place, key, node])
    return taken


def _node(value: Any, name: str, taken: Taken, of: str, seen: dict[Any, str]) -> Any:
    if is_tensor(value):
        stored = taken.stored(name, of)
        if stored in taken.parts:
            raise BadInput(
                "state", f"two tensors that are both called {name!r}", "keys whose dotted names differ"
            )
        part = piece(value, name)
        taken.parts[stored], taken.leaves[stored] = part, value
        memory = (
            part.data.data_ptr(),
            part.data.dtype,
            part.shape,
            part.base,
            part.start,
            tuple(part.data.stride()),
        )
        if part.data.numel() and seen.setdefault(memory, stored) != stored:
            taken.alias[stored] = seen[memory]
        return {"x": stored}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise BadInput(f"key in {name or 'state'}", repr(key), "a name or a whole number")
        return {"d": [[k, _node(v, f"{name}.{k}", taken, of, seen)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        nodes = [_node(v, f"{name}.{i}", taken, of, seen) for i, v in enumerate(value)]
        return {"t" if isinstance(value, tuple) else "l": nodes}
    if isinstance(value, _PLAIN):
        return value
    raise BadInput(
        f"{name or 'state'}", f"a {type(value).__name__}", "tensors, numbers, text, None, dicts and lists"
    )


def written(tree: Any) -> bytes:
    return json.dumps(tree, separators=(",", ":")).encode()


def node_of(value: Any, name: str) -> Any:
    """The node of a value without tensors."""
    taken = Taken(0)
    node = _node(value, name, taken, "", {})
    if taken.parts:
        raise BadInput(name, "a tensor within a value", "tensors on their own")
    return node


def merged(trees: Sequence[Any]) -> Any:
    """What several ranks' trees say together: keys of all dicts; of anything else the first."""
    first = trees[0]
    if not isinstance(first, dict) or "d" not in first:
        return first
    found: dict[Any, list[Any]] = {}
    for tree in trees:
        for key, node in tree["d"] if isinstance(tree, dict) and "d" in tree else ():
            found.setdefault(key, []).append(node)
    return {"d": [[key, merged(nodes)] for key, nodes in found.items()]}


def together(trees: Sequence[Sequence[Any]]) -> list[tuple[Any, Any]]:
    """Keys of the whole state and their nodes, from several [place, key, node] lists, in order."""
    found: dict[Any, tuple[int, list[Any]]] = {}
    for tree in trees:
        for place, key, node in tree:
            found.setdefault(key, (place, []))[1].append(node)
    ordered = sorted(found.items(), key=lambda f: f[1][0])
    return [(key, merged(nodes)) for key, (_, nodes) in ordered]


def built(node: Any, tensor: Callable[[str], Any]) -> Any:
    """The state that a node tells of."""
    if not isinstance(node, dict):
        return node
    if "x" in node:
        return tensor(node["x"])
    if "d" in node:
        return {k: built(v, tensor) for k, v in node["d"]}
    values = [built(v, tensor) for v in inner(node)]
    return values if "l" in node else tuple(values)


def inner(node: Any) -> list[Any]:
    """Nodes right below one of a dict, a list or a tuple."""
    return [v for _, v in node["d"]] if "d" in node else node.get("l", node.get("t", []))


def lacking(like: Any, node: Any) -> Iterator[str]:
    """Stored names of tensors for which `like` has an empty dict: an optimizer's states, before its first step."""
    if isinstance(like, dict) and isinstance(node, dict) and "d" in node:
        for key, one in node["d"]:
            if not like:
                yield from named(one)
            elif key in like:
                yield from lacking(like[key], one)
    elif isinstance(like, list | tuple) and isinstance(node, dict) and ("l" in node or "t" in node):
        for a, b in zip(like, inner(node), strict=False):
            yield from lacking(a, b)


def refreshed(like: Any, node: Any, made: Mapping[str, Any]) -> Any:
    """`like` with its numbers and texts as stored, changed in place; its tensors stay as they are. made: tensors that
    an empty dict lacked, by stored name."""
    if is_tensor(like):
        return like
    if isinstance(like, dict) and isinstance(node, dict) and "d" in node:
        if not like and made.keys() >= set(named(node)):
            like.update(built(node, made.__getitem__))
        for key, one in node["d"]:
            if key in like:
                like[key] = refreshed(like[key], one, made)
        return like
    if isinstance(like, list | tuple) and isinstance(node, dict) and ("l" in node or "t" in node):
        nodes = inner(node)
        if len(nodes) == len(like):
            fresh = [refreshed(a, b, made) for a, b in zip(like, nodes, strict=True)]
            if isinstance(like, tuple):
                return tuple(fresh)
            like[:] = fresh
            return like
    return built(node, _no_tensor) if not _holds_tensor(node) else like


def _no_tensor(name: str) -> Any:
    raise AssertionError(f"{name} is a tensor")


def _holds_tensor(node: Any) -> bool:
    if not isinstance(node, dict):
        return False
    return "x" in node or any(map(_holds_tensor, inner(node)))


def named(node: Any) -> Iterator[str]:
    """Stored names of the tensors in a node."""
    if isinstance(node, dict):
        if "x" in node:
            yield node["x"]
        for one in inner(node):
            yield from named(one)


def empty(basic: Sequence[Any]) -> Any:
    """A new tensor as it was saved, on the CPU: with its strides where these leave no holes."""
    name, shape, strides, _, grad = basic
    dtype = getattr(torch, name)
    fresh = torch.empty(shape, dtype=dtype)
    if strides is not None and list(fresh.stride()) != strides:
        order = sorted(range(len(shape)), key=lambda i: -strides[i])
        dense = torch.empty([shape[i] for i in order], dtype=dtype).permute(
            [order.index(i) for i in range(len(shape))]
        )
        fresh = dense if list(dense.stride()) == strides else fresh
    return fresh.requires_grad_(grad)
