"""Where adapters go in modules of transformers and of torch, by the names that they give to the parts of a block."""

import pytest

torch = pytest.importorskip("torch")

from holdall.errors import BadInput  # noqa: E402
from holdall.weights import BinaryAdapters  # noqa: E402
from holdall.weights.adapter_modules import adapters_of  # noqa: E402


def made_of(kind):
    import transformers as t

    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    wide = {"hidden_size": 16, "intermediate_size": 24, **small}
    if kind == "bert":
        return t.BertModel(t.BertConfig(**wide))
    if kind == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50))
    if kind == "gemma":
        return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**wide, num_key_value_heads=1, head_dim=8))
    if kind == "opt":
        return t.OPTForCausalLM(t.OPTConfig(**small, hidden_size=16, ffn_dim=24, word_embed_proj_dim=16))
    return t.DistilBertModel(t.DistilBertConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=2, vocab_size=50))


SINKS = {
    ("bert", "adaptformer"): [("intermediate", "output.dense")],
    ("bert", "lora"): [("attention.self.query",) * 2, ("attention.self.value",) * 2],
    ("gpt2", "adaptformer"): [("ln_2", "mlp")],
    ("gpt2", "lora"): [("attn.c_attn",) * 2] * 2,
    ("gemma", "adaptformer"): [("pre_feedforward_layernorm", "post_feedforward_layernorm")],
    ("gemma", "lora"): [("self_attn.q_proj",) * 2, ("self_attn.v_proj",) * 2],
    ("opt", "adaptformer"): [("final_layer_norm", "fc2")],
    ("distilbert", "adaptformer"): [("ffn", "ffn")],
    ("distilbert", "lora"): [("attention.q_lin",) * 2, ("attention.v_lin",) * 2],
}


@pytest.mark.parametrize(("kind", "placement"), SINKS)
def test_places_in_the_modules_of_transformers(kind, placement):
    torch.manual_seed(0)
    module, ids = made_of(kind).eval(), torch.arange(10).reshape(2, 5)
    recipe = BinaryAdapters(placement=placement, width=2, head="none")

    def loss(m, batch):
        return next(iter(m(input_ids=batch["input_ids"]).values())).square().mean()

    made = recipe.attach(module, [{"input_ids": ids}], loss=loss)
    found = adapters_of(made).places
    assert found.blocks == 2
    assert sorted((s.source, s.sink) for s in found.spots) == sorted(SINKS[kind, placement])
    loss(made, {"input_ids": ids}).backward()
    learned = [m.weight.grad for m in adapters_of(made).matrices()]
    assert (
        all(g is not None for g in learned)
        and sum(float(g.abs().sum()) > 0 for g in learned) > len(learned) // 2
    )
    if kind == "gpt2" and placement == "lora":
        assert [(s.start, s.rows) for s in found.spots] == [(0, 16), (32, 16)]


def test_torchs_own_encoder_takes_no_short_cut_around_adapters():
    layer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    module = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    data = [(torch.randn(3, 4, 16), torch.randn(3, 4, 16))]
    made = BinaryAdapters(scale=10.0).attach(module, data)
    with torch.no_grad():
        assert float((made(data[0][0]) - module(data[0][0])).abs().max()) > 1e-4
    with pytest.raises(BadInput, match="queries and values"):
        BinaryAdapters(placement="lora").attach(module, data)
    with pytest.raises(BadInput, match="stack of blocks"):
        BinaryAdapters().attach(torch.nn.Linear(3, 3), data)
