"""A tiny Llama with random weights and a tokenizer of single characters, written to disk: answers in milliseconds."""

from __future__ import annotations

import json
import string
from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>")


def write_tiny(where: Path, window: int = 512, layers: int = 2) -> str:
    """A model folder; a character is a token, and answers are letters, digits and spaces without end."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    where.mkdir(parents=True)
    letters = [*SPECIAL, *string.printable[:95], "\n"]
    inner = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(list(SPECIAL))
    inner.save(str(where / "tokenizer.json"))
    told = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    (where / "tokenizer_config.json").write_text(json.dumps(told))
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=window, initializer_range=0.6,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    net = LlamaForCausalLM(config)
    with torch.no_grad():
        net.lm_head.weight[: len(SPECIAL)] = 0  # marks are hardly ever the likeliest
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, str(where / "model.safetensors"), metadata={"format": "pt"})
    (where / "config.json").write_text(
        json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    )
    return str(where)
