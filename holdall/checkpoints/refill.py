"""A state that is filled in place from a stored tree: compared whole before anything in it is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from holdall.checkpoints.state import _built, viewed
from holdall.errors import BadInput
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")

Pair = tuple[dict[str, Any], Any]  # a node of the tree, and the tensor of the user's that it fills


def pairs(like: Any, tree: Any, path: str = "") -> list[Pair]:
    """Which tensors of `like` are filled from which nodes; BadInput, in one line, where the two do not go together.

    An empty dict takes all that was stored (an optimizer's states, before its first step); any other has the same keys.
    """
    found: list[Pair] = []
    _match(like, tree, path, found)
    return found


def _match(like: Any, node: Any, path: str, found: list[Pair]) -> None:
    where = path or "state"
    is_tensor = isinstance(node, dict) and "x" in node
    if isinstance(like, torch.Tensor | np.ndarray) != is_tensor:
        raise BadInput(where, _said(like), _told(node))
    if is_tensor:
        target = torch.from_numpy(like) if isinstance(like, np.ndarray) else like.detach()
        target = target.to_local() if hasattr(target, "to_local") else target
        dtype, shape = node["is"]
        if list(target.shape) != shape:
            raise BadInput(f"shape of {where}", tuple(target.shape), f"{tuple(shape)}, as it was saved")
        if str(target.dtype) != f"torch.{dtype}":
            raise BadInput(f"type of {where}", str(target.dtype), f"torch.{dtype}, as it was saved")
        found.append((node, target))
        return
    kind, inner = next(iter(node.items())) if isinstance(node, dict) else ("", node)
    if (kind == "d") != isinstance(like, Mapping) or (kind in "lt" and kind != "") != _is_list(like):
        raise BadInput(where, _said(like), _told(node))
    if kind == "d" and len(like):
        keys = {_key(k): v for k, v in inner}
        odd = [str(k) for k in (*like.keys() - keys.keys(), *keys.keys() - like.keys())]
        if odd:
            raise BadInput(f"keys of {where}", ", ".join(sorted(odd)[:3]), "the same keys as were saved")
        for key in like:
            _match(like[key], keys[key], f"{path}.{key}" if path else str(key), found)
    elif kind in ("l", "t") and len(like):
        if len(like) != len(inner):
            raise BadInput(f"length of {where}", len(like), f"{len(inner)}, as it was saved")
        for i, (mine, theirs) in enumerate(zip(like, inner, strict=True)):
            _match(mine, theirs, f"{path}.{i}" if path else str(i), found)


def _is_list(like: Any) -> bool:
    return isinstance(like, list | tuple) and not isinstance(like, torch.Size)


def _key(node: Any) -> Any:
    return _built(node, lambda n: None)


def _said(like: Any) -> str:
    return f"a {type(like).__name__}"


def _told(node: Any) -> str:
    kinds = {"x": "a tensor", "d": "a dict", "l": "a list", "t": "a tuple"}
    kind = next((k for k in kinds if k in node), "") if isinstance(node, dict) else ""
    return f"{kinds.get(kind, f'a {type(node).__name__}')}, as it was saved"


def refreshed(like: Any, node: Any, fresh: Callable[[Mapping[str, Any]], Any]) -> Any:
    """`like` after its tensors were filled: numbers and texts as stored; what it lacked is made by `fresh`."""
    if isinstance(like, torch.Tensor | np.ndarray):
        return like
    kind = next(iter(node)) if isinstance(node, dict) else ""
    if kind == "d" and isinstance(like, dict) and len(like):
        for key, inner in node["d"]:
            name = _key(key)
            like[name] = refreshed(like[name], inner, fresh)
        return like
    if kind == "d" and isinstance(like, dict):
        like.update(_built(node, fresh))
        return like
    if kind == "l" and isinstance(like, list) and len(like):
        like[:] = [refreshed(a, b, fresh) for a, b in zip(like, node["l"], strict=True)]
        return like
    if kind in ("l", "t") and len(like):
        return tuple(refreshed(a, b, fresh) for a, b in zip(like, node[kind], strict=True))
    return _built(node, fresh)


def fill_from(like: Any, tree: Any, memory: Callable[[str], Any]) -> Any:
    """`like`, filled from leaves' bytes (uint8 tensors) that are in memory already."""
    for node, target in pairs(like, tree):
        target.copy_(viewed(memory(node["x"]), {**node, "grad": 0}))
    return refreshed(like, tree, lambda node: viewed(memory(str(node["x"])), node))
