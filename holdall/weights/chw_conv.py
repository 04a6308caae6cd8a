"""Convolutions KxK as rows over taps: what `chw_kernels.conv` reads, and where each tap stands in its scratch."""

from __future__ import annotations

from typing import Any

import numpy as np

from holdall.errors import BadInput
from holdall.weights.conv_graph import Layer
from holdall.weights.spmm_kernels import LINE, stride_of


def lowered(
    layer: Layer, weight: np.ndarray, size: tuple[int, int], more: tuple[int, int, int, int]
) -> tuple[dict[str, Any], int, int]:
    """Fields of the operation, and height and width of what it gives. more: zeros around the image, as `Value.pad`."""
    o, inputs, k, width = weight.shape
    (h, w), (sy, sx), outputs = size, layer.stride, o // layer.groups
    left, right, top, bottom = (
        a + b for a, b in zip(more, (layer.padding[1],) * 2 + (layer.padding[0],) * 2, strict=True)
    )
    out_h, out_w = (h + top + bottom - k) // sy + 1, (w + left + right - width) // sx + 1
    if out_h < 1 or out_w < 1:
        raise BadInput("image", f"{h}x{w}", f"one that {layer.path} has pixels of")
    fields = {
        "inputs": inputs, "outputs": outputs, "groups": layer.groups, "values": outputs * (1 + inputs * k * width),
        "nr": 4 if outputs % 4 == 0 else 2 if outputs % 2 == 0 else 1, "h": h, "w": w, "out_h": out_h, "out_w": out_w,
        "k": k, "l": width, "step_y": sy, "step_x": sx, "top": top, "left": left,
    }  # fmt: skip
    if is_depthwise(fields):
        fields |= {"tall": h + top + bottom, "pitch": w + left + right}
        fields["scratch_size"] = _lines(fields["tall"] * fields["pitch"]) + 4 * LINE
        return fields, out_h, out_w
    fields |= {"tall": out_h + (k - 1) // sy, "pitch": out_w + (width - 1) // sx}
    taken = inputs * min(k, sy) * min(width, sx) * fields["tall"] * fields["pitch"]
    fields["scratch_size"] = _lines(taken) + 2 * LINE
    if out_w % LINE:  # rows would end in narrow strips: all rows as one, borders and all, and then rows apart
        wide = stride_of(out_h * fields["pitch"])
        fields |= {"flat": fields["scratch_size"], "flat_stride": wide}
        fields["scratch_size"] += outputs * wide + 2 * LINE
    return fields, out_h, out_w


def is_depthwise(fields: dict[str, Any]) -> bool:
    """Whether `chw_kernels.depthwise` does it: one channel in, one out, every or every other row and column."""
    steps = (fields["step_y"], fields["step_x"])
    return fields["inputs"] == fields["outputs"] == 1 < fields["groups"] and steps in ((1, 1), (2, 2))


def _lines(size: int) -> int:
    return -(-size // LINE) * LINE


def dense_rows(
    weight: np.ndarray, bias: np.ndarray, groups: int, fields: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stream, steps (of one group: all have the same) and counts."""
    nr, rows, taps = fields["nr"], fields["outputs"] // fields["nr"], weight[0].size
    blocks = weight.reshape(groups * rows, nr, taps).transpose(0, 2, 1)
    stream = np.concatenate([bias.reshape(-1, 1, nr), blocks], 1)
    steps = np.diff(_places(weight.shape[1:], fields), append=0) * 4
    return stream, np.tile(steps, rows), np.full(rows, taps)


def _places(shape: tuple[int, ...], fields: dict[str, Any]) -> np.ndarray:
    """Floats from the scratch's begin to each tap's first pixel; the first tap's are none."""
    channel, y, x = np.indices(shape).reshape(3, -1)
    sy, sx = fields["step_y"], fields["step_x"]
    plane = (channel * min(fields["k"], sy) + y % sy) * min(fields["l"], sx) + x % sx
    return plane * fields["tall"] * fields["pitch"] + y // sy * fields["pitch"] + x // sx
