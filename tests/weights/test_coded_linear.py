"""Modules with packed matrices: they compute what the decoded model computes, and hold no more than they say."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from weights.test_coded import draw

import holdall
from holdall import BadInput, BudgetError
from holdall.packed import Packed
from holdall.weights import BitStack, Coded, MixLLM, Model, RoundToNearest, coded_file, quantize_
from holdall.weights.coded_linear import CodedMatrix
from holdall.weights.inputs import second_moments
from holdall.weights.packed_linear import PackedConv2d, PackedEmbedding, PackedLinear


@pytest.mark.parametrize("group", [0, 64, 48])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("activations", [32, 16])
def test_opened_is_decoded(corner, tmp_path, bits, group, activations):
    method, path = RoundToNearest(bits=bits, group=group), str(tmp_path / "a.hold")
    method.encode(corner, to=path)
    module = holdall.weights.open(path, activations=activations)
    with Packed.open(path) as packed:
        decoded = method.decode(packed).build()
    names = {type(m).__name__ for m in module.modules()}
    assert {"PackedLinear", "PackedEmbedding"} <= names and not {"Linear", "Embedding"} & names
    assert sum(p.numel() for p in module.parameters()) < 0.01 * corner.elements
    ids = torch.tensor([corner.tokenizer().encode("A packed model and its decoded form agree on a text.")])
    for part in (ids, ids[:, :1]):
        wanted = decoded(input_ids=part).logits
        found = module(input_ids=part).logits
        a, b = torch.log_softmax(wanted.double(), -1), torch.log_softmax(found.double(), -1)
        assert float((a.exp() * (a - b)).sum(-1).max()) < 1e-6  # nats
        if activations == 32:  # rounded to 16 bits they are 1e-4 away, in SmolLM2's thirty layers 4e-4
            assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_memory_is_foretold_and_kept(corner):
    method = RoundToNearest(bits=4)
    packed = method.encode(corner)
    least = coded_file.resident(packed)
    module = method.open(packed, least)
    held = {id(m.held): m.held for m in module.modules() if isinstance(m, PackedLinear | PackedEmbedding)}
    plain = sum(p.numel() * p.element_size() for p in module.parameters())
    assert sum(h.nbytes for h in held.values()) + plain == least
    with pytest.raises(BudgetError) as caught:
        method.open(packed, least - 1)
    assert caught.value.least == least


OPENED = """
import json, sys, holdall.weights
from holdall.meter import Meter
from holdall.packed import Packed
from holdall.weights import coded_file
from holdall.weights.quality import warm
warm()
with Packed.open(sys.argv[1]) as packed:
    least = coded_file.resident(packed)
for _ in range(2):  # kernels are compiled before memory is counted
    with Meter() as meter:
        module = holdall.weights.open(sys.argv[1])
    del module
print(json.dumps([meter.peak_bytes, least]))
"""


@pytest.mark.slow
def test_opening_takes_little_more_than_what_is_held(smollm2_at_4_bits):
    done = subprocess.run(
        [sys.executable, "-c", OPENED, smollm2_at_4_bits], capture_output=True, text=True, check=False
    )
    peak, least = json.loads(done.stdout or "[0, 0]")
    assert 0 < least < peak < 1.2 * least, done.stderr


@pytest.mark.parametrize("method", [RoundToNearest(bits=6), BitStack(rank=2)])
def test_any_module_is_made_smaller_where_it_stands(method):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 40), nn.Linear(40, 5, False)
    )
    x = torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        wanted = net(x)
        assert quantize_(net, method) is net
        out = net(x)
    assert isinstance(net[0], PackedConv2d) and isinstance(net[3], PackedLinear)
    assert out.shape == wanted.shape and float((out - wanted).norm() / wanted.norm()) < 0.2
    assert not torch.equal(out, wanted)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), ((2, 3), (2, 1), 0, 1), (3, 2, "valid", 1), (3, 1, "same", 2), (1, 1, 0, 1)],
)
def test_convolutions_are_products_with_their_two_dimensional_view(size, stride, padding, dilation):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 9, size, stride, padding, dilation)
    x = torch.randn(2, 4, 11, 10)
    plain = nn.Sequential(conv)
    model = Model({"0.weight": conv.weight.detach().reshape(9, -1)})
    conv.weight.data = (
        RoundToNearest(bits=4)
        .decode(RoundToNearest(bits=4).encode(model))
        .state["0.weight"]
        .reshape(conv.weight.shape)
    )
    wanted = plain(x)
    again = nn.Sequential(nn.Conv2d(4, 9, size, stride, padding, dilation))
    again[0].weight.data, again[0].bias.data = (
        model.state["0.weight"].reshape(conv.weight.shape),
        conv.bias.data,
    )
    torch.testing.assert_close(quantize_(again, RoundToNearest(bits=4))(x), wanted, rtol=1e-3, atol=1e-3)


def test_what_cannot_stay_packed_gets_the_decoded_numbers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 36, 3))
    before = net[0].weight.detach().clone()
    quantize_(net, RoundToNearest(bits=4))
    assert type(net[0]) is nn.Conv2d and 0 < float((net[0].weight.detach() - before).abs().max()) < 0.1


def test_subclasses_are_rounded_too_and_keep_their_own_forward():
    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    torch.manual_seed(0)
    net = nn.Sequential(Padded(4, 8, 3), nn.Flatten(), nn.Linear(8 * 25, 3))
    x, before = torch.randn(2, 4, 6, 6), net[0].weight.detach().clone()
    wanted = net(x)
    quantize_(net, RoundToNearest(bits=6))
    assert type(net[0]) is Padded and not torch.equal(net[0].weight, before)
    assert 0 < float((net(x) - wanted).norm() / wanted.norm()) < 0.1


def test_inputs_of_a_module_are_measured_and_make_its_errors_smaller():
    """Where inputs go together, errors that know of it cost the outputs less at the same bytes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 24, 3, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(24, 48, 1), nn.ReLU(), nn.Conv2d(48, 32, 3),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    data = [torch.randn(64, 2, 16, 16).cumsum(-1) for _ in range(4)]
    moments = second_moments(net, data)
    seen = net[0](data[0]).relu().permute(0, 2, 3, 1).reshape(-1, 24)
    truth = second_moments(nn.Sequential(nn.Linear(24, 1)), [seen])["0.weight"]
    torch.testing.assert_close(
        second_moments(net, data[:1])["2.weight"], truth, rtol=0.3, atol=0.3 * float(truth.max())
    )
    assert [len(m) for m in moments.values()] == [9, 24, 432, 128]
    held, errors = torch.randn(8, 2, 16, 16).cumsum(-1), []
    with torch.no_grad():
        wanted = net(held)
        for batches in (data, None):
            small = quantize_(copy.deepcopy(net), MixLLM(), "12%", data=batches)
            errors.append(float((small(held) - wanted).norm() / wanted.norm()))
    assert errors[0] < 0.8 * errors[1]
    with pytest.raises(BadInput, match="batches"):
        quantize_(net, MixLLM(), "12%", data=[])


def test_shared_weights_stay_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.table(ids))

    net = quantize_(Tied(), "weights.rtn")
    assert isinstance(net.table, PackedEmbedding) and net.head.held is net.table.held
    assert net(torch.tensor([1, 2])).shape == (2, 50)


def test_budgets_are_of_the_matrices():
    net = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    with pytest.raises(BudgetError):
        quantize_(net, "weights.rtn", "3%")
    quantize_(net, "weights.rtn", "20%")
    assert sum(m.held.nbytes for m in net) <= 0.2 * 2 * 256 * 256 * 4 * 1.1


@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 17, 70])
@pytest.mark.parametrize("level", ["low", "zero", "middle", "table"])
def test_matrices_multiply_any_number_of_tokens(tokens, level):
    for rows, columns, group, bits in ((37, 63, 0, 4), (5, 200, 64, 3), (50, 96, 32, 8)):
        coded, truth = draw(rows, columns, bits, level, group)
        mixed = Coded.mixed([(np.arange(rows)[::-1].copy(), coded)])
        x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
        out = CodedMatrix(mixed).multiply(x).numpy()
        wanted = (x.double().numpy() @ truth.T)[:, ::-1]
        np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
