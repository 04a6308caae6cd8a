"""COAT's activations: what autograd keeps is FP8 and counted, gradients stay, and outputs do not change."""

import copy
import re
import weakref
from pydoc_data.topics import topics

import pytest
import small_gpt
import torch
from torch.nn import functional as F

from holdall import BadInput
from holdall.training import coat_saved
from holdall.training.coat_activations import coat_, saved_bytes, uncoat_

TEXT = "\n".join(topics[name] for name in sorted(topics))


def trained(model, loss):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for ids, wanted in small_gpt.windows(TEXT, 60, 4, 48):
        optimizer.zero_grad()
        loss(model, ids, wanted).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(0)
    return trained(small_gpt.GPT(), lambda model, *pair: model(*pair))


@pytest.fixture(scope="module")
def llama():
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.LlamaConfig(
        vocab_size=256, num_key_value_heads=1, tie_word_embeddings=True, **sizes
    )
    return trained(
        transformers.LlamaForCausalLM(config), lambda model, ids, _: model(input_ids=ids, labels=ids).loss
    )


IDS, WANTED = next(small_gpt.windows(TEXT, 1, 8, 64, seed=9))
RUNS = {
    "gpt": lambda model: model(IDS, WANTED),
    "llama": lambda model: model(input_ids=IDS, labels=IDS).loss,
}

LAYERS = {"gpt": lambda model: model(IDS), "llama": lambda model: model.model(IDS)}  # logits stay as they are


def slopes(model, run):
    model.zero_grad()
    loss = run(model)
    loss.backward()
    return loss.item(), torch.cat([p.grad.double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(RUNS))
def test_what_is_kept_shrinks_and_gradients_stay(name, kind, request):
    plain, run = request.getfixturevalue(name), RUNS[name]
    model = copy.deepcopy(plain).to(kind)
    loss, wanted = slopes(model, run)
    usual = saved_bytes(lambda: LAYERS[name](model), model)
    names = list(model.state_dict())
    assert coat_(model) is model and list(model.state_dict()) == names
    kept = saved_bytes(lambda: LAYERS[name](model), model)
    assert usual / kept > (1.7 if kind == torch.bfloat16 else 3.2), usual / kept
    found, got = slopes(model, run)
    assert found == loss, "the forward is as it was"
    assert torch.cosine_similarity(wanted, got, 0) > 0.999
    assert not got.equal(wanted)
    twin = copy.deepcopy(model)
    assert slopes(twin, run)[1].equal(got)
    uncoat_(model)
    assert type(model) is type(plain) and saved_bytes(lambda: LAYERS[name](model), model) >= usual
    assert slopes(model, run)[1].equal(wanted)


@pytest.mark.parametrize("name", list(RUNS))
def test_nothing_holds_what_was_narrowed(name, request):
    """Neither autograd (which the bytes count) nor anything in Python that is to be done again."""
    model, seen = coat_(copy.deepcopy(request.getfixturevalue(name))), []
    for name_, part in model.named_modules():
        if re.search(r"\.[01]\..*(norm|ln|proj|qkv|out|up|down|act_fn)", name_):
            part.register_forward_hook(lambda _, given, y: seen.append(weakref.ref(y)))
    before = set(coat_saved._made)
    loss = RUNS[name](model)
    alive = [t().shape for t in seen if t() is not None]
    assert len(seen) > 10 and not alive, alive
    assert set(coat_saved._made) - before
    loss.backward()
    assert not set(coat_saved._made) - before, (
        "backward lets go of what was kept, while the loss is still there"
    )


def test_coarse_gradients_and_the_papers_flow_are_there(gpt):
    run = RUNS["gpt"]
    loss, wanted = slopes(copy.deepcopy(gpt), run)
    found = {}
    for flow, rounded in ((False, False), (False, True), (True, True)):
        model = coat_(copy.deepcopy(gpt), flow=flow, slopes=rounded)
        found[flow, rounded] = slopes(model, run)
    near = [torch.cosine_similarity(wanted, g, 0).item() for _, g in found.values()]
    assert near[0] > 0.999 and near[1] > 0.998 and near[2] > 0.9 and len(set(near)) == 3
    assert found[False, True][0] == loss != found[True, True][0]
    assert found[True, True][0] == pytest.approx(loss, rel=1e-2)


def test_training_follows_the_same_curve(gpt):
    ends = []
    for convert in (lambda m: m, coat_):
        torch.manual_seed(1)
        model = convert(small_gpt.GPT())
        optimizer, last = torch.optim.AdamW(model.parameters(), lr=3e-3), []
        for ids, wanted in small_gpt.windows(TEXT, 80, 4, 48):
            loss = model(ids, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last.append(loss.item())
        ends.append(sum(last[-10:]) / 10)
    assert ends[1] == pytest.approx(ends[0], rel=0.01) and ends[1] != ends[0]


def kept_of(act, *weights):
    """What a block keeps while `act` runs."""
    with coat_saved.block({w.untyped_storage().data_ptr() for w in weights}):
        here = coat_saved.shelf()
        held = act()
        kept = [k for _, k in here.held.values()]
    del held
    return kept


class Projections(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(64)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        x = self.norm(x)
        return torch.stack([layer(x) for layer in self.layers]).sum(0)


def test_one_input_of_three_projections_is_kept_once(monkeypatch):
    seen, inner = [], coat_saved.maxima
    model = coat_(torch.nn.ModuleList([Projections()]), blocks=["0"])
    x = torch.randn(40, 64, requires_grad=True)
    kept = coat_saved.Shelf.keep
    monkeypatch.setattr(
        coat_saved.Shelf, "keep", lambda *a, **b: all_kept.append(kept(*a, **b)) or all_kept[-1]
    )
    all_kept = []
    for module in ("coat_saved", "coat_functions"):
        monkeypatch.setattr(
            f"holdall.training.{module}.maxima", lambda flat: seen.append(len(flat)) or inner(flat)
        )
    y = model[0](x)
    fresh = list({k.codes.data_ptr(): k for k in all_kept}.values())
    assert sorted(k.scales.numel() for k in fresh) == [1, 160], (
        "the norm's input by sixteens, its output once"
    )
    assert sum(seen) == 3 * 40 * 64 - 2 * 40 * 64, "maxima are the producer's: nobody looks a second time"
    (norm,) = (k for k in fresh if k.scales.numel() == 160)
    (linear,) = (k for k in fresh if k.scales.numel() == 1)
    out = F.layer_norm(x, (64,)).detach()
    assert linear.scales.item() == pytest.approx((out.abs().max() / 448).item(), rel=1e-5)
    for k, exact in ((norm, x.detach()), (linear, out)):
        far = (k.whole() - exact).abs()
        step = k.scales.float().repeat_interleave(16).view(40, 64) if k is norm else k.scales
        assert (far <= (exact.abs() * 2.0**-4 + step * 2.0**-10) * 1.01).all() and far.max() > 0
    y.sum().backward()


def test_groups_of_odd_lengths_zeros_and_what_is_not_finite():
    for n in (1, 15, 16, 17, 1000):
        x = torch.randn(n)
        x[n // 2] = 0
        codes, scales = coat_saved.by_groups(x)
        kept = coat_saved.Kept(codes, scales, x.shape, x.stride(), x.dtype)
        assert kept.whole().allclose(x, rtol=2.0**-4 * 1.01, atol=1e-2) and len(scales) == -(-n // 16)
    x = torch.zeros(32)
    x[0] = torch.nan
    codes, scales = coat_saved.by_groups(x)
    back = coat_saved.Kept(codes, scales, x.shape, x.stride(), x.dtype).whole()
    assert back[:16].isnan().any() and back[16:].eq(0).all()


def test_frozen_weights_keep_no_input_and_changed_tensors_are_others():
    w, v = torch.randn(64, 64), torch.randn(64, 64, requires_grad=True)
    from holdall.training.coat_functions import linear

    x = torch.randn(50, 64, requires_grad=True)
    assert kept_of(lambda: linear(x, w, flow=False, slopes=False), w) == []
    y = x.detach().clone()

    def twice():
        a = linear(y, v, flow=False, slopes=False)
        y.add_(1.0)
        return a, linear(y, v, flow=False, slopes=False)

    one, two = kept_of(twice, v)
    assert two.whole().allclose(one.whole() + 1, atol=0.4) and not two.whole().equal(one.whole())


def test_what_cannot_be_converted_is_refused(gpt):
    with pytest.raises(BadInput, match="ModuleList"):
        coat_(torch.nn.Sequential(torch.nn.Linear(3, 3)))
    with pytest.raises(BadInput, match="named_modules"):
        coat_(copy.deepcopy(gpt), blocks=["nowhere"])
    model = coat_(copy.deepcopy(gpt))
    with pytest.raises(BadInput, match="already"):
        coat_(model)
