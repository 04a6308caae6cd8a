"""weights.binary_adapters: codebook, gradients through rounding and through packed matrices, bytes, loading."""

import copy
import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from holdall.budget import Budget  # noqa: E402
from holdall.errors import BadInput, BudgetError  # noqa: E402
from holdall.packed import Packed  # noqa: E402
from holdall.weights import BinaryAdapters, RoundToNearest  # noqa: E402
from holdall.weights.adapter_linear import QLinear, codes, levels, restored  # noqa: E402
from holdall.weights.adapter_modules import adapters_of, digest  # noqa: E402
from holdall.weights.adapter_rehearsal import classes, rehearsal  # noqa: E402
from holdall.weights.packed_linear import PackedLinear  # noqa: E402
from holdall.weights.training import accuracy, fingerprint, outputs  # noqa: E402

QUICK = BinaryAdapters(epochs=2, rate=1e-2)
BOTH = pytest.mark.parametrize("placement", ["adaptformer", "lora"])


@pytest.fixture(scope="module")
def task():
    """A module that knows five digits, and batches of the other five."""
    return rehearsal()


# the codebook


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_the_medians_of_their_cells(bits):
    normal, found = NormalDist(), levels(bits)
    assert len(found) == 1 << bits and all(a < b for a, b in pairwise(found))
    ends = [0.0, *(normal.cdf((a + b) / 2) for a, b in pairwise(found)), 1.0]
    for level, low, high in zip(found, ends, ends[1:], strict=False):
        assert normal.cdf(level) == pytest.approx((low + high) / 2, abs=2e-4)
    assert [-v for v in reversed(found)] == list(found)


def test_one_bit_is_the_median_of_the_half_normal_and_not_its_mean():
    assert levels(1) == pytest.approx((-0.67449, 0.67449), abs=1e-5)
    x = np.abs(np.random.default_rng(0).standard_normal(400_000))
    absolute = {v: np.abs(x - v).mean() for v in (levels(1)[1], 0.79788, 0.62)}
    assert min(absolute, key=absolute.get) == levels(1)[1]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_rounding_is_the_papers_sum_of_signs(bits):
    values = torch.tensor(levels(bits), dtype=torch.float64)
    layer = QLinear(37, 11, bits)
    with torch.no_grad():
        w = layer.weight.double()
        plain = (w - w.mean()) / (w.std(correction=0) + 1e-5)
        ends = (values[:-1] + values[1:]) / 2
        summed = (torch.sign(plain[..., None] - ends) * (values[1:] - values[:-1]) / 2).sum(-1)
        wanted = summed * w.std(correction=0) + w.mean()
    torch.testing.assert_close(layer.effective(), wanted.float(), atol=1e-6, rtol=1e-5)
    kept = restored(*codes(layer.weight, bits), bits, (11, 37))
    torch.testing.assert_close(kept, layer.effective(), atol=1e-6, rtol=1e-5)


# gradients through the rounding


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 63)])
def test_gradients_reach_the_weights_their_mean_and_their_spread(shape):
    layer, draw = QLinear(shape[1], shape[0], 1), torch.Generator().manual_seed(1)
    back = torch.randn(shape, generator=draw, dtype=torch.float64)
    layer.double()
    layer.effective().backward(back)
    with torch.no_grad():
        w, n = layer.weight, layer.weight.numel()
        mean, spread = w.mean(), w.std(correction=0)
        plain = (w - mean) / (spread + 1e-5)
        nearest = torch.where(plain < 0, -levels(1)[1], levels(1)[1])
        by_spread = (w - mean) / (n * spread) if n > 1 else torch.zeros_like(w)
        through = back * spread / (spread + 1e-5)  # what reaches the normalised weights, over their divisor
        wanted = through - through.mean() - (through * plain).sum() * by_spread
        wanted += (back * nearest).sum() * by_spread + back.sum() / n
    if n > 1:
        torch.testing.assert_close(layer.weight.grad, wanted, atol=1e-7, rtol=1e-5)
    assert layer.weight.grad.isfinite().all() or n == 1


def test_a_constant_matrix_gives_numbers_and_up_is_not_one(task):
    layer = QLinear(8, 4, 1)
    torch.nn.init.constant_(layer.weight, 0.25)
    assert layer(torch.ones(2, 8)).isfinite().all()
    made = QUICK.attach(task[0], task[1])
    for adapter in adapters_of(made).beside:
        assert 0 < float(adapter.up.weight.detach().abs().max()) <= 2e-3
        assert float(adapter.up.effective().detach().std()) > 1e-4
    torch.nn.functional.cross_entropy(made(task[1][0][0]), task[1][0][1]).backward()
    assert all(float(a.down.weight.grad.abs().max()) > 0 for a in adapters_of(made).beside)
    floats = QUICK.but(bits=32).attach(task[0], task[1])
    assert all(float(a.up.weight.detach().abs().max()) == 0 for a in adapters_of(floats).beside)


# what adapters compute


def by_hand(module, images, adapters, placement, scale):
    """The paper's formulas, with the module's own parts."""
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(1, 3)
    x = module.patches(patches) + module.places
    for i, block in enumerate(module.blocks):
        if placement == "adaptformer":
            x = x + block.attention(block.norm1(x))
            a = adapters[i]
            more = torch.relu(x @ a.down.effective().T) @ a.up.effective().T
            x = x + block.mlp(block.norm2(x)) + scale * more
        else:
            changed = copy.deepcopy(block)
            for at, name in enumerate(("q_proj", "v_proj")):
                a = adapters[2 * i + at]
                getattr(changed.attention, name).weight.data += scale * a.up.effective() @ a.down.effective()
            x = changed(x)
    return module.norm(x.mean(1))


@BOTH
@pytest.mark.parametrize("bits", [1, 3, 32])
def test_adapters_compute_what_the_paper_says(task, placement, bits):
    recipe = BinaryAdapters(placement=placement, bits=bits, scale=0.7, width=5)
    made = recipe.attach(*task[:2])
    draw = torch.Generator().manual_seed(0)
    adapters = adapters_of(made)
    with torch.no_grad():
        for adapter in adapters.beside:
            adapter.up.weight.copy_(torch.randn(adapter.up.weight.shape, generator=draw) * 0.3)
        features = by_hand(task[0], task[2][0][0], adapters.beside, placement, 0.7)
        wanted = features @ adapters.learned_head.effective().T  # a head of the card has no bias
        assert float((wanted - made(task[2][0][0])).abs().max()) < 1e-5
        assert float((made(task[2][0][0]) - task[0](task[2][0][0])).abs().max()) > 0.1


def test_dropout_is_on_while_adapters_learn_and_off_in_what_is_loaded(task):
    made = BinaryAdapters(dropout=0.9, scale=10.0).attach(*task[:2])
    adapters, x = adapters_of(made), task[2][0][0]
    adapters.train()
    assert not made(x).equal(made(x)) and not made.blocks[0].training
    trained = BinaryAdapters(dropout=0.9, epochs=1).fit(*task[:2])
    assert not any(m.training for m in trained.model.modules())
    assert trained.model(x).equal(trained.model(x))


class Normed(torch.nn.Module):
    """A network of blocks with running statistics, which must stay as they are."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(*(self.Block() for _ in range(2)))

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5)
            self.mlp = torch.nn.Linear(6, 6)

        def forward(self, x):
            return x + self.drop(self.mlp(self.norm(x)))

    def forward(self, x):
        return self.blocks(x)


def test_norms_statistics_and_all_other_weights_stay_frozen_and_are_shared(task):
    module, data = Normed().train(), [(torch.randn(16, 6), torch.randn(16, 6))]
    before = fingerprint(module)
    made = QUICK.but(width=2).attach(module, data)
    learning = {n for n, p in made.named_parameters() if p.requires_grad}
    assert learning and all(n.startswith("holdall_adapters.") for n in learning)
    trained = QUICK.but(width=2, epochs=5).fit(module, data)
    assert fingerprint(module) == before and module.training
    assert all(p.requires_grad for p in module.parameters())
    theirs = {n: p.data_ptr() for n, p in trained.model.named_parameters()}
    assert all(theirs[n] == p.data_ptr() for n, p in module.named_parameters())
    same, after = (dict(m.named_buffers()) for m in (module, trained.model))
    assert all(same[n].equal(after[n]) for n in same)


# bytes


@BOTH
@pytest.mark.parametrize(("bits", "width"), [(1, 1), (1, 3), (2, 5), (3, 7), (4, 1), (16, 2), (32, 1)])
def test_sections_have_the_size_of_the_formula(task, placement, bits, width):
    recipe = QUICK.but(bits=bits, width=width, placement=placement, epochs=1)
    packed = recipe.fit(task[0], task[1][:1]).packed
    arrays = Packed.from_bytes(packed.to_bytes()).arrays
    each = math.ceil(32 * width * bits / 8) + (8 if bits < 16 else 0)  # D = 32
    count = 2 * 2 * (2 if placement == "lora" else 1)
    head = math.ceil(5 * 32 * bits / 8) + (8 if bits < 16 else 0)
    assert sum(a.nbytes for a in arrays.values()) == count * each + head


def test_the_papers_size_of_an_adapted_vit():
    from holdall.weights.adapter_file import matrix_bytes

    assert [round(12 * 2 * matrix_bytes(768 * h, 1) / 1000, 1) for h in (32, 1)] == [73.9, 2.5]
    assert matrix_bytes(3, 3) == 2 + 8 and matrix_bytes(3, 16) == 6


def test_full_heads_are_counted(task):
    sizes = {
        h: QUICK.but(head=h, epochs=1).fit(task[0], task[1][:1]).packed for h in ("quantised", "full", "none")
    }
    found = {h: sum(a.nbytes for a in p.arrays.values()) for h, p in sizes.items()}
    assert found["quantised"] - found["none"] == 5 * 32 // 8 + 8
    assert found["full"] - found["none"] == 5 * 32 * 4


def test_a_budget_buys_width_at_the_bits_that_are_asked_for(task):
    widths = {
        b: QUICK.but(bits=b, epochs=1).fit(task[0], task[1][:1], 2300).packed for b in (1, 2, 4, 16, 32)
    }
    found = {b: p.meta["width"] for b, p in widths.items()}
    assert all(p.nbytes <= 2300 for p in widths.values())
    assert found[1] >= 1.9 * found[2] > found[4] > found[16] > found[32] >= 1
    with pytest.raises(BudgetError) as caught:
        QUICK.but(width=30).fit(task[0], task[1][:1], 1000)
    assert (
        QUICK.but(width=30, epochs=1).fit(task[0], task[1][:1], caught.value.least).packed.meta["width"] == 30
    )


# loading


@BOTH
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 16, 32])
def test_what_is_loaded_gives_what_was_learned(task, placement, bits):
    recipe = BinaryAdapters(
        bits=bits, width=3, placement=placement, head="full" if bits == 2 else "quantised"
    )
    made = recipe.attach(*task[:2])  # a training loop of one's own
    optimiser = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.5)
    for images, targets in task[1][:6]:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(made(images), targets).backward()
        optimiser.step()
    back = BinaryAdapters().load(Packed.from_bytes(recipe.keep(made).to_bytes()), task[0])
    wanted, given = outputs(made, task[2]), outputs(back, task[2])
    tolerance = 2e-3 if bits == 16 else 1e-5
    assert float((wanted - given).abs().max() / wanted.abs().max()) <= tolerance
    assert float((wanted - outputs(task[0], task[2])).abs().max()) > 0.05


def test_another_base_is_refused(task):
    packed = QUICK.fit(task[0], task[1][:1]).packed
    other = copy.deepcopy(task[0])
    with torch.no_grad():
        other.blocks[1].mlp[0].weight[0, 0] += 1e-3
    with pytest.raises(BadInput, match="base"):
        QUICK.load(packed, other)
    with pytest.raises(BadInput, match="with adapters"):
        QUICK.attach(QUICK.load(packed, task[0]), task[1])


# on packed models


@pytest.fixture(scope="module")
def packed_corner(corner):
    """A corner of SmolLM2 at 4 bits, running packed with float32 tokens."""
    from holdall.weights import open as opened

    packed = RoundToNearest(bits=4).encode(corner)
    return opened(packed, activations=32), RoundToNearest().decode(packed).build()


def tokens(count=24):
    ids = torch.randint(0, 1024, (2, count), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


@BOTH
def test_gradients_flow_through_packed_matrices_as_through_dense_ones(packed_corner, placement, monkeypatch):
    slabs = []
    running, dense = packed_corner
    for part in running.modules():
        if isinstance(part, PackedLinear):
            kind = type(part.held)
            monkeypatch.setattr(kind, "dense", lambda _self: pytest.fail("a whole matrix was unpacked"))
            real = kind.rows
            monkeypatch.setattr(
                kind, "rows", lambda s, ids, real=real: slabs.append(len(ids)) or real(s, ids)
            )
            break
    grads = []
    for module in (running, dense):
        made = BinaryAdapters(placement=placement, width=4).attach(module, [tokens()])
        with torch.no_grad():
            for at, matrix in enumerate(adapters_of(made).matrices()):
                draw = torch.Generator().manual_seed(at)
                matrix.weight.copy_(torch.randn(matrix.weight.shape, generator=draw) * 0.2)
        made(**tokens(), use_cache=False).loss.backward()
        grads.append([m.weight.grad for m in adapters_of(made).matrices()])
    assert slabs and len(grads[0]) == (4 if placement == "adaptformer" else 8)
    for mine, wanted in zip(*grads, strict=True):
        assert float((mine - wanted).abs().max() / wanted.abs().max()) < 1e-3


def test_the_way_back_unpacks_some_rows_at_a_time(monkeypatch):
    from holdall.weights import packed_gradient
    from holdall.weights.coded_linear import CodedMatrix
    from holdall.weights.rtn import rounded

    monkeypatch.setattr(packed_gradient, "_NEAR", 7 * 64)
    monkeypatch.setattr(packed_gradient, "_LEAST", 1)
    w = np.random.default_rng(0).standard_normal((45, 63)).astype(np.float32)
    held, seen = CodedMatrix(rounded(w, 8), 32), []
    real = CodedMatrix.rows
    monkeypatch.setattr(CodedMatrix, "rows", lambda s, ids: seen.append(len(ids)) or real(s, ids))
    layer, x = PackedLinear(held, torch.ones(45)), torch.randn(2, 3, 63, requires_grad=True)
    back = torch.randn(2, 3, 45)
    (layer(x) * back).sum().backward()
    torch.testing.assert_close(x.grad, back @ torch.from_numpy(held.dense()), atol=1e-4, rtol=1e-4)
    assert len(seen) == 7 and max(seen) == 7
    assert not layer(x.detach()).requires_grad


def test_a_packed_model_learns_and_its_digest_tells_it_from_others(packed_corner):
    running, dense = packed_corner
    data = [tokens()]
    trained = BinaryAdapters(epochs=12, rate=1e-2).fit(running, data, "6kB")
    assert trained.packed.nbytes <= 6000
    assert trained.report.rows["adapted"]["loss"] < 0.9 * trained.report.rows["base"]["loss"]
    assert digest(running) == digest(copy.deepcopy(running)) != digest(dense)
    again = BinaryAdapters().load(trained.packed, running)
    torch.testing.assert_close(again(**tokens()).logits, trained.model(**tokens()).logits)
    held = {id(m.held) for m in running.modules() if isinstance(m, PackedLinear)}
    assert held == {id(m.held) for m in again.modules() if isinstance(m, PackedLinear)}  # not copied
    with pytest.raises(BadInput, match="base"):
        BinaryAdapters().load(trained.packed, dense)
    share = BinaryAdapters.allowed(running, Budget.parse("10%"))
    assert share == (sum(p.nbytes for p in running.parameters()) + _held_bytes(running)) // 10


def _held_bytes(module):
    return sum({id(m.held): m.held.nbytes for m in module.modules() if hasattr(m, "held")}.values())


# what it is for, small (benchmarks/weights_adapters.py has the whole)


def test_width_at_one_bit_beats_floats_of_the_same_bytes_and_rounding_afterwards(task):
    module, data, held = task
    recipe = BinaryAdapters(epochs=12, rate=3e-2)
    one, floats, thin = (
        recipe.but(bits=b, width=w).fit(module, data) for b, w in ((1, 32), (32, 32), (32, 1))
    )
    assert one.packed.nbytes < thin.packed.nbytes
    wide, narrow = accuracy(one.model, held), accuracy(thin.model, held)
    assert wide >= narrow + 0.02
    frame = recipe.but(bits=1, width=32).attach(module, data)  # the same tables, after the training
    for mine, learned in zip(
        adapters_of(frame).matrices(), adapters_of(floats.model).matrices(), strict=True
    ):
        mine.weight.data.copy_(learned.weight)
    assert accuracy(recipe.load(recipe.keep(frame), module), held) <= wide - 0.05


def test_the_best_scale_is_found(task):
    recipe = BinaryAdapters(epochs=2, rate=1e-2)
    best, losses = recipe.swept(*task[:2], task[2], scales=(1e-6, 3.0))
    assert best.scale == 3.0 and losses[3.0] < losses[1e-6]
    assert classes(False)[0][0][1].max() <= 4
