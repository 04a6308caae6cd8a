"""A lean way to run decoders of the Llama shape: a few kernels a layer, and a context that is never copied.

transformers spends most of a packed model's decode step between its matrix products: in Python, in small tensors, and
in copying the cache. Here a token takes twelve calls a layer, over buffers that are made once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from holdall.errors import BadInput
from holdall.parts.rows import by_rows
from holdall.parts.tiles import COLUMNS as STEP
from holdall.weights.coded_linear import CodedMatrix, Inputs
from holdall.weights.lean_kernels import attended, gated, normed, put, turned
from holdall.weights.packed_linear import PackedEmbedding, PackedLinear

_KNOWN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
CHUNK = 256  # tokens of a prompt that are read at a time
_WORTH = 400_000  # products of attention that are worth another thread


@dataclass
class Context:
    """Keys and values of what was read, [layers, heads, capacity, D] each; it grows by doubling.

    half: they are held in half precision (as their bits), not in float32.
    """

    shape: tuple[int, int, int]  # layers, key heads, D
    half: bool = False
    length: int = 0
    keys: np.ndarray = field(init=False)
    values: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.keys, self.values = (self._room(0) for _ in range(2))

    def _room(self, tokens: int) -> np.ndarray:
        layers, heads, wide = self.shape
        return np.zeros((layers, heads, tokens, wide), np.uint16 if self.half else np.float32)

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of what is held, not of the room for more."""
        layers, heads, wide = self.shape
        return 2 * self.keys.itemsize * layers * heads * wide * self.length

    def get_seq_length(self) -> int:
        return self.length

    def reserve(self, tokens: int) -> None:
        """Room for so many tokens in all."""
        if tokens <= self.capacity:
            return
        wanted = max(tokens, min(2 * self.capacity, self.capacity + 4096), 256)
        for name in ("keys", "values"):
            new = self._room(wanted)
            new[:, :, : self.length] = getattr(self, name)[:, :, : self.length]
            setattr(self, name, new)


class Lean:
    """Runs what `open` gave. Made by `Lean.of(module)`, which is None for models of another shape."""

    def __init__(self, module: Any):
        config = module.config
        self.module, self.layers = module, [_Layer(layer) for layer in module.model.layers]
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.wide = self.layers[0].q.held.shape[0] // self.heads
        self.hidden = config.hidden_size
        self.table: CodedMatrix = module.model.embed_tokens.held
        self.head: CodedMatrix = module.lm_head.held
        self.norm, self.eps = module.model.norm.weight.detach().float().numpy(), config.rms_norm_eps
        self._turns = np.zeros((2, 0, self.wide), np.float32)
        self._room: _Room | None = None

    @classmethod
    def of(cls, module: Any) -> Lean | None:
        return cls(module) if fits(module) else None

    def context(self, tokens: int = 0, half: bool = False) -> Context:
        """An empty one, with room for so many tokens."""
        made = Context((len(self.layers), self.key_heads, self.wide), half)
        made.reserve(tokens)
        return made

    def read(self, ids: list[int], context: Context) -> torch.Tensor:
        """The scores [V] of what comes after these tokens, which are added to the context."""
        if not ids:
            raise BadInput("tokens", "none", "at least one")
        context.reserve(context.length + len(ids))
        for start in range(0, len(ids), CHUNK):
            x = self._pass(ids[start : start + CHUNK], context)
        out = np.empty((1, self.hidden), np.float32)
        normed(x[-1:], np.zeros_like(out), self.norm, self.eps, out)
        return self.head.multiply(torch.from_numpy(out))[0]

    def _pass(self, ids: list[int], context: Context) -> np.ndarray:
        """The last layer's sums [T, I] for some tokens."""
        if self._room is None or len(self._room.x) != len(ids):
            self._room = _Room(self, len(ids))
        room, start = self._room, context.length
        x, more = room.x, room.more
        x[:] = self.table.rows(np.array(ids, np.int64))
        more[:] = 0
        cos, sin = self._positions(context)
        for at, layer in enumerate(self.layers):
            keys, values = context.keys[at], context.values[at]
            normed(x, more, layer.norm, self.eps, room.flat.x)
            room.flat.renew()
            layer.q.run(room.flat, room.q)
            layer.k.run(room.flat, room.k)
            layer.v.run(room.flat, room.v)
            turned(room.q, cos, sin, start, 0, room.turned)
            turned(room.k, cos, sin, start, start, keys)
            put(room.v, start, values)
            self._attend(room, keys, values, start)
            layer.o.run(room.seen, more)
            normed(x, more, layer.norm_2, self.eps, room.flat.x)
            room.flat.renew()
            layer.gate.run(room.flat, room.gate)
            layer.up.run(room.flat, room.up.x)
            gated(room.gate, room.up.x)
            room.up.renew()
            layer.down.run(room.up, more)
        x += more
        context.length += len(ids)
        return x

    def _attend(self, room: _Room, keys: np.ndarray, values: np.ndarray, start: int) -> None:
        """What tokens from position `start` on see, [T, H * D], into `room.seen`."""
        tokens = len(room.x)
        stop = start + tokens
        if tokens == 1:
            scores = room.scores_for(keys.shape[1])
            given = (room.turned.reshape(-1), keys, values, np.float32(self.wide**-0.5), stop, scores)
            work = 2 * self.heads * self.wide * stop / _WORTH
            by_rows(attended, self.key_heads, work, *given, room.seen.x.reshape(-1))
        else:
            seen = torch.nn.functional.scaled_dot_product_attention(
                torch.from_numpy(room.turned)[None],
                _numbers(keys[:, :stop]),
                _numbers(values[:, :stop]),
                attn_mask=torch.ones(tokens, stop, dtype=torch.bool).tril(start) if start else None,
                is_causal=not start,
                enable_gqa=self.heads != self.key_heads,
            )
            room.seen.x[:] = seen[0].transpose(0, 1).reshape(tokens, -1).numpy()
        room.seen.renew()

    def _positions(self, context: Context) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin [capacity, D], as the model's own code makes them."""
        if self._turns.shape[1] < context.capacity:
            with torch.inference_mode():
                places = torch.arange(context.capacity)[None]
                pair = self.module.model.rotary_emb(torch.zeros(1), position_ids=places)
            self._turns = np.stack([x[0].float().numpy() for x in pair])
        return self._turns[0], self._turns[1]


def _numbers(x: np.ndarray) -> torch.Tensor:
    held = torch.from_numpy(x)[None]
    return held if x.dtype == np.float32 else held.view(torch.float16).float()


class _Room:
    """Buffers for so many tokens at once, which all layers share."""

    def __init__(self, lean: Lean, tokens: int):
        def rows(count: int) -> np.ndarray:
            return np.zeros((tokens, count), np.float32)

        first = lean.layers[0]
        self.x, self.more, self.flat = rows(lean.hidden), rows(lean.hidden), Inputs(rows(lean.hidden))
        self.q, self.k, self.v = (rows(m.rows) for m in (first.q, first.k, first.v))
        self.gate, self.up = rows(first.gate.rows), Inputs(rows(first.up.rows))
        self.turned = np.zeros((lean.heads, tokens, lean.wide), np.float32)
        self.seen = Inputs(rows(lean.heads * lean.wide))
        self._heads = (lean.key_heads, lean.heads // lean.key_heads)
        self._scores = np.zeros((*self._heads, 0), np.float32)

    def scores_for(self, capacity: int) -> np.ndarray:
        if self._scores.shape[2] < capacity:
            self._scores = np.zeros((*self._heads, -(-capacity // STEP) * STEP), np.float32)
        return self._scores


def fits(module: Any) -> bool:
    """Whether a module is a decoder of the Llama shape whose packed matrices all write `into` buffers."""
    config: Any = getattr(module, "config", None)
    if type(module).__name__ not in _KNOWN or config.hidden_act != "silu":
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    if config.rope_parameters.get("rope_type") == "dynamic":
        return False
    linears = [m for m in module.modules() if isinstance(m, PackedLinear | PackedEmbedding | torch.nn.Linear)]
    return all(hasattr(getattr(m, "held", None), "into") for m in linears)


class _Matrix:
    """A packed linear over buffers."""

    def __init__(self, linear: Any):
        self.held, self.rows = linear.held, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach().float().numpy()

    def run(self, given: Inputs, out: np.ndarray) -> None:
        self.held.into(given, out)
        if self.bias is not None:
            out += self.bias


class _Layer:
    def __init__(self, layer: Any):
        self.norm, self.norm_2 = (
            n.weight.detach().float().numpy() for n in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        attention, mlp = layer.self_attn, layer.mlp
        self.q, self.k, self.v, self.o, self.gate, self.up, self.down = (
            _Matrix(getattr(owner, name + "_proj"))
            for owner, names in ((attention, "q k v o"), (mlp, "gate up down"))
            for name in names.split()
        )
