"""From a traced net and the size of an image to operations on one array."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from holdall.errors import BadInput
from holdall.weights.chw_conv import dense_rows, is_depthwise, lowered
from holdall.weights.chw_nodes import told
from holdall.weights.chw_program import KINDS
from holdall.weights.chw_room import Room, Streams, Value
from holdall.weights.conv_graph import Layer, traced
from holdall.weights.spmm_kernels import LINE
from holdall.weights.spmm_lanes import VECTORS


class Plan:
    """Operations for images [C, H, W], in order; `given` and `wanted` are where an image goes and its result stands."""

    def __init__(self, module: Any, shape: tuple[int, int, int], parts: int = 1):
        self.module = module
        self.ops: list[dict[str, Any]] = []
        self.rows: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # operation -> weights and biases to choose rows for
        self.streams, self.room = Streams(), Room()
        self.env: dict[Any, Value] = {}
        nodes = list(traced(module).nodes)
        last = {given: node for node in nodes for given in node.all_input_nodes}
        self.fused: set[Any] = set()
        for node in nodes:
            self._step(node, shape)
            for given in {*node.all_input_nodes, node}:
                if given in self.env and (last.get(given) is node or (given is node and node not in last)):
                    self._drop(given)
        scratch = max(op.get("scratch_size", 0) for op in self.ops) if self.ops else 0
        for op in self.ops:
            op.update(scratch=self.room.end, scratch_size=scratch)
        self.size = self.room.end + parts * scratch + 8 * LINE

    def _step(self, node: Any, shape: tuple[int, int, int]) -> None:
        word, detail = told(node, self.module)
        if word == "weights":
            return
        if word == "input":
            if self.env:
                raise BadInput("net", "several inputs", "one")
            self.given = self._new(node, *shape)
        elif word == "output":
            if not isinstance(node.args[0], type(node)):
                raise BadInput("net", "several results", "one")
            self.wanted = self._name(node, self.env[node.args[0]])
            if any(self.wanted.pad):
                raise BadInput("net", "padding at its end", "a convolution after it")
        else:
            getattr(self, f"_{word}")(node, self.env[node.args[0]], detail)

    def _new(self, node: Any, channels: int, h: int = 1, w: int = 1, vector: bool = False) -> Value:
        value = Value(0, channels, h, w, vector)
        value.at = self.room.take(value.size)
        return self._name(node, value)

    def _name(self, node: Any, value: Value) -> Value:
        (value.root or value).names += 1
        self.env[node] = value
        return value

    def _drop(self, node: Any) -> None:
        value = self.env.pop(node)
        value = value.root or value
        value.names -= 1
        if not value.names:
            self.room.give(value.at, value.size)

    def _op(self, kind: str, x: Value, out: Value, **more: Any) -> None:
        if any(x.pad) and kind not in ("conv", "depthwise"):
            raise BadInput("net", "padding before another thing than a convolution", "a convolution after it")
        self.ops.append({
            "kind": KINDS.index(kind), "x": x.at, "x_stride": x.stride, "out": out.at, "out_stride": out.stride,
            "pixels": x.pixels, "inputs": x.channels, "outputs": out.channels, "low": -np.inf, "high": np.inf,
            "vectors": VECTORS[0], "work": x.channels * x.pixels // 4, **more,
        })  # fmt: skip

    def _clamped(self, node: Any) -> dict[str, float]:
        """Bounds of the next step that does anything, where that is a clamp and the only reader."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            word, detail = told(node, self.module)
            if word == "clamp":
                self.fused.add(node)
                return dict(zip(("low", "high"), detail, strict=True))
            if word != "same":
                break
        return {}

    def _same(self, node: Any, x: Value, _detail: Any) -> None:
        self._name(node, x)

    def _clamp(self, node: Any, x: Value, bounds: tuple[float, float]) -> None:
        if node in self.fused:
            self._name(node, x)
            return
        out = self._new(node, x.channels, x.h, x.w, x.vector)
        self._op("curve", x, out, mode=5, low=bounds[0], high=bounds[1])

    def _curve(self, node: Any, x: Value, mode: int) -> None:
        self._op("curve", x, self._new(node, x.channels, x.h, x.w, x.vector), mode=mode)

    def _mean(self, node: Any, x: Value, _detail: Any) -> None:
        self._op("mean", x, self._new(node, x.channels, vector=True))

    def _flat(self, node: Any, x: Value, _detail: Any) -> None:
        if x.pixels != 1:
            raise BadInput("net", f"{x.h}x{x.w} pixels made flat", "pooling before it")
        if x.vector:
            self._name(node, x)
        else:
            self._mean(node, x, None)

    def _pad(self, node: Any, x: Value, pad: tuple[int, int, int, int]) -> None:
        if min(pad) < 0:
            raise BadInput("net", f"{node.name}: padding of {pad}", "none below 0")
        left, right, top, bottom = (a + b for a, b in zip(x.pad, pad, strict=True))
        self._name(node, replace(x, pad=(left, right, top, bottom), root=x.root or x))

    def _add(self, node: Any, x: Value, _detail: Any) -> None:
        y = self.env[node.args[1]]
        if (x.channels, x.h, x.w, x.vector) != (y.channels, y.h, y.w, y.vector):
            raise BadInput("net", "a sum of different shapes", "equal ones")
        out = self._new(node, x.channels, x.h, x.w, x.vector)
        self._op("mixed", x, out, y=y.at, y_stride=y.stride, mode=0, **self._clamped(node))

    def _product(self, node: Any, x: Value, _detail: Any) -> None:
        y = self.env[node.args[1]]
        x, y = (y, x) if x.vector else (x, y)
        if not y.vector or y.channels != x.channels:
            raise BadInput("net", "a product of channels", "one factor a channel")
        out = self._new(node, x.channels, x.h, x.w, x.vector)
        self._op("mixed", x, out, y=y.at, mode=1, **self._clamped(node))

    def _layer(self, node: Any, x: Value, layer: Layer) -> None:
        weight = layer.owner.weight.detach().float().numpy()
        bias = layer.owner.bias
        taken = weight.shape[1] * layer.groups
        if x.channels != taken or len(weight) % layer.groups:
            raise BadInput("net", f"{x.channels} channels before {layer.path}", f"{taken}")
        bias = np.zeros(len(weight), np.float32) if bias is None else bias.detach().float().numpy()
        if weight.ndim == 2 or (x.vector and weight.shape[2:] == (1, 1) and layer.groups == 1):
            self._full(node, x, weight.reshape(len(weight), -1), bias)
        elif weight.shape[2:] == (1, 1) and layer.groups == 1 and layer.stride == (1, 1) and not (
            any(layer.padding) or any(x.pad)
        ):  # fmt: skip
            out = self._new(node, len(weight), x.h, x.w)
            self.rows[len(self.ops)] = (weight.reshape(len(weight), -1), bias)
            whole = -(-x.pixels // LINE) * LINE  # what lies between channels may be computed, too
            more = {"pixels": whole, "work": np.count_nonzero(weight) * x.pixels, **self._clamped(node)}
            self._op("rows", x, out, **more)
        else:
            self._conv(node, x, layer, weight, bias)

    def _conv(self, node: Any, x: Value, layer: Layer, weight: np.ndarray, bias: np.ndarray) -> None:
        if x.vector or x.channels != weight.shape[1] * layer.groups:
            raise BadInput(
                "net", f"{layer.path} on {x.channels} channels", f"{weight.shape[1] * layer.groups}"
            )
        fields, out_h, out_w = lowered(layer, weight, (x.h, x.w), x.pad)
        each = is_depthwise(fields)
        rows = (np.hstack([bias[:, None], weight.reshape(len(weight), -1)]),) if each else None
        placed = self.streams.add(*(rows or dense_rows(weight, bias, layer.groups, fields)))
        out = self._new(node, len(weight), out_h, out_w)
        work = weight.size * out.pixels
        self._op(
            "depthwise" if each else "conv",
            x,
            out,
            **{**fields, "work": work},
            **placed,
            **self._clamped(node),
        )

    def _full(self, node: Any, x: Value, weight: np.ndarray, bias: np.ndarray) -> None:
        if not x.vector:
            raise BadInput("net", "a linear on more than one pixel", "pooling or flattening before it")
        out = self._new(node, len(weight), vector=True)
        placed = self.streams.add(np.append(bias, weight))
        self._op("full", x, out, work=weight.size // 4, **placed, **self._clamped(node))
