"""A tiny Llama with random weights and SmolLM2's tokenizer: it reads any text in milliseconds, and knows nothing."""

from __future__ import annotations

import json
from pathlib import Path


def write_reader(where: Path, layers: int = 1) -> str:
    """A model folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from holdall.weights.model import Model

    where.mkdir(parents=True)
    for name, raw in Model.read("smollm2").files.items():
        (where / name).write_bytes(raw)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, initializer_range=0.3,
    )  # fmt: skip
    state = {k: v.contiguous() for k, v in LlamaForCausalLM(config).state_dict().items()}
    save_file(state, str(where / "model.safetensors"), metadata={"format": "pt"})
    told = {**config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    (where / "config.json").write_text(json.dumps(told))
    return str(where)
