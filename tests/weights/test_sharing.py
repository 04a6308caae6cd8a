"""Weights read from one array: places, signs and loads, gradients, exactness, memory."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from holdall.errors import BadInput
from holdall.memory import release
from holdall.meter import Meter, resident_bytes
from holdall.parts.losses import default_loss
from holdall.weights import sharing_kernels as kernels
from holdall.weights.sharing import NAME, in_weight_space, plain, share, shareable, sharing_of
from holdall.weights.sharing_map import KINDS, Map, Segment, naive_places, splitmix64
from holdall.weights.training import digits

SIZES = ((1000, 5003, 16), (7, 50, 16), (1, 9, 4), (1003, 1003, 64), (97, 1000, 1), (63, 64, 3))
NONE = np.zeros(0, np.float32)


class Mixed(nn.Module):
    """Embedding (padded), convolution, norm, attention, a linear, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 8, padding_idx=0)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.look = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Linear(8, 8)

    def forward(self, ids):
        h = self.norm(self.conv(self.table(ids).transpose(1, 2))).transpose(1, 2)
        h = h + self.look(h, h, h, need_weights=False)[0]
        return self.mix(h) @ self.table.weight.T


def mixed():
    torch.manual_seed(0)
    return Mixed(), torch.randint(0, 30, (4, 11), generator=torch.Generator().manual_seed(1))


def pictures():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def count(module):
    return sum(t.numel() for t in shareable(module, False).values())


def places(kind, params, n, chunk, seed=3):
    segment = Segment("w", (n,), 0, 0.5, 0, params)
    return (
        Map(kind, params, chunk, seed),
        segment,
        *naive_places(Map(kind, params, chunk, seed), torch.arange(n), segment),
    )


def run(module, optimizer, steps, data=None):
    """Loss after loss."""
    data, told = data or digits(64)[0], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = default_loss(module, data[step % len(data)])
        loss.backward()
        optimizer.step()
        told.append(float(loss.detach()))
    return told


def test_hashes_are_the_same_everywhere():
    """splitmix64's published outputs for seed 0, and places that files of today rely on."""
    step = 0x9E3779B97F4A7C15
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [splitmix64(i * step % 2**64) for i in range(4)] == wanted
    golden = {
        kind: (index[::97].tolist(), (sign[::97] > 0).int().tolist())
        for kind in KINDS
        for _, _, index, sign in [places(kind, 100, 1000, 8)]
    }
    assert golden == GOLDEN


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("params", "n", "chunk"), SIZES)
def test_kernels_are_the_slow_truth(kind, params, n, chunk):
    rule, segment, index, sign = places(kind, params, n, chunk)
    at, rng = kernels.spot(rule, segment), np.random.default_rng(0)
    psi, given, gamma = (rng.normal(size=k).astype(np.float32) for k in (params, n, params))
    for first, last in ((0, n), (n // 3, n), (n // 2, n // 2 + 5)):
        j = slice(first, last)
        out = np.empty(last - first, np.float32)
        kernels.gather(at, psi, np.float32(0.5), first, out)
        assert np.array_equal(out, 0.5 * sign[j].numpy() * psi[index[j]])
        for scaled in (NONE, gamma):
            got = np.zeros(params, np.float32)
            kernels.scatter(at, got, scaled, np.float32(0.5), first, given[j])
            terms = 0.5 * sign[j].numpy() * given[j] * (scaled[index[j]] if len(scaled) else 1)
            wanted = np.bincount(index[j], terms, params)
            assert np.allclose(got, wanted, atol=1e-4)
    loads = np.zeros(params)
    kernels.tally(at, loads, 1.0, 0, n)
    assert np.array_equal(loads, np.bincount(index, minlength=params))


@pytest.mark.parametrize("kind", ["permute", "shift"])
@pytest.mark.parametrize(("params", "n", "chunk"), [*SIZES, (4096, 4096, 64), (333, 33333, 10)])
def test_loads_are_floor_or_ceiling(kind, params, n, chunk):
    """And within a slice nothing meets: a bijection."""
    _, _, index, _ = places(kind, params, n, chunk)
    loads = torch.bincount(index, minlength=params)
    assert int(loads.min()) == n // params and int(loads.max()) == -(-n // params)
    for first in range(0, n, params):
        assert len(index[first : first + params].unique()) == len(index[first : first + params])


def test_other_maps_crowd_even_with_room_for_all():
    for kind in ("roast", "hashed", "local"):
        _, _, index, _ = places(kind, 8192, 8192, 16)
        loads = torch.bincount(index, minlength=8192)
        assert float((loads == 0).float().mean()) > 0.3, kind


@pytest.mark.parametrize("map", ["permute", "shift"])
def test_as_many_parameters_as_weights_is_the_module_itself(map):
    """Forward, 200 steps of SGD and the weights at the end; the bar is 1e-5, equal bits are what is there."""
    given = pictures()
    shared = share(given, count(given), seed=5, map=map)
    x = digits(64)[1][0][0]
    given.eval(), shared.eval()
    assert torch.equal(given(x), shared(x))
    wide = nn.Linear(1500, 10)  # so long that products are summed in parts
    many = torch.randn(64, 1500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(wide(many), share(wide, 15000, map=map)(many))
    given.train(), shared.train()
    curves = [run(m, torch.optim.SGD(m.parameters(), 0.05), 200, digits(16)[0]) for m in (given, shared)]
    assert curves[0] == curves[1] and curves[0][-1] < 0.3 * curves[0][0]
    for a, b in zip(given.state_dict().values(), plain(shared).state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_adam_steps_in_weight_space():
    """AdamW with decay is the plain one at m = n; with fewer parameters sigma does not matter."""
    given = pictures()
    shared = share(given, count(given), seed=5)
    curves = []
    for m in (given, shared):
        optimizer = torch.optim.AdamW(m.parameters(), 3e-3, weight_decay=0.1)
        curves.append(run(m, in_weight_space(optimizer, m) if m is shared else optimizer, 60))
    assert np.allclose(*curves, atol=1e-5)
    small = [share(pictures(), 500, seed=5, sigma=s) for s in (0.01, 10.0)]
    a, b = (run(m, in_weight_space(torch.optim.AdamW(m.parameters(), 3e-3), m), 30) for m in small)
    assert np.allclose(a, b, atol=1e-2)
    raw = share(pictures(), 500, seed=5, sigma=10.0)
    assert not np.allclose(a, run(raw, torch.optim.AdamW(raw.parameters(), 3e-3), 30), atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", ["mean", "count", "none"])
def test_gradients_are_those_of_indexing(kind, scaling):
    """Against autograd through psi[index], times Gamma, over every sort of layer at once."""
    module, ids = mixed()
    shared = share(module, 150, seed=2, map=kind, chunk=8, scaling=scaling, sigma=0.3)
    sharing = sharing_of(shared)
    psi = sharing.psi.detach().clone().requires_grad_()
    twin, squares, loads = copy.deepcopy(module), torch.zeros(150), torch.zeros(150)
    wanted = {}
    for name, s in sharing.segments.items():
        index, sign = naive_places(sharing.map, torch.arange(s.start, s.start + s.count), s)
        wanted[name] = (s.scale * sign * psi[index]).view(s.shape)
        squares.index_add_(0, index, torch.full((s.count,), s.scale**2))
        loads.index_add_(0, index, torch.ones(s.count))
    blank = torch.ones(30, 1)
    blank[0] = 0  # the padded row stays zero
    wanted["table.weight"] = wanted["table.weight"] * blank
    shown = torch.func.functional_call(twin, wanted, (ids,))
    assert torch.allclose(shown, shared(ids), atol=1e-5)
    (shown**2).mean().backward()
    (shared(ids) ** 2).mean().backward()
    gamma = {"mean": 1 / squares, "count": loads / squares, "none": torch.ones(150)}[scaling]
    gamma[loads == 0] = 0
    far = (sharing.psi.grad - gamma * psi.grad).abs().max() / (gamma * psi.grad).abs().max()
    assert float(far) < 1e-4 and float(psi.grad.abs().max()) > 0
    for name, p in twin.named_parameters():
        if name not in wanted:
            assert torch.allclose(p.grad, shared.get_parameter(name).grad, atol=1e-5), name


def test_gamma_comes_before_momentum():
    """What the optimiser sees, and so its buffers, is scaled: with momentum too the weights do not know sigma."""
    ends = []
    for sigma in (0.02, 1.0, 30.0):
        shared = share(pictures(), 400, seed=5, sigma=sigma)
        optimizer = torch.optim.SGD(shared.parameters(), 0.02, momentum=0.9)
        run(shared, optimizer, 1)
        psi = sharing_of(shared).psi
        assert torch.equal(optimizer.state[psi]["momentum_buffer"], psi.grad)
        run(shared, optimizer, 11)
        ends.append(plain(shared)[0].weight)
    assert torch.allclose(ends[0], ends[1], atol=1e-4) and torch.allclose(ends[2], ends[1], atol=1e-4)


def test_without_scaling_a_small_sigma_diverges_and_a_large_one_stands_still():
    def last(sigma, scaling):
        shared = share(pictures(), 1000, seed=5, sigma=sigma, scaling=scaling)
        return float(np.mean(run(shared, torch.optim.SGD(shared.parameters(), 0.2, momentum=0.9), 60)[-5:]))

    scaled = [last(s, "mean") for s in (1e-3, 1e-1, 1e1)]
    assert max(scaled) < 1 and max(scaled) - min(scaled) < 0.05
    assert not last(1e-3, "none") < 2.2 and last(1e1, "none") > 2 * max(scaled)


def test_norms_and_biases_stay_their_own():
    module = pictures()
    names = {n for n, _ in share(module, 300).named_parameters()}
    own = {"1.weight", "1.bias"}
    assert names == {NAME, *own, "0.bias", "3.bias", "6.bias", "8.bias"}
    assert {n for n, _ in share(module, 300, biases=True).named_parameters()} == {NAME, *own}
    wide = nn.Sequential(nn.LayerNorm((4, 4)), nn.Flatten(), nn.Linear(16, 2))
    assert set(shareable(wide, True)) == {"2.weight", "2.bias"}
    for biases in (False, True):
        kept = share(module, 100, keep=("8.weight",), biases=biases)
        assert torch.equal(kept.get_parameter("8.weight"), module[8].weight)
        own = dict(kept.named_parameters())
        assert "0.weight" not in own and ("8.bias" in own) != biases
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(kept.eval()(x), plain(kept)(x), atol=1e-5)


def test_a_shared_module_is_a_module():
    """Copies stand alone, states load, ties stay tied, `plain` knows nothing of sharing, the given one is as it was."""
    module, ids = mixed()
    before = copy.deepcopy(module.state_dict())
    shared = share(module, 120, seed=1).eval()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), module.state_dict().values(), strict=True))
    other = copy.deepcopy(shared)
    back = plain(shared)
    assert type(back.mix) is nn.Linear and torch.allclose(back(ids), shared(ids), atol=1e-6)
    assert {n for n, _ in back.named_parameters()} == {n for n, _ in module.named_parameters()}
    said = shared(ids)
    (other.train()(ids) ** 2).mean().backward()
    assert other.shared_weights.grad is not None and shared.shared_weights.grad is None
    with torch.no_grad():
        other.shared_weights.add_(1)
    assert torch.equal(said, shared(ids)) and not torch.allclose(said, other.eval()(ids))
    other.load_state_dict(shared.state_dict())
    assert torch.equal(said, other(ids))
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    again = plain(share(tied, 36))
    assert (
        again[0].weight is again[1].weight
        and count(tied) == 36
        and torch.equal(again[1].weight, tied[0].weight)
    )


def test_other_types_are_read_without_kernels():
    module, ids = mixed()
    shared = share(module, 150, seed=2)
    slow = copy.deepcopy(shared).double()
    assert torch.allclose(shared(ids).double(), slow(ids), atol=1e-5)
    (shared(ids) ** 2).mean().backward()
    (slow(ids) ** 2).mean().backward()
    assert torch.allclose(shared.shared_weights.grad.double(), slow.shared_weights.grad, rtol=1e-3, atol=1e-5)
    narrow = copy.deepcopy(shared).bfloat16()
    narrow.zero_grad()
    (narrow(ids) ** 2).mean().backward()
    told, wanted = narrow.shared_weights.grad, slow.shared_weights.grad
    assert told.dtype == torch.bfloat16
    assert float(torch.cosine_similarity(told.double(), wanted, dim=0)) > 0.99


def test_tiles_are_all_that_exists_of_a_large_layer(monkeypatch):
    """64 MB of weights in a hundredth: a step holds some tiles; nothing of the layer's length, no index at all."""
    with torch.no_grad():
        shared = share(nn.Sequential(nn.Embedding(4096, 2048), nn.Linear(2048, 4096, bias=False)), 1 << 17)
    ids = torch.arange(8)
    shared(ids).sum().backward()
    with Meter() as meter:
        shared(ids).square().mean().backward()
    assert meter.peak_bytes < 12 << 20
    monkeypatch.setattr("holdall.weights.sharing_modules.TILE", 1 << 30)
    with Meter() as meter:
        shared(ids).square().mean().backward()
    assert meter.peak_bytes > 30 << 20  # so the measure sees what is not in tiles


def test_weights_of_convolutions_are_not_kept_for_the_backward_pass():
    deep = nn.Sequential(*(nn.Conv2d(256, 256, 3, padding=1) for _ in range(12)))  # 2.4 MB each, 28 MB in all
    shared, x = share(deep, 10_000), torch.zeros(1, 256, 2, 2)
    shared(x).sum().backward()
    release()
    before = resident_bytes()
    held = shared(x)
    release()
    assert resident_bytes() - before < 4 << 20
    with torch.no_grad():
        shared.shared_weights.mul_(2)
    with pytest.raises(RuntimeError, match="changed between"):
        held.sum().backward()
    linear = share(nn.Linear(4, 4), 10)
    held = linear(torch.ones(2, 4, requires_grad=True))
    with torch.no_grad():
        linear.shared_weights.mul_(2)
    with pytest.raises(RuntimeError, match="changed between"):
        held.sum().backward()


def test_a_row_of_padding_learns_nothing():
    """Where it is not zero, too."""
    table = nn.Embedding(5, 4, padding_idx=1)
    table.weight.data.fill_(1)
    shared = share(table, 20)
    shared(torch.tensor([1, 1])).sum().backward()
    assert not shared.shared_weights.grad.any()
    shared(torch.tensor([0, 1])).sum().backward()
    assert int((shared.shared_weights.grad != 0).sum()) == 4
    tied = nn.ModuleDict({"padded": nn.Embedding(5, 4, padding_idx=1), "same": nn.Embedding(5, 4)})
    tied["same"].weight = tied["padded"].weight
    both = share(tied, 20)
    both["same"](torch.tensor([1])).sum().backward()
    assert not both["same"](torch.tensor([1])).any() and not both.shared_weights.grad.any()


def test_the_optimisers_state_shrinks():
    module = pictures()
    shared = share(module, count(module) // 50)
    state = []
    for m in (module, shared):
        optimizer = torch.optim.AdamW(m.parameters())
        run(m, optimizer, 1)
        state.append(sum(v.nbytes for s in optimizer.state.values() for v in s.values()))
    own = sum(p.numel() for n, p in shared.named_parameters() if n != NAME)
    assert state[1] - 8 * own - 100 < state[0] / 40


def test_what_cannot_be_shared_is_named():
    for bad in (
        lambda: share(nn.ReLU(), 1), lambda: share(nn.Linear(2, 2), 5), lambda: share(nn.Linear(2, 2), 0),
        lambda: share(nn.Linear(2, 2), 2, map="x"), lambda: share(nn.Linear(2, 2), 2, sigma=0.0),
        lambda: share(nn.Embedding(4, 4, max_norm=1.0), 2), lambda: share(share(nn.Linear(2, 2), 2), 1),
        lambda: share(nn.LSTM(2, 2), 2), lambda: plain(nn.Linear(2, 2)) and sharing_of(nn.Linear(2, 2)),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            bad()
    shared = share(nn.Linear(2, 2), 2)
    optimizer = in_weight_space(torch.optim.SGD(shared.parameters(), 0.1), shared)
    with pytest.raises(BadInput, match="closure"):
        optimizer.step(lambda: 0.0)
    with pytest.raises(IndexError, match="rows"):
        share(nn.Embedding(4, 4), 3)(torch.tensor([4]))


GOLDEN = {
    "permute": ([72, 97, 94, 27, 80, 69, 26, 63, 4, 65, 30], [1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0]),
    "shift": ([33, 30, 81, 0, 72, 81, 89, 21, 29, 16, 26], [1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0]),
    "roast": ([33, 72, 41, 45, 32, 94, 86, 73, 96, 49, 85], [1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0]),
    "hashed": ([33, 96, 91, 81, 67, 4, 5, 85, 62, 92, 22], [1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1]),
    "local": ([33, 96, 91, 81, 67, 4, 5, 85, 62, 92, 22], [1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1]),
}
