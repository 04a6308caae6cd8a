"""Small random models of several architectures, with a tokenizer of letters, for tests that need no real one."""

from __future__ import annotations

import json
import string

import torch
import transformers

from holdall.dropins.gguf_tokenizer import _told
from holdall.weights import Model

TINY = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
}  # fmt: skip
CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3": "Gemma3"}
NAMES = {"gemma3": "Gemma3TextConfig"}


def tiny(arch: str = "llama", tied: bool = True, layers: int = 2, spread: float = 0.02) -> Model:
    """A small random model of an architecture, that reads letters and digits."""
    torch.manual_seed(0)
    made = getattr(transformers, NAMES.get(arch, f"{CLASSES[arch]}Config"))
    more = {"sliding_window": 32, "query_pre_attn_scalar": 16} if arch == "gemma3" else {}
    sizes = {**TINY, "num_hidden_layers": layers, "initializer_range": spread}
    config = made(**sizes, tie_word_embeddings=tied, pad_token_id=None, **more)
    net = getattr(transformers, f"{CLASSES[arch]}ForCausalLM")(config).eval()
    told = {**json.loads(config.to_json_string()), "architectures": [type(net).__name__]}
    files = {"config.json": json.dumps(told).encode(), "tokenizer.json": json.dumps(letters()).encode()}
    state = {n: t.clone() for n, t in net.state_dict().items() if not tied or n != "lm_head.weight"}
    return Model(state, files, arch)


def letters() -> dict:
    """tokenizer.json of letters, digits, the space, and one merge."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return _told(
        vocab={t: i for i, t in enumerate([*string.ascii_letters, *string.digits, "Ġ", "ab"])},
        merges=[["a", "b"]],
        pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, level]},
        decoder=level,
    )
