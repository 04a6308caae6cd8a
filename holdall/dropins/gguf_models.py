"""What GGUF tensors and settings are called in transformers, for the architectures that were checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdall.dropins.gguf import GGUF
from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class _Family:
    """How one GGUF architecture maps to a transformers one."""

    model_type: str
    architecture: str
    names: dict[str, str] = field(default_factory=dict)
    paired_rotary: bool = False  # llama.cpp stores q and k with the two halves of each head interleaved
    centred_norms: bool = False  # Gemma's norms multiply by 1 + w, and llama.cpp stores 1 + w


FAMILIES = {
    "llama": _Family("llama", "LlamaForCausalLM", paired_rotary=True),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Family("qwen3", "Qwen3ForCausalLM"),
    "gemma3": _Family("gemma3_text", "Gemma3ForCausalLM", _GEMMA, centred_norms=True),
}
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)")


def config(gguf: GGUF) -> dict[str, Any]:
    """The `config.json` that transformers would have written for this model."""
    family, meta = _family(gguf), gguf.meta
    arch = meta["general.architecture"]

    def setting(key: str, default: Any = None) -> Any:
        value = meta.get(f"{arch}.{key}", default)
        if value is None:
            raise CorruptArtefact(gguf.name, f"the setting {arch}.{key} is missing")
        if not isinstance(value, int | float):
            raise BadInput(f"GGUF setting {arch}.{key}", str(value), "one number for all layers")
        return value

    if f"{arch}.rope.scaling.type" in meta and meta[f"{arch}.rope.scaling.type"] != "none":
        raise BadInput(
            "GGUF model", f"rope scaling {meta[f'{arch}.rope.scaling.type']!r}", "one without rope scaling"
        )
    heads, hidden = setting("attention.head_count"), setting("embedding_length")
    if "token_embd.weight" not in gguf.entries or not isinstance(heads, int) or heads < 1:
        raise CorruptArtefact(gguf.name, "no token embedding, or no heads")
    told: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "num_hidden_layers": setting("block_count"),
        "hidden_size": hidden,
        "intermediate_size": setting("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": setting("attention.head_count_kv", heads),
        "head_dim": setting("attention.key_length", hidden // heads),
        "max_position_embeddings": setting("context_length"),
        "rms_norm_eps": setting("attention.layer_norm_rms_epsilon"),
        "rope_theta": setting("rope.freq_base", 10000.0),
        "vocab_size": gguf.entries["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in gguf.entries,
        "attention_bias": any(name.endswith("attn_q.bias") for name in gguf.entries),
        "torch_dtype": "float32",
        **{
            f"{k}_token_id": meta[f"tokenizer.ggml.{k}_token_id"]
            for k in ("bos", "eos")
            if f"tokenizer.ggml.{k}_token_id" in meta
        },
    }
    if arch == "gemma3":
        told["sliding_window"] = setting("attention.sliding_window")
        told["query_pre_attn_scalar"] = told["head_dim"]
    return told


def files(gguf: GGUF) -> dict[str, bytes]:
    """config.json and the tokenizer's files."""
    from holdall.dropins.gguf_tokenizer import tokenizer_files

    return {"config.json": json.dumps(config(gguf), indent=1).encode(), **tokenizer_files(gguf)}


def state(gguf: GGUF, told: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor under its name in transformers, in the form that transformers computes with."""
    family = _family(gguf)
    found: dict[str, torch.Tensor] = {}
    for name in gguf.entries:
        if name == "rope_freqs.weight":  # factors of long-context rope: not this family's
            raise BadInput("GGUF model", "rope_freqs", "one without rope scaling")
        match = _TENSOR.fullmatch(name)
        if not match or match[2] not in family.names | _NAMES:
            raise BadInput("GGUF tensor", name, f"one of the architecture {family.model_type}")
        layer = f"model.layers.{int(match[1])}." if match[1] else ""
        tensor = gguf.tensor(name)
        if family.paired_rotary and match[2] in ("attn_q", "attn_k"):
            heads = told["num_attention_heads" if match[2] == "attn_q" else "num_key_value_heads"]
            if tensor.shape[0] % (2 * heads):
                raise CorruptArtefact(
                    gguf.name, f"{name} of {tuple(tensor.shape)} does not divide into {heads} heads"
                )
            tensor = _halves_apart(tensor, heads)
        if family.centred_norms and match[2].endswith("norm"):
            tensor = tensor - 1
        found[f"{layer}{(_NAMES | family.names)[match[2]]}.{match[3]}"] = tensor
    return found


def _halves_apart(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (x0, y0, x1, y1, ...) to (x0, x1, ..., y0, y1, ...)."""
    paired = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])  # [H, D/2, 2, ...]
    return paired.transpose(1, 2).reshape(weight.shape).contiguous()


def _family(gguf: GGUF) -> _Family:
    arch = gguf.meta.get("general.architecture")
    if arch not in FAMILIES:
        raise BadInput("GGUF architecture", str(arch), f"one of {', '.join(FAMILIES)}")
    if gguf.meta.get("split.count", 1) > 1:
        raise BadInput(
            "GGUF file", "one part of several", "one file (llama-gguf-split --merge joins the parts)"
        )
    return FAMILIES[arch]
