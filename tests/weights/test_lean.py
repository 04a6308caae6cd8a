"""The lean decoder gives what transformers gives: prompts of any length, steps, biases, long contexts."""

import numpy as np
import pytest
import torch
import transformers

from holdall.weights import RoundToNearest, lean_kernels, quantize_
from holdall.weights.lean import CHUNK, Lean, fits


def _far(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def opened(corner):
    method = RoundToNearest(bits=8)
    packed = method.encode(corner)
    return method.open(packed), method.decode(packed).build()


@pytest.mark.parametrize("tokens", [1, 2, 9, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
@pytest.mark.parametrize("half", [False, True])
def test_scores_are_those_of_transformers(opened, tokens, half):
    module, dense = opened
    lean = Lean.of(module)
    ids = torch.randint(0, 1000, (1, tokens + 3), generator=torch.Generator().manual_seed(tokens))
    with torch.inference_mode():
        wanted = dense(input_ids=ids).logits[0]
        context = lean.context(half=half)
        assert _far(lean.read(ids[0, :tokens].tolist(), context), wanted[tokens - 1]) < 1e-3
        for at in range(tokens, tokens + 3):  # one by one behind it
            assert _far(lean.read([int(ids[0, at])], context), wanted[at]) < 1e-3
    assert context.length == tokens + 3
    held = 2 * 2 * 1 * 64 * (2 if half else 4) * context.length
    assert context.nbytes == held


def test_contexts_grow_and_do_not_mix(opened):
    lean = Lean.of(opened[0])
    one, two = lean.context(), lean.context(4)
    first = lean.read([5, 6, 7], one)
    lean.read([9] * 300, two)
    assert two.capacity >= 300
    again = lean.context()
    lean.read([5, 6], again)
    assert _far(lean.read([7], again), first) < 1e-3
    assert _far(lean.read([8], one), lean.read([8], again)) < 1e-3


def _tiny(kind, **more):
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=96, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, vocab_size=130, tie_word_embeddings=False, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("qwen2", {}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ],
)
def test_relatives_of_llama(kind, more):
    module = _tiny(kind, **more)
    for p in module.parameters():  # biases begin as zeros
        p.data += 0.02 * torch.randn(p.shape)
    ids = torch.randint(0, 130, (1, 21))
    with torch.inference_mode():
        wanted = module(input_ids=ids).logits[0]
        module.model.embed_tokens = _coded_table(module.model.embed_tokens)
        lean = Lean.of(quantize_(module, RoundToNearest(bits=8, group=32)))
        context = lean.context()
        assert _far(lean.read(ids[0, :20].tolist(), context), wanted[19]) < 0.03  # eight-bit weights
        assert _far(lean.read(ids[0, 20:].tolist(), context), module(input_ids=ids).logits[0, -1]) < 1e-3


def _coded_table(table):
    from holdall.weights.coded_linear import CodedMatrix
    from holdall.weights.packed_linear import PackedEmbedding
    from holdall.weights.rtn import rounded

    return PackedEmbedding(CodedMatrix(rounded(table.weight.detach().numpy(), 8, 32)), table)


def test_other_models_are_left_to_transformers(corner):
    assert Lean.of(torch.nn.Linear(3, 3)) is None
    assert Lean.of(corner.build()) is None  # nothing is packed
    gemma = _tiny("gemma2", head_dim=16, sliding_window=8)
    assert not fits(quantize_(gemma, RoundToNearest(bits=8)))


@pytest.mark.parametrize("wide", [1, 5, 64, 100])
@pytest.mark.parametrize("tokens", [1, 3])
def test_kernels_are_their_naive_form(wide, tokens):
    rng = np.random.default_rng(wide)
    x, more, weight, gate = (
        rng.normal(size=s).astype(np.float32) * 30 for s in ((tokens, wide),) * 2 + ((wide,), (tokens, wide))
    )
    out, summed = np.full_like(x, np.nan), x + more
    lean_kernels.normed(x, more, weight, 1e-5, out)
    np.testing.assert_array_equal(x, summed)
    np.testing.assert_allclose(out, lean_kernels.naive_normed(summed, weight, 1e-5), rtol=1e-4)
    up = more.copy()
    lean_kernels.gated(gate, up)
    np.testing.assert_allclose(up, lean_kernels.naive_gated(gate, more), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop", [1, 2, 47, 48, 49, 200])
@pytest.mark.parametrize("half", [False, True])
def test_attention_of_one_token_is_its_naive_form(stop, half):
    rng = np.random.default_rng(stop)
    q = rng.normal(size=(6, 40)).astype(np.float32)
    k, v = (rng.normal(size=(2, stop + 9, 40)).astype(np.float16 if half else np.float32) for _ in range(2))
    k[:, stop:] = v[:, stop:] = np.nan  # nobody may look there
    scores, out = np.full((2, 3, 240), np.nan, np.float32), np.full(240, np.nan, np.float32)
    held = (k.view(np.uint16), v.view(np.uint16)) if half else (k, v)
    lean_kernels.attended(q.reshape(-1), *held, np.float32(0.3), stop, scores, out, 0, 2)
    wanted = lean_kernels.naive_attended(q, k[:, :stop], v[:, :stop], 0.3)
    np.testing.assert_allclose(out.reshape(6, 40), wanted, rtol=1e-4, atol=1e-4)


def test_turning_is_its_naive_form():
    rng = np.random.default_rng(0)
    x, cos, sin = (rng.normal(size=s).astype(np.float32) for s in ((3, 2 * 10), (9, 10), (9, 10)))
    out = np.zeros((2, 7, 10), np.float32)
    lean_kernels.turned(x, cos, sin, 4, 2, out)
    wanted = lean_kernels.naive_turned(x.reshape(3, 2, 10), cos[4:7], sin[4:7])
    np.testing.assert_allclose(out[:, 2:5].transpose(1, 0, 2), wanted, rtol=1e-5, atol=1e-5)
    assert not out[:, :2].any() and not out[:, 5:].any()
