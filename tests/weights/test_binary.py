"""Networks of signs: gradients, what inference gives beside training, bytes, and the card's pitfalls."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from holdall import BadInput, BudgetError, Packed
from holdall.errors import CorruptArtefact
from holdall.weights import Binary, binarize, binary
from holdall.weights.binary_file import sizes
from holdall.weights.binary_folding import foldable
from holdall.weights.binary_layers import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    advance,
    binary_layers,
    groups,
)
from holdall.weights.binary_operators import (
    FDA,
    OPERATORS,
    ReActNet,
    ReCU,
    XNORPlusPlus,
    clipped,
    fourier,
    sign,
)
from holdall.weights.binary_packed import freeze, packed_layer
from holdall.weights.training import fingerprint, learn, outputs

GRID = torch.tensor([-2, -1.001, -1, -0.75, -0.5, -1e-3, 0, 1e-3, 0.25, 0.5, 0.999, 1, 1.5])


def series(x, n):
    total = sum(math.cos((2 * i + 1) * 0.1 * x) for i in range(n + 1))
    return 0.4 / math.pi * total if abs(x) <= 1 else 0.0


def table(name, x, done):
    """The card's formulas, point by point."""
    if name in ("bnn", "xnor", "dorefa", "xnor++"):
        return 1.0 if abs(x) <= 1 else 0.0
    if name in ("bireal", "reactnet"):
        return 2 + 2 * x if -1 <= x < 0 else 2 - 2 * x if 0 <= x < 1 else 0.0
    return max(0.0, 2 - 2 * abs(x)) if name == "recu" else series(x, round(9 + 9 * done))


def layer(name, channels=1, outputs=1):
    made = BinaryLinear(channels, outputs, operator=name)
    return made.operator


@pytest.mark.parametrize("done", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_the_formulas(name, done):
    operator = layer(
        name
    ).eval()  # recu's division and fda's noise, in training only, have tests of their own
    operator.done = done
    a = GRID[:, None].clone().requires_grad_()
    signs = operator(a)
    assert signs.flatten().tolist() == [1.0 if x >= 0 else -1.0 for x in GRID.tolist()]
    signs.sum().backward()
    wanted = torch.tensor([table(name, x, done) for x in GRID.tolist()])
    torch.testing.assert_close(a.grad.flatten(), wanted, atol=2e-6, rtol=2e-6)


def test_fourier_terms_differ_as_training_goes_on():
    at = torch.tensor([0.9])
    assert float(fourier(9)(at)) == pytest.approx(series(0.9, 9), rel=1e-5)
    assert float(fourier(18)(at)) == pytest.approx(series(0.9, 18), rel=1e-5)
    assert abs(float(fourier(9)(at) - fourier(18)(at))) > 0.1


@pytest.mark.parametrize("name", OPERATORS)
def test_scales_and_gradients_of_weights(name):
    torch.manual_seed(0)
    w = torch.randn(3, 5, 3, 3).mul(0.8).requires_grad_()
    conv = BinaryConv2d(5, 3, 3, operator=name, place=(4, 4))
    operator, above = conv.operator, torch.randn(3, 5, 3, 3)
    scale = operator.scale(w)
    if name in ("xnor", "dorefa", "bireal", "reactnet", "fda"):
        torch.testing.assert_close(scale, w.abs().mean((1, 2, 3)))
        assert scale.requires_grad == (name == "xnor")
    (operator.signs(w) * above).sum().backward()
    if name != "recu":
        assert torch.equal(w.grad, above * (w.abs() <= 1))
        assert torch.equal(operator.signs(w), torch.where(w >= 0, 1.0, -1.0))


def test_recu_standardises_clamps_and_divides():
    torch.manual_seed(0)
    w = (torch.randn(4, 50) + 0.3).requires_grad_()
    operator = layer("recu", 50, 4)
    even = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True, correction=0) / (2 * math.sqrt(2)))
    assert torch.equal(operator.signs(w), torch.where(even >= 0, 1.0, -1.0))
    passed = {}
    for done in (0.0, 0.5, 1.0):
        operator.done = done
        tau = 0.85 * (0.99 / 0.85) ** done
        assert operator.tau() == pytest.approx(tau)
        above, w.grad = torch.zeros(4, 50), None
        above[0] = torch.randn(50)
        q = float(-even.detach().abs().mean() * math.log(2 - 2 * tau))
        (operator.signs(w) * above).sum().backward()
        inside = (even.abs() <= q).float()
        (wanted,) = torch.autograd.grad((even * inside * above).sum(), w, retain_graph=True)
        torch.testing.assert_close(w.grad, wanted)
        passed[done] = float(inside.mean())
    assert 0.5 < passed[0.0] < passed[0.5] < passed[1.0] <= 1, "tau lets more and more through"
    a = torch.randn(6, 50).mul(5).requires_grad_()
    operator.train()(a).sum().backward()
    even = (a / a.std(1, keepdim=True, correction=0)).detach()
    assert (a.grad[even.abs() < 0.9].abs() > 0).float().mean() > 0.9, (
        "numbers of size five would get no gradient"
    )


SHAPES = {
    "linear": (lambda n: BinaryLinear(130, 33, operator=n), (2, 5, 130)),
    "one output": (lambda n: BinaryLinear(63, 1, operator=n), (7, 63)),
    "one sample": (lambda n: BinaryLinear(63, 5, operator=n), (63,)),
    "conv1d": (lambda n: BinaryConv1d(6, 9, 5, padding=2, groups=3, bias=False, operator=n, place=(11,)), (2, 6, 11)),
    "conv2d": (lambda n: BinaryConv2d(70, 20, 3, padding=1, stride=2, operator=n, place=(5, 4)), (3, 70, 9, 7)),
    "reflected": (
        lambda n: BinaryConv2d(
            4, 4, 3, padding="same", dilation=2, padding_mode="reflect", operator=n, place=(9, 9)
        ),
        (2, 4, 9, 9),
    ),
    "lopsided": (lambda n: BinaryConv2d(3, 5, 4, padding="same", operator=n, place=(6, 7)), (1, 3, 6, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_layers_give_what_the_training_graph_gives(shape, name):
    torch.manual_seed(0)
    make, size = SHAPES[shape]
    trained, x = make(name), torch.randn(size)
    x.view(-1)[:3] = 0
    with torch.no_grad():
        for p in trained.operator.parameters():
            p += 0.3 * torch.randn_like(p)
        wanted = trained.eval()(x)
        given = packed_layer(freeze(trained), trained)(x)
    assert given.shape == wanted.shape and given.dtype == wanted.dtype
    exact = name != "xnor++"  # whose rows and columns are multiplied first
    torch.testing.assert_close(given, wanted, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


def test_sizes_may_change_from_call_to_call():
    trained = BinaryConv2d(3, 4, 3, padding=1, operator="bnn")
    packed = packed_layer(freeze(trained), trained)
    with torch.no_grad():
        for size in ((5, 6), (7, 4), (5, 6)):
            x = torch.randn(2, 3, *size)
            assert torch.equal(packed(x), trained(x))


def test_inputs_of_another_shape_are_named_and_empty_ones_go_through():
    linear, conv = BinaryLinear(8, 3, operator="xnor"), BinaryConv2d(4, 5, 3, operator="xnor")
    packed, other = (packed_layer(freeze(m), m) for m in (linear, conv))
    assert packed(torch.zeros(0, 8)).shape == (0, 3) and other(torch.zeros(0, 4, 5, 5)).shape == (0, 5, 3, 3)
    for layer, shape in ((packed, (2, 16)), (other, (4, 5, 5)), (other, (1, 3, 5, 5)), (other, (1, 4, 2, 5))):
        with pytest.raises(BadInput):
            layer(torch.zeros(shape))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_network_with_folded_normalisations_is_what_was_trained(name):
    """Learned numbers, running means and all: to 1e-5 of the training graph, evaluated."""
    module, data, held = Binary.rehearsal()
    torch.manual_seed(0)
    trained = binarize(module, name, example=data[0])
    chosen = groups(trained, 0.01)
    learn(trained, data, torch.optim.Adam(chosen, 3e-3), 2, each=lambda done: advance(trained, done))
    assert [m.operator.done for _, m in binary_layers(trained)] == [7 / 8] * 2
    assert foldable(trained, data[0]) == {"3": "4", "6": "7"}
    packed = Binary(operator=name).pack(trained, data[0])
    loaded = Binary(operator=name).load(Packed.from_bytes(packed.to_bytes()), module)
    assert not any(isinstance(m, nn.BatchNorm2d) for n, m in loaded.named_modules() if n in "47")
    wanted, given = outputs(trained, held), outputs(loaded, held)
    assert float((wanted - given).abs().max() / wanted.abs().max()) < 1e-5
    unfolded = Binary(operator=name).load(Binary(operator=name).pack(trained), module)
    assert float((wanted - outputs(unfolded, held)).abs().max() / wanted.abs().max()) < 1e-5


@dataclass
class Given:
    scores: torch.Tensor
    features: list


class Twice(nn.Module):
    """A normalisation that must not be folded where the layer's output is used elsewhere, too."""

    def __init__(self, aside):
        super().__init__()
        self.first, self.conv, self.norm, self.last = (
            nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1),
        )  # fmt: skip
        self.aside = aside

    def forward(self, x):
        y = self.conv(self.first(x))
        z = self.norm(input=y) if self.aside == "norm by name" else self.norm(y)
        if self.aside == "added":
            z = z + y
        elif self.aside == "by name":
            z = torch.cat(tensors=[torch.add(input=z, other=y)], dim=1)
        z = self.last(z).flatten(1)
        kinds = {"in a tuple": (z, y), "in a dict": {"a": z, "b": [y]}, "in an object": Given(z, [y])}
        return kinds.get(self.aside, z)


@pytest.mark.parametrize(
    "aside", ["", "added", "by name", "norm by name", "in a tuple", "in a dict", "in an object"]
)
def test_only_what_goes_nowhere_else_is_folded(aside):
    torch.manual_seed(0)
    module, x = Twice(aside), torch.randn(4, 1, 6, 6)
    trained = binarize(module).eval()
    with torch.no_grad():
        trained.norm.running_mean.normal_()
    assert foldable(trained, (x, None)) == ({} if aside else {"conv": "norm"})
    loaded = Binary().load(Binary().pack(trained, (x, None)), module)
    loaded.aside = trained.aside = ""
    torch.testing.assert_close(loaded(x), trained(x).detach(), rtol=1e-5, atol=1e-5)


def wide_net(width=128):
    torch.manual_seed(0)
    body = [
        m
        for _ in range(3)
        for m in (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
    ]
    return nn.Sequential(nn.Conv2d(1, width, 3), *body, nn.Flatten(), nn.Linear(width * 36, 3))


@pytest.mark.parametrize("name", OPERATORS)
def test_binary_layers_take_a_28th_of_the_disk(name, tmp_path):
    module, batch = wide_net(), (torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))
    packed = Binary(operator=name).pack(binarize(module, name, example=batch), batch)
    packed.save(str(tmp_path / "a.hold"))
    with Packed.open(str(tmp_path / "a.hold")) as again:
        whole, stored = sizes(again, module)
        rest = sum(p.numel() for n, p in module.named_parameters() if n.split(".")[0] in ("0", "8")) * 4
        assert whole == 3 * (128 * 128 * 9 + 4 * 128) * 4
        assert stored * 28 <= whole
        assert (tmp_path / "a.hold").stat().st_size <= rest + stored + 2500, "bits are not stored twice"


def test_a_budget_halves_what_is_not_binary_and_names_the_least():
    module, data, held = Binary.rehearsal()
    least = None
    with pytest.raises(BudgetError) as caught:
        Binary().fit(module, data, 100)
    least = int(caught.value.least)
    quick = Binary(epochs=1)
    small, large = quick.fit(module, data, least), quick.fit(module, data)
    assert small.packed.nbytes == least < large.packed.nbytes
    assert small.packed.meta["half"] and not large.packed.meta["half"]
    far = (outputs(small.model, held) - outputs(large.model, held)).abs()
    assert 0 < float(far.median()) < 1e-3  # not all: an input or two near zero changes its sign
    with pytest.raises(BudgetError):
        Binary().fit(module, data, least - 1)
    assert set(large.report.rows) == {"given", "packed"}
    assert large.report.ratio("binary_layers", "packed") < 1 / 20


# pitfalls of the card


def test_the_sign_of_zero_is_plus():
    assert sign(torch.tensor([0.0, -0.0, -1e-30]), clipped).tolist() == [1, 1, -1]
    trained = BinaryLinear(3, 2, operator="bnn")
    with torch.no_grad():
        trained.weight.zero_()
        trained.bias.zero_()
    assert trained(torch.zeros(1, 3)).tolist() == [[3, 3]]
    assert packed_layer(freeze(trained), trained)(torch.zeros(1, 3)).tolist() == [[3, 3]]


def test_fresh_layers_begin_with_weights_around_zero():
    torch.manual_seed(0)
    for made in (BinaryLinear(200, 50), BinaryConv1d(40, 50, 5), BinaryConv2d(40, 50, 3)):
        w = made.weight.detach()
        assert abs(float(w.sign().mean())) < 0.05 and 0.45 < float((w < 0).float().mean()) < 0.55


@pytest.mark.parametrize("make", [lambda: BinaryLinear(2, 1), lambda: BinaryConv2d(2, 1, 1)])
def test_reactnets_shift_moves_the_forward_pass(make):
    trained = make()
    with torch.no_grad():
        trained.weight.fill_(1)
        trained.operator.beta.copy_(torch.tensor([0.5, -0.5]))
    x = torch.tensor([[-0.4, 0.4]]).reshape(1, 2, *[1] * (trained.weight.ndim - 2))
    assert trained.operator(x).flatten().tolist() == [1, -1]
    assert packed_layer(freeze(trained), trained)(x).item() == pytest.approx(trained(x).item())
    trained.operator(x).sum().backward()
    torch.testing.assert_close(trained.operator.beta.grad, torch.tensor([1.8, 1.8]))  # 2 - 2 * .1


def test_xnor_centres_rows_of_linear_layers_only():
    w = torch.tensor([[0.2, 0.3, 0.7], [-0.1, -0.2, -0.6]])
    linear, conv = layer("xnor", 3, 2), BinaryConv1d(3, 2, 1, operator="xnor").operator
    assert linear.signs(w).tolist() == [[-1, -1, 1], [1, 1, -1]]
    torch.testing.assert_close(linear.scale(w), torch.tensor([0.2, 0.2]))
    assert conv.signs(w[..., None]).flatten(1).tolist() == [[1, 1, 1], [-1, -1, -1]]
    torch.testing.assert_close(conv.scale(w[..., None]), torch.tensor([0.4, 0.3]))


def test_xnor_scales_outputs_by_each_samples_mean_size():
    trained = BinaryLinear(4, 3, bias=False, operator="xnor")
    x = torch.randn(2, 5, 4)
    one, ten = trained(x), trained(x * torch.tensor([1.0, 10.0])[:, None, None])
    torch.testing.assert_close(ten, one * torch.tensor([1.0, 10.0])[:, None, None])
    assert not trained.operator.factor(x.requires_grad_()).requires_grad, "no gradient goes through it"


def test_fdas_network_is_there_before_the_optimiser_and_trains():
    module, data, _ = Binary.rehearsal()
    trained = binarize(module, "fda")
    optimiser = torch.optim.SGD(groups(trained, 0.0), 0.1)
    mine = [p for _, m in binary_layers(trained) for p in m.operator.parameters()]
    assert len(mine) == 8 and {id(p) for p in mine} <= {
        id(p) for g in optimiser.param_groups for p in g["params"]
    }
    before = [p.detach().clone() for p in mine]
    learn(trained, data, optimiser, 1)
    assert all(not torch.equal(a, b) for a, b in zip(before, mine, strict=True))


def test_operators_are_told_how_far_the_training_is(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "holdall.weights.binary_layers.advance", lambda m, done: (seen.append(done), advance(m, done))
    )
    module, data, _ = Binary.rehearsal()
    Binary(operator="recu", epochs=2).fit(module, data)
    assert seen == [step / 8 for step in range(8)]


def test_fdas_noise_fades_and_never_reaches_inference():
    operator, x = layer("fda", 128, 4), torch.randn(6, 128)
    assert operator.into.out_features == 2
    far = {}
    for done in (0.0, 0.5, 1.0):
        operator.done = done
        far[done] = float((operator.train()(x) - operator.eval()(x)).detach().norm())
        assert torch.equal(operator.eval()(x), torch.where(x >= 0, 1.0, -1.0))
    assert operator.terms() == 18 and far[0.0] == pytest.approx(2 * far[0.5], rel=1e-4) and far[1.0] < 1e-6


def test_weights_of_signs_do_not_decay():
    module, _, _ = Binary.rehearsal()
    trained = binarize(module, "reactnet")
    decaying, free = groups(trained, 0.3)
    assert decaying["weight_decay"] == 0.3 and free["weight_decay"] == 0
    names = {id(p): n for n, p in trained.named_parameters()}
    assert {names[id(p)] for p in free["params"]} == {
        "3.weight", "3.operator.beta", "6.weight", "6.bias", "6.operator.beta",
    }  # fmt: skip
    optimiser = torch.optim.SGD([decaying, free], 0.1)
    before = {n: p.detach().clone() for n, p in trained.named_parameters()}
    for p in trained.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    moved = {n for n, p in trained.named_parameters() if not torch.equal(p, before[n])}
    mine = Binary(weight_decay=0.3)._optimizer(trained)
    assert [g["weight_decay"] for g in mine.param_groups] == [0.3, 0.0]
    assert "0.weight" in moved and not moved & {names[id(p)] for p in free["params"]}


def test_xnor_plus_plus_fixes_the_size_and_says_so():
    module, data, _ = Binary.rehearsal()
    with pytest.raises(BadInput, match="example"):
        binarize(module, "xnor++")
    trained = binarize(module, "xnor++", example=data[0])
    assert [m.operator.place for _, m in binary_layers(trained)] == [(4, 4), (2, 2)]
    loaded = Binary(operator="xnor++").load(Binary(operator="xnor++").pack(trained), module)
    larger = torch.zeros(1, 1, 10, 10)
    for part in (trained, loaded):
        with pytest.raises(BadInput, match="fix the size"):
            part[:4](larger)


# the change of a module


def test_first_and_last_layers_and_those_named_stay():
    module, _, _ = Binary.rehearsal()
    before = fingerprint(module)
    assert [n for n, _ in binary_layers(binarize(module))] == ["3", "6"]
    assert [n for n, _ in binary_layers(binarize(module, keep=["6"]))] == ["3"]
    assert fingerprint(module) == before and type(module[3]) is nn.Conv2d
    with pytest.raises(BadInput):
        binarize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    with pytest.raises(BadInput, match="reactnet"):
        binarize(module, "no such")


def test_torchs_own_transformer_layers_run_their_binary_parts():
    """Its fused path would take the weights as they are, in evaluation only."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(4, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 3)
    )
    trained, x = binarize(module, "bireal").eval(), torch.randn(2, 5, 4)
    assert [n for n, _ in binary_layers(trained)] == ["1.linear1", "1.linear2"]
    with torch.no_grad():
        evaluated = trained(x)
    torch.testing.assert_close(evaluated, trained(x).detach())  # with gradients that path is never taken
    loaded = Binary().load(Binary(operator="bireal").pack(trained), module)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), evaluated, rtol=1e-5, atol=1e-5)


def test_a_layer_used_twice_stays_one():
    shared = nn.Linear(8, 8)
    module = nn.Sequential(nn.Linear(8, 8), shared, nn.Tanh(), shared, nn.Linear(8, 2))
    trained = binarize(module, "dorefa").eval()
    loaded = Binary().load(Binary(operator="dorefa").pack(trained), module)
    assert loaded[1] is loaded[3]
    x = torch.randn(3, 8)
    torch.testing.assert_close(loaded(x), trained(x).detach())


def test_a_file_of_another_module_is_refused():
    module, _, _ = Binary.rehearsal()
    packed = Binary().pack(binarize(module))
    with pytest.raises(BadInput):
        Binary().load(packed, nn.Sequential(nn.Linear(3, 3)))


def test_forged_files_are_refused():
    """Whose checksums are right: a header or sections that contradict the module or each other."""
    module, data, _ = Binary.rehearsal()
    made = Binary(operator="xnor++").pack(binarize(module, "xnor++", example=data[0]), data[0])
    first, last = made.meta["layers"]
    heads = (
        {"layers": 3}, {"layers": [first]}, {"layers": [first, first]}, {"layers": [[1, None, []], last]},
        {"layers": [[*first[:2], [1 << 30, 4]], last]}, {"layers": [[*first[:2], [4]], last]},
        {"operator": "bnn"}, {"operator": ["bnn"]}, {"half": 1}, {"half": True},
    )  # fmt: skip
    for change in heads:
        with pytest.raises(CorruptArtefact):
            Binary().load(Packed(made.arrays, {**made.meta, **change}), module)
    bits, scales = made.arrays["bits"], made.arrays["scales"]
    for name, array in (
        ("bits", bits[:-1]), ("bits", np.append(bits, bits[:1])), ("bits", bits.view(np.int8)), ("bits", bits[None]),
        ("scales", scales[:-1]), ("scales", np.append(scales, scales[:1])), ("scales", scales * np.nan),
    ):  # fmt: skip
        with pytest.raises(CorruptArtefact):
            Binary().load(Packed({**made.arrays, name: array}, made.meta), module)


def test_what_has_come_to_nothing_is_not_packed():
    module, data, _ = Binary.rehearsal()
    trained = binarize(module)
    trained[4].running_var[0] = math.nan
    with pytest.raises(BadInput, match="finite"):
        Binary().pack(trained, data[0])


def test_operators_are_eight():
    assert list(OPERATORS) == ["bnn", "xnor", "dorefa", "bireal", "xnor++", "reactnet", "recu", "fda"]
    assert tuple(OPERATORS) == binary.OPERATORS
    assert {FDA, ReActNet, ReCU, XNORPlusPlus} < set(OPERATORS.values())
