"""The paper's place for the scales: 1 / s goes into the operator before, and the model stays the same function."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdall.errors import BadInput
from holdall.weights.scaling import Seen

if TYPE_CHECKING:
    import torch

_BEFORE = {  # a linear -> what makes its input, in Llama-shaped models
    "self_attn.q_proj": "input_layernorm", "self_attn.k_proj": "input_layernorm", "self_attn.v_proj": "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm", "mlp.up_proj": "post_attention_layernorm",
    "self_attn.o_proj": "self_attn.v_proj", "mlp.down_proj": "mlp.up_proj",
}  # fmt: skip
_LINEAR = re.compile(r"(.*\.)(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight")


def fuse(state: dict[str, torch.Tensor], seen: dict[str, Seen]) -> dict[str, Seen]:
    """Scale the columns of each linear in `seen` and divide what feeds it; entries of `state` are replaced.

    Returns what the linears see afterwards. Skipped, and so left unscaled, where shapes differ: the output
    projection under grouped-query attention.
    """
    done: dict[int, torch.Tensor] = {}
    after = {}
    for name, found in seen.items():
        match = _LINEAR.fullmatch(name)
        if match is None:
            after[name] = found
            continue
        scale = found.scale / found.scale.mean()
        source = f"{match[1]}{_BEFORE[match[2]]}.weight"
        if source not in state:
            raise BadInput(
                "fold", f"'previous' for a model without {source}", "fold='factor', which suits any model"
            )
        if state[source].shape[0] != scale.numel():  # v_proj has fewer rows than o_proj has columns
            after[name] = Seen(found.scale.new_ones(scale.numel()), found.gram)
            continue
        if done.setdefault(id(found), scale) is scale:  # linears that share an input share one division
            for part in (source, source.replace(".weight", ".bias")):
                if part in state:
                    before = state[part]
                    inverse = (1 / scale).reshape(-1, *[1] * (before.ndim - 1))
                    state[part] = (before.float() * inverse).to(before.dtype)
        weight = state[name]
        state[name] = (weight.float() * done[id(found)]).to(weight.dtype)
        inverse = 1 / done[id(found)]
        after[name] = Seen(found.scale.new_ones(scale.numel()), found.gram * inverse * inverse[:, None])
    return after
