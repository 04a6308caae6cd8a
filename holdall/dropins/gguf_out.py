"""Writing GGUF files that llama.cpp opens: its names, its order of rows, its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.dropins.gguf_models import _NAMES, FAMILIES, _Family
from holdall.dropins.gguf_vocabulary import vocabulary
from holdall.errors import BadInput
from holdall.files import atomic_write
from holdall.optional import need

if TYPE_CHECKING:
    import torch

    from holdall.weights.model import Model

FORMS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


class Naming:
    """What a model's tensors are called in GGUF, and how their rows lie."""

    def __init__(self, x: Model):
        kind = x.config.get("model_type")
        known = {family.model_type: (arch, family) for arch, family in FAMILIES.items()}
        if kind not in known:
            raise BadInput("model type for GGUF", str(kind), f"one of {', '.join(known)}")
        self.arch, self._family = known[kind]
        self.config: Any = x._parsed()
        self._ours = {ours: theirs for theirs, ours in (_NAMES | self._family.names).items()}

    @property
    def family(self) -> _Family:
        return self._family

    def name(self, ours: str) -> str:
        """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
        stem, _, what = ours.rpartition(".")
        parts = stem.split(".")
        layer = ""
        if parts[:2] == ["model", "layers"] and len(parts) > 3 and parts[2].isdigit():
            layer, stem = f"blk.{parts[2]}.", ".".join(parts[3:])
        if stem not in self._ours or what not in ("weight", "bias"):
            raise BadInput("tensor for GGUF", ours, f"one of the architecture {self.arch}")
        return f"{layer}{self._ours[stem]}.{what}"

    def order(self, ours: str, rows: int) -> np.ndarray | None:
        """[rows]: the row of ours that each row of theirs is; None where they lie alike."""
        if not self._family.paired_rotary or not any(f".{p}_proj." in ours for p in "qk"):
            return None
        config = self.config
        heads = config.num_attention_heads if ".q_proj." in ours else config.num_key_value_heads
        return np.arange(rows).reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)

    def plain(self, ours: str, tensor: torch.Tensor) -> np.ndarray:
        """A tensor that is no packed matrix, float32, in their order."""
        found = tensor.detach().float().numpy()
        if self._family.centred_norms and "norm" in ours:
            found = found + 1
        order = self.order(ours, len(found))
        return np.ascontiguousarray(found if order is None else found[order])


def settings(naming: Naming) -> dict[str, Any]:
    """The model's own settings, without the architecture before them."""
    c = naming.config
    rope = c.rope_parameters
    rope = rope.get("full_attention", rope)  # Gemma has settings for each kind of layer
    wide = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    _check(c, rope, wide)
    found = {
        "block_count": c.num_hidden_layers, "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size, "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads, "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": wide, "attention.value_length": wide, "rope.dimension_count": wide,
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps), "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": c.vocab_size,
    }  # fmt: skip
    if naming.arch == "gemma3":
        found["attention.sliding_window"] = c.sliding_window
    return found


def _check(c: Any, rope: Mapping[str, Any], wide: int) -> None:
    """What GGUF has no key for must be what llama.cpp takes for granted."""
    local = (c.rope_parameters.get("sliding_attention") or {}).get("rope_theta", 10000.0)
    far = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(c.num_hidden_layers)]
    gemma = c.model_type.startswith("gemma")
    odd = {
        f"rope scaling {rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
        f"rope base {local} of near layers": local != 10000.0,
        "attention in another scale": getattr(c, "query_pre_attn_scalar", wide) != wide,
        "another order of near and far layers": gemma and c.layer_types != far,
        "near layers": not gemma and bool(getattr(c, "use_sliding_window", False)),
        "capped logits": bool(getattr(c, "final_logit_softcapping", None)),
    }
    found = [what for what, is_so in odd.items() if is_so]
    if found:
        raise BadInput("model for GGUF", found[0], f"a {c.model_type} without it")


def row_of(kind: str) -> int:
    """Columns that a row of this type must divide into."""
    gguf = need("gguf", "weights")
    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])


def rounded(array: np.ndarray, kind: str) -> np.ndarray:
    """A float32 matrix in a type, as llama.cpp's own reference rounds it."""
    gguf = need("gguf", "weights")
    found: np.ndarray = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
    return found


def write(
    url: str,
    naming: Naming,
    name: str,
    files: Mapping[str, bytes],
    tensors: Mapping[str, tuple[str, np.ndarray]],
) -> None:
    """The file, whole or not at all. tensors: ours -> (type, bytes of blocks or floats), in their order of rows."""
    gguf = need("gguf", "weights")
    told = {f"{naming.arch}.{k}": v for k, v in settings(naming).items()}
    for key, value in vocabulary(files, naming.config.vocab_size).items():
        told[f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}"] = value
    names = {ours: naming.name(ours) for ours in tensors}
    with atomic_write(url) as f:
        writer = gguf.GGUFWriter(f.unfinished, naming.arch)
        try:
            writer.add_name(name)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for key, value in told.items():
                _add(writer, key, value)
            for ours, (kind, array) in tensors.items():
                writer.add_tensor(names[ours], array, raw_dtype=gguf.GGMLQuantizationType[kind])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        f.publish()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:
        writer.add_array(key, value)
