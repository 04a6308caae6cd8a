"""Packed tiers in transformers' own models: bytes, order, padding and turns, on sdpa and eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from holdall.dropins.transformers import Cache
from holdall.kv import KVSelector, MiKV, SnapKV, ZipCache
from holdall.kv.tiers import Tiered


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=101, hidden_size=96, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, pad_token_id=0, eos_token_id=None,
        bos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def entries(cache: Cache) -> list[Tiered]:
    found = [s.entries for s in cache._states]
    assert all(isinstance(x, Tiered) for x in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("method", [ZipCache(gap=40), MiKV()], ids=lambda m: m.name)
def test_generating_keeps_every_token_and_packs_as_it_goes(model: Any, method: KVSelector) -> None:
    torch.manual_seed(1)
    ids, mask = torch.randint(1, 101, (2, 300)), torch.ones(2, 300, dtype=torch.long)
    ids[1, :30] = mask[1, :30] = 0
    logits = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        cache = Cache(method, "35%")
        out = model.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=100, min_new_tokens=100, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        logits[attention] = torch.stack(out.logits[:20])
        for x in entries(cache):
            assert torch.equal(x.where()[0, 0], torch.arange(399, dtype=torch.int32))
            assert sum(t.count for t in x.tiers) > 250
        buffer = 40 * 2 * 2 * 2 * 2 * 32 * 4 * 2  # tokens in full, in two layers and rows
        assert cache.nbytes <= 0.35 * cache.full_bytes + buffer
    torch.testing.assert_close(logits["sdpa"], logits["eager"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", [ZipCache(), MiKV()], ids=lambda m: m.name)
def test_a_second_turn_and_another_method_go_on_from_tiers(model: Any, method: KVSelector) -> None:
    model.set_attn_implementation("sdpa")
    torch.manual_seed(2)
    cache = Cache(method, "40%")
    with torch.no_grad():
        for length in (300, 60):
            model(torch.randint(1, 101, (1, length)), past_key_values=cache)
            assert cache.nbytes <= 0.4 * cache.full_bytes
    assert all(x.count == 360 for x in entries(cache))
    with cache.prefilling(judge=False), torch.no_grad():
        model(torch.randint(1, 101, (1, 40)), past_key_values=cache)
    small = cache.compressed(SnapKV(window=8), "20%")
    assert small.nbytes <= 0.2 * cache.full_bytes and cache.lengths == [400, 400]
