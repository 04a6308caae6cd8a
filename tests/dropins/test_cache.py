"""The cache in transformers' own models: exact where it must be, true positions, freed memory, nothing touched."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from holdall import BadInput, BudgetError
from holdall.dropins.transformers import Cache
from holdall.kv import Everything, KVSelector, Random, Recent, SnapKV
from holdall.memory import release
from holdall.meter import Meter, resident_bytes

_SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 101, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 512,
    "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
_SLIDES = {
    "head_dim": 8, "sliding_window": 48,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip


def make(kind: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    t = transformers
    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**_SHAPE)),
        "qwen": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**_SHAPE)),
        "gemma": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**_SHAPE, **_SLIDES)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**_GPT2)),
        "gpt2-upcast": lambda: t.GPT2LMHeadModel(t.GPT2Config(**_GPT2, reorder_and_upcast_attn=True)),
    }
    torch.manual_seed(0)
    model = configs[kind]().eval().to(dtype)
    with torch.no_grad():  # weights as they are drawn attend to everything alike; these look somewhere
        for name, p in model.named_parameters():
            if any(part in name for part in ("q_proj.weight", "k_proj.weight", "c_attn.weight")):
                p.mul_(8)
    model.set_attn_implementation(attention)
    return model


def batch(length: int = 100, padding: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    ids, mask = torch.randint(1, 101, (2, length)), torch.ones(2, length, dtype=torch.long)
    ids[1, :padding] = mask[1, :padding] = 0
    return ids, mask


def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any, new: int = 6, **more: Any) -> Any:
    return model.generate(
        ids, attention_mask=mask, past_key_values=cache, max_new_tokens=new, do_sample=False,
        output_logits=True, return_dict_in_generate=True, **more,
    )  # fmt: skip


ALL = ["llama", "qwen", "gemma", "gpt2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [*ALL, "gpt2-upcast"])
def test_the_whole_budget_gives_transformers_own_logits(
    kind: str, attention: str, dtype: torch.dtype
) -> None:
    model, (ids, mask) = make(kind, attention, dtype), batch()
    mine, truth = (generate(model, ids, mask, c) for c in (Cache(SnapKV(window=8), "100%"), DynamicCache()))
    assert torch.equal(mine.sequences, truth.sequences)
    for a, b in zip(mine.logits, truth.logits, strict=True):
        if kind == "gemma":  # its sliding layers are cut to their window, which only rounds differently
            torch.testing.assert_close(a, b, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("cache", [lambda: Cache(), lambda: Cache(Everything()), lambda: Cache(SnapKV())])
def test_without_a_budget_a_short_prompt_stays_whole(cache: Callable[[], Cache]) -> None:
    model, (ids, mask) = make("llama"), batch()
    mine, truth = generate(model, ids, mask, cache()), generate(model, ids, mask, DynamicCache())
    assert all(torch.equal(a, b) for a, b in zip(mine.logits, truth.logits, strict=True))


def held_back(kept: list[torch.Tensor], valid: torch.Tensor, model: Any) -> Callable[..., Any]:
    """Attention over the whole cache, with a mask that hides what the compressed one dropped."""
    prompt = valid.shape[1]

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        columns = kept[module.layer_idx]  # [B, H, C]
        see = torch.zeros(*columns.shape[:2], key.shape[2], dtype=torch.bool)
        see.scatter_(2, columns.long(), True)
        see[:, :, :prompt] &= valid[:, None].bool()
        see[:, :, prompt:] = True
        rows = torch.arange(key.shape[2] - query.shape[2], key.shape[2])
        causal = torch.arange(key.shape[2])[None] <= rows[:, None]
        groups = query.shape[1] // key.shape[1]
        scores = query.float() @ key.repeat_interleave(groups, 1).float().transpose(2, 3) * scaling
        scores = scores.masked_fill(~(see.repeat_interleave(groups, 1)[:, :, None] & causal), -torch.inf)
        out = scores.softmax(-1) @ value.repeat_interleave(groups, 1).float()
        return out.transpose(1, 2), None

    return attend


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2"])
def test_decoding_is_exact_over_what_was_kept_at_true_positions(kind: str, attention: str) -> None:
    model, (ids, mask) = make(kind, attention), batch()
    cache = Cache(SnapKV(window=8), "40%", floor=0)
    mine = generate(model, ids, mask, cache)
    kept = [s.entries.where()[:, :, :-5] for s in cache._states]
    assert not torch.equal(kept[0][:, 0], kept[0][:, 1]) and kept[0].shape[2] < 40
    assert all(s.entries.where()[0, 0, -6:].tolist() == [99, 100, 101, 102, 103, 104] for s in cache._states)

    whole = DynamicCache()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        truth = [model(ids, attention_mask=mask, position_ids=positions, past_key_values=whole).logits[:, -1]]
        ALL_ATTENTION_FUNCTIONS.register("held_back", held_back(kept, mask, model))
        model.set_attn_implementation("held_back")
        for i in range(5):
            at = mask.sum(1, keepdim=True) + i
            step = mine.sequences[:, 100 + i : 101 + i]
            truth.append(model(step, position_ids=at, past_key_values=whole).logits[:, -1])
    del ALL_ATTENTION_FUNCTIONS._global_mapping["held_back"]
    for a, b in zip(mine.logits, truth, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_does_not_change_what_a_row_keeps(attention: str) -> None:
    model, (ids, mask) = make("llama", attention), batch(padding=30)
    padded = Cache(SnapKV(window=8), "50%", floor=0)
    generate(model, ids, mask, padded, new=1)
    room = padded._states[0].entries.count
    one = Cache(SnapKV(window=8))
    with one.prefilling(judge=False), torch.no_grad():
        model(ids[1:, 30:], past_key_values=one)
    each = one._states[0].entries.each
    small = one.compressed(SnapKV(window=8), room * each * 3)
    for a, b in zip(padded._states, small._states, strict=True):
        assert room < 70 and torch.equal(a.entries.where()[1] - 30, b.entries.where()[0])


def test_padding_on_the_right_takes_the_window_from_the_last_real_tokens() -> None:
    model, (ids, _) = make("llama"), batch(padding=0)
    mask = torch.ones_like(ids)
    mask[1, 70:] = 0
    padded, alone = Cache(SnapKV(window=8), "50%", floor=0), Cache(SnapKV(window=8))
    with alone.prefilling(judge=False), torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=padded)
        model(ids[1:, :70], past_key_values=alone)
    room, each = padded.lengths[0], alone._states[0].entries.each
    small = alone.compressed(SnapKV(window=8), room * each * 3)
    for a, b in zip(padded._states, small._states, strict=True):
        assert torch.equal(a.entries.where()[1], b.entries.where()[0]) and room < 60
        assert b.entries.where()[0, 1, -8:].tolist() == list(range(62, 70))


@pytest.mark.parametrize("kind", [*ALL, "gpt2-upcast"])
def test_fused_and_eager_attention_show_the_same_queries_scale_and_mask(kind: str) -> None:
    ids, mask = batch()
    kept = []
    for attention in ("sdpa", "eager"):
        cache = Cache(SnapKV(window=8), "40%", floor=0)
        with torch.no_grad():
            make(kind, attention)(
                ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache
            )
        kept.append([s.entries for s in cache._states])
    for a, b in zip(*kept, strict=True):
        assert torch.equal(a.where(), b.where()) and a.scale == pytest.approx(b.scale)
    assert kept[0][0].scale == pytest.approx(1 / 16 if kind == "gemma" else 8**-0.5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ALL)
def test_chunks_of_a_prompt_choose_as_the_whole_prompt_does(kind: str, attention: str) -> None:
    model, (ids, mask) = make(kind, attention), batch()
    method = SnapKV(window=8)
    truth, chunked, late = (Cache(method, "50%", floor=0) for _ in range(3))
    generate(model, ids, mask, truth)
    with chunked.prefilling(total=100):
        generate(model, ids, mask, chunked, prefill_chunk_size=33)  # the last chunk is one token
    with late.prefilling(), torch.no_grad():
        for at in range(0, 100, 33):
            end = min(at + 33, 100)
            model(ids[:, at:end], attention_mask=mask[:, :end], position_ids=positions(mask)[:, at:end],
                  past_key_values=late)  # fmt: skip
    for a, b, c in zip(truth._states, chunked._states, late._states, strict=True):
        assert torch.equal(a.entries.where(), b.entries.where())
        assert (
            torch.equal(a.entries.where()[..., : c.entries.count], c.entries.where()) and a.entries.count < 56
        )


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("kind", ALL)
def test_a_second_turn_is_added_and_the_whole_is_brought_back_under_the_budget(kind: str) -> None:
    model, (ids, mask) = make(kind), batch()
    cache = Cache(SnapKV(window=8), "30%", floor=0)
    first = generate(model, ids, mask, cache).sequences
    told = torch.randint(1, 101, (2, 40))
    told[0, :5] = 0  # the rows' messages differ in length
    ids = torch.cat([first, told], 1)
    mask = torch.cat([mask, torch.ones(2, 6, dtype=torch.long), (told > 0).long()], 1)
    generate(model, ids, mask, cache, new=3)
    assert cache.get_seq_length() == 100 + 6 + 40 + 2
    assert (
        0.25 * cache.full_bytes
        < cache.nbytes
        < 0.3 * cache.full_bytes + 3 * cache._states[0].entries.each * 2
    )
    for s in cache._states:
        where = s.entries.where()
        assert (where.diff(dim=-1) > 0).all()
        assert where[0, 0, -10:].tolist() == list(range(138, 148))
        assert not (set(range(30)) | set(range(106, 111))) & set(where[0, 0].tolist()) - set(range(30))
        assert where[1].min() >= 30


@pytest.mark.parametrize("method", [SnapKV(window=8), Random(), Recent()], ids=lambda m: m.name)
@pytest.mark.parametrize("budget", ["25%", "50%", "20kB", "8bit"])
def test_bytes_are_within_the_budget_and_what_the_tensors_take(method: KVSelector, budget: str) -> None:
    model, (ids, mask) = make("llama"), batch()
    cache = Cache(method, budget, floor=0)
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache)
    cache.compress()
    whole = 3 * 2 * 2 * 100 * 2 * 8 * 4
    asked = {"25%": whole // 4, "50%": whole // 2, "20kB": 20_000, "8bit": whole // 4}[budget]
    held = [t for s in cache._states for t in (s.entries.keys, s.entries.values, s.entries.positions)]
    assert cache.nbytes == sum(t.untyped_storage().nbytes() for t in held) <= asked
    assert cache.nbytes > asked - 3 * cache._states[0].entries.each and cache.full_bytes == whole
    assert (
        cache.report["bytes"] == cache.nbytes
        and cache.report.ratio("bytes", method.full_name()) <= asked / whole
    )
    keys = cache._states[0].entries.keys
    assert keys.shape[1] == 2, "the heads that queries share are held once"


def test_generated_tokens_are_all_kept() -> None:
    model, (ids, mask) = make("llama"), batch()
    cache = Cache(SnapKV(window=8), "25%", floor=0)
    generate(model, ids, mask, cache, new=40)
    where = cache._states[1].entries.where()
    assert where[0, 1, -47:].tolist() == list(range(92, 139)) and where.shape[2] < 25 + 39


def test_a_share_of_a_short_prompt_has_a_floor_that_can_be_taken_away() -> None:
    model = make("llama")
    ids, mask = batch(length=40, padding=0)
    cache = Cache(SnapKV(), "10%")
    mine, truth = generate(model, ids, mask, cache), generate(model, ids, mask, DynamicCache())
    assert all(torch.equal(a, b) for a, b in zip(mine.logits, truth.logits, strict=True))
    with pytest.raises(BudgetError, match="32-token window"):
        generate(model, ids, mask, Cache(SnapKV(), "10%", floor=0))
    with pytest.raises(BudgetError) as caught:
        generate(model, ids, mask, Cache(SnapKV(), "9kB"))
    held = Cache(SnapKV(), int(caught.value.least))
    generate(model, ids, mask, held, new=1)
    held.compress()
    assert held.nbytes <= caught.value.least


def test_the_model_is_left_as_it_was_found() -> None:
    model, (ids, mask) = make("llama"), batch()

    def picture() -> tuple[Any, ...]:
        hooks = [
            (name, sorted(k for k in vars(m) if not k.startswith("_is_hf")), len(m._forward_hooks), m.training,
             len(m._forward_pre_hooks), type(m).forward, "forward" in vars(m))
            for name, m in model.named_modules()
        ]  # fmt: skip
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        world = (functional.scaled_dot_product_attention, torch.matmul, torch.Tensor.__torch_function__)
        return hooks, world, model.config.to_dict(), sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()), weights

    before = generate(model, ids, mask, DynamicCache())
    was = copy.deepcopy(picture()[:4]), picture()[4]
    generate(model, ids, mask, Cache(SnapKV(window=8), "25%"))
    now = picture()
    assert now[0] == was[0][0] and now[1] == was[0][1] and now[2] == was[0][2] and now[3] == was[0][3]
    assert all(torch.equal(v, now[4][k]) for k, v in was[1].items())
    after = generate(model, ids, mask, DynamicCache())
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))


def test_a_compressed_copy_leaves_the_cache_as_it_is() -> None:
    model, (ids, _) = make("llama"), batch()
    cache = Cache(SnapKV(window=8))
    with cache.prefilling(judge=False), torch.no_grad():
        model(ids, past_key_values=cache)
    before = [s.entries.keys.clone() for s in cache._states]
    small = cache.compressed(SnapKV(window=8), "20%")
    other = cache.copy()
    with other.appending(), torch.no_grad():
        model(ids[:, :7], past_key_values=other)
    with small.appending(), torch.no_grad():
        model(ids[:, :7], past_key_values=small)
    assert all(torch.equal(a, s.entries.keys) for a, s in zip(before, cache._states, strict=True))
    assert cache.get_seq_length() == 100 and other.get_seq_length() == small.get_seq_length() == 107
    assert small._states[0].entries.count == 18 + 7  # 20 of 100, less what their positions cost


def test_beams_and_rows_move_together() -> None:
    model, (ids, mask) = make("llama"), batch()
    cache = Cache(SnapKV(window=8), "50%", floor=0)
    model.generate(
        ids, attention_mask=mask, past_key_values=cache, max_new_tokens=5, num_beams=3, do_sample=False
    )
    assert cache._states[0].entries.shape[0] == 6
    where = cache._states[0].entries.where()
    cache.batch_select_indices(torch.tensor([4, 0]))
    assert torch.equal(cache._states[0].entries.where(), where[[4, 0]])
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes == 0


def test_the_memory_is_given_back_to_the_kernel() -> None:
    wide = {
        **_SHAPE,
        "num_hidden_layers": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**wide)).eval()
    ids = torch.randint(1, 101, (1, 448))
    with torch.inference_mode():
        model(ids[:, :64], past_key_values=Cache(SnapKV(), "25%"))  # warm
        release()
        before = resident_bytes()
        cache = Cache(SnapKV(), "10%", floor=0)
        with cache.prefilling(judge=False):
            model(ids, past_key_values=cache)
        release()
        whole, full = resident_bytes() - before, cache.nbytes
        cache.compress()
        gc.collect()
        freed = before + whole - resident_bytes()
        assert full > 100e6 and whole > 0.9 * full
        assert freed > 0.95 * (full - cache.nbytes), f"{freed} of {full - cache.nbytes} bytes came back"
        del cache
        release()
        with Meter() as meter:
            model(ids, past_key_values=Cache(SnapKV(), "10%", floor=0))
        assert meter.peak_bytes < full / 2, "layers are cut one by one: the whole never stands"


def test_attention_out_of_sight_is_an_error_and_no_wrong_answer() -> None:
    cache = Cache(SnapKV(window=8), "25%")
    keys = torch.randn(1, 2, 50, 8)
    k, _ = cache.update(keys, keys, 0)
    torch.exp(k)  # not an attention
    with pytest.raises(BadInput, match="out of sight"):
        cache.update(keys, keys, 0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None, "25%"), "no method"),
        (("kv.snapkv", "25%"), "a method of the room"),
        ((SnapKV(), "lots"), "budget"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Cache(*arguments)


def test_what_cannot_work_says_so() -> None:
    model, (ids, mask) = make("llama"), batch()
    cache = Cache(SnapKV(window=8), "25%", floor=0)
    with pytest.raises(BadInput, match="assisted"):
        generate(model, ids[:1], mask[:1], cache, assistant_model=make("llama"))
    whole = Cache(SnapKV(window=8), "100%")
    generate(model, ids, mask, whole, new=1)
    whole.crop(-10)
    assert whole.get_seq_length() == 90
    generate(model, ids, mask, cache, new=1)
    with pytest.raises(BadInput, match="crop"):
        cache.crop(-1)
