"""What an engine knows before it reads any weights: files, sizes, and where the memory will go."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.budget import Budget
from holdall.dropins import hub
from holdall.errors import BadInput
from holdall.optional import lazy, need

if TYPE_CHECKING:
    import torch

    from holdall.kv.base import KVSelector
    from holdall.packed import Packed
else:
    torch = lazy("torch", extra="weights")

CHUNK = (
    256  # tokens that pass through an MLP (or through the model, where a prompt is read by chunks) at a time
)
RESERVE = (
    44_000_000  # modules, allocator, one matrix of a packed model unpacked: 30 to 39 MB, by machine and luck
)
FLOOR = 64  # entries a head that a share of the context never goes below (the cache's own floor)


@dataclass(frozen=True)
class Source:
    """A model that is not read yet.

    size: bytes that its weights take in memory when all of them are there. item: bytes of a number that they can
    be computed with in little memory (2 where the weights stay packed, or are stored in bfloat16).
    """

    files: dict[str, bytes]
    size: int
    item: int
    packed: Packed | None = None
    path: str = ""

    @classmethod
    def of(cls, path: str) -> Source:
        if not path.lower().rstrip("/").endswith(".hold"):
            files, elements, sixteen = hub.outline(path)
            item = 2 if sixteen else 4
            return cls(_with_config(files, path), elements * item, item, path=path)
        from holdall.packed import Packed
        from holdall.verbs import method_of
        from holdall.weights.base import WeightCodec
        from holdall.weights.stored import described, files_of

        packed = Packed.open(path)
        method = method_of(packed, path)
        if not isinstance(method, WeightCodec):
            raise BadInput("model", path, f"a packed model, not what {method.full_name()} packed")
        files = _with_config(files_of(packed), path)
        if method.stays_packed():
            return cls(files, packed.nbytes, 2, packed)
        elements = sum(math.prod(shape) for _, _, shape in described(packed))
        return cls(files, 4 * elements, 4, packed)


@dataclass(frozen=True)
class Shape:
    """The sizes that memory follows from; `item` is the bytes of one number that is computed with."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    item: int

    @classmethod
    def of(cls, config: dict[str, Any], item: int) -> Shape:
        told = config.get("text_config", config)
        try:
            heads, hidden = int(told["num_attention_heads"]), int(told["hidden_size"])
            return cls(
                int(told["num_hidden_layers"]), hidden, int(told["intermediate_size"]), heads,
                int(told.get("num_key_value_heads") or heads), int(told.get("head_dim") or hidden // heads),
                int(told["vocab_size"]), item,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as fault:
            raise BadInput(
                "config.json", f"no usable {fault}", "a decoder of the Llama, Qwen or Gemma kind"
            ) from None

    @property
    def token(self) -> int:
        """Bytes of the context that one token takes in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.item


@dataclass(frozen=True)
class Plan:
    """Where the memory goes, in bytes; `chunk`: tokens in one pass over the prompt."""

    kv: int
    workspace: int
    chunk: int

    @property
    def total(self) -> int:
        return self.kv + self.workspace


def plan(
    shape: Shape,
    tokens: int,
    new: int,
    share: Budget | None,
    chunk: int,
    together: bool = False,
    asked: int = 0,
) -> Plan:
    """Memory beside the weights for `tokens` of prompt and `new` of answer.

    share: of the context that is kept; None keeps it all. In one pass each layer is cut down to its share before
    the next is computed, so one layer at a time is whole; in many passes what a chunk adds stands beside it.
    together: all layers are judged at once, so all stand whole until then. asked: queries that judge a layer.
    """
    wide = min(chunk, tokens)
    kept = tokens * shape.token
    asked = min(asked, wide)
    if share is not None:
        floor = min(tokens, FLOOR) * (shape.token + 8 * shape.layers * shape.kv_heads)
        kept = min(kept, max(share.limit(kept, kept // shape.item), floor)) + wide * shape.token * (
            chunk < tokens
        )
    if together and chunk >= tokens:
        kept = tokens * shape.token
    kv = kept + new * shape.token
    layer = (
        (tokens + new) * shape.token // shape.layers
    )  # one layer whole: while it grows, is judged or copied
    attention = shape.heads * shape.head_dim
    passing = wide * shape.item * (4 * shape.hidden + 5 * attention)
    mlp = min(CHUNK, wide) * 3 * shape.inner * max(4, shape.item)
    masks = 5 * wide * tokens if chunk < tokens else 0
    repeated = 2 * tokens * attention * shape.item if chunk < tokens else 0
    shown = asked * attention * shape.item * (shape.layers if together else 1)
    scores = 12 * shape.heads * min(asked, CHUNK) * tokens  # a block of them, float32, three at a time
    judging = shown + max(0, scores - 3 * layer)
    workspace = RESERVE + 3 * layer + passing + mlp + masks + repeated + judging + 16 * shape.vocabulary
    return Plan(kv, workspace, chunk)


def slice_mlps(net: torch.nn.Module) -> None:
    """MLPs see `CHUNK` tokens at a time: a long prompt in one pass then needs little more than its hidden states."""
    for module in net.modules():
        if type(module).__name__.endswith("MLP"):
            module.forward = _Sliced(module.forward)


class _Sliced:
    def __init__(self, inner: Callable[[torch.Tensor], torch.Tensor]):
        self.inner = inner

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 3 or x.shape[1] <= CHUNK:
            return self.inner(x)
        out = torch.empty_like(x)  # [B, T, D]
        for start in range(0, x.shape[1], CHUNK):
            out[:, start : start + CHUNK] = self.inner(x[:, start : start + CHUNK])
        return out


def libraries(path: str, kv: KVSelector | None = None) -> None:
    """Import, and compile, what running that model will need, so that its memory can be told from theirs."""
    hub.present(path)
    transformers = need("transformers", "weights")
    need("tokenizers", "weights")
    for name in ("LlamaForCausalLM", "PreTrainedModel", "DynamicCache"):
        getattr(transformers, name)
    if path.lower().endswith(".hold"):
        need("numba", "weights")
        from holdall.packed import Packed
        from holdall.weights.coded_file import compile_for
        from holdall.weights.layout import Piece
        from holdall.weights.parts import Part

        importlib.import_module("holdall.weights.lean")
        with Packed.open(path) as packed:
            compile_for(packed)
        part = Part(Piece(0, 0, 16, 16, 1, False))
        part.resize(1)
        part.dense(np.zeros((16, 16), np.float32))
        part.product(np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32))
    elif path.lower().endswith(".gguf") or path in hub.short_names():
        need("gguf", "weights")
    if kv is not None:
        _rehearse(kv)


def _rehearse(kv: KVSelector) -> None:
    from holdall.kv.entries import Entries

    for dtype in (torch.float32, torch.bfloat16):
        keys, values, queries = torch.zeros(3, 1, 1, 256, 64, dtype=dtype).unbind(0)
        kv.select(Entries(keys=keys, values=values, queries=queries), "50%").attend(
            queries[:, :, :1], None, None
        )


def _with_config(files: dict[str, bytes], path: str) -> dict[str, bytes]:
    if "config.json" not in files:
        raise BadInput("model", f"{path} without config.json", "one with its configuration")
    return files
