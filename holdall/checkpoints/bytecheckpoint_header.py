"""The header of one rank's file of boxes: a safetensors file, whose checksums are in the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from holdall.checkpoints.planning import Item

_TAGS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64",
}  # fmt: skip


def tag(dtype: Any) -> str:
    """safetensors' name of a torch type; "" where it has none, and bytes are written."""
    return _TAGS.get(str(dtype).removeprefix("torch."), "")


def header(items: Sequence[Item], tags: Mapping[str, str], tree: bytes | None) -> bytes:
    """Of a safetensors file with these boxes, and a tree as bytes behind them."""
    head: dict[str, Any] = {"__metadata__": {"holdall": "part of a checkpoint", "format": "pt"}}
    at = 0
    for item in items:
        place = ",".join(map(str, item.box.offset))
        known = tags[item.name]
        shape = list(item.box.lengths) if known else [item.nbytes]
        entry = {"dtype": known or "U8", "shape": shape, "data_offsets": [at, at + item.nbytes]}
        head[f"{item.name}[{place}]"] = entry
        at += item.nbytes
    if tree is not None:
        head["tree.json"] = {"dtype": "U8", "shape": [len(tree)], "data_offsets": [at, at + len(tree)]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
