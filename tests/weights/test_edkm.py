"""eDKM: what the way back is held in, its gradients, what fine-tuning is worth, and what is stored."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from holdall.errors import BadInput, BudgetError
from holdall.packed import Packed
from holdall.weights import EDKM, Model, open, palettize_
from holdall.weights.coded_file import read
from holdall.weights.dkm import Heft, dkm, gap, naive_dkm, repaired, unique
from holdall.weights.edkm_run import Run
from holdall.weights.line_kmeans import exact, nearest, plus_plus
from holdall.weights.palettes import Palette, palettes
from holdall.weights.palettizing import coded_weights, cool_, freeze_
from holdall.weights.perplexity import mean_loss
from holdall.weights.saved_tensors import Saving
from holdall.weights.scaling import windows

QUICK = EDKM(learn="always", windows=4, window=32, steps=2)


def bits(t):
    return t.detach().contiguous().view(torch.int16)


@pytest.fixture(scope="module")
def real():
    """Half a matrix of SmolLM2 [576, 768] in bfloat16, and gradients for it."""
    w = Model.read("smollm2").state["model.layers.0.mlp.down_proj.weight"][:, :768].bfloat16().contiguous()
    return w, torch.randn(w.shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def clustered(w, k):
    values, counts, _ = unique(w.contiguous().view(torch.int16), w.dtype)
    order = values.argsort()
    return torch.from_numpy(exact(values[order].numpy(), counts[order].numpy(), k)).float()


def back(w, given, saving=None):
    """(gradient, w_hat, bytes that were held in between) of three rounds of plain DKM with 8 centroids."""
    c, leaf, storages = clustered(w, 8), w.clone().requires_grad_(), {}

    def note(t):
        storages[t.untyped_storage()._cdata] = (t.untyped_storage().nbytes(), t)
        return t.detach()

    plain = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    with plain if saving is None else saving.of(leaf):
        hat, _ = naive_dkm(leaf, c, gap(c) ** 2 / 10, 3, -1.0)
    storages.pop(leaf.untyped_storage()._cdata, None)  # the weights are there anyway
    held = sum(n for n, _ in storages.values()) if saving is None else saving.held
    hat.backward(given)
    return leaf.grad, hat.detach(), held


def test_gradients_are_plain_dkms_bit_for_bit_from_a_hundredth_of_the_bytes(real):
    grad, hat, plain = back(*real)
    assert plain > 75e6
    held = {}
    for name, how in {"marshal": {"unique": False}, "unique": {"marshal": False}, "both": {}}.items():
        saving = Saving(**how)
        mine, out, held[name] = back(*real, saving)
        assert torch.equal(bits(mine), bits(grad)) and torch.equal(bits(out), bits(hat)), name
        assert saving.held == 0  # nothing outlives the way back
    assert held["marshal"] < plain / 2  # maps once, and neither their casts nor their clamps
    assert held["unique"] < plain / 50 and held["both"] < 0.9 * held["unique"]
    w = real[0]
    values = len(unique(w.contiguous().view(torch.int16), w.dtype)[0])
    assert 2 * w.numel() < held["both"] < 2 * w.numel() + 7 * 16 * values  # one list, six tables of 8 numbers


SHARDED = """
import json, os, sys, torch, torch.distributed as dist
torch.set_num_threads(1)
from holdall.errors import BadInput
from holdall.weights.dkm import naive_dkm, dkm
from holdall.weights.saved_tensors import Saving

def learner(rank):
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=4)
    draw = torch.Generator().manual_seed(0)
    w = (torch.randn(160, 513, generator=draw) * 0.05).bfloat16()
    given, c = torch.randn(w.shape, generator=draw).bfloat16(), torch.linspace(-0.1, 0.1, 8)
    told = []
    for layer in (naive_dkm, dkm):
        grads, held = [], []
        for group in (None, dist.group.WORLD):
            leaf, saving = w.clone().requires_grad_(), Saving(group=group)
            with saving.of(leaf):
                hat, _ = layer(leaf, c, 1e-4, 3, -1.0)
            held.append(saving.held)
            hat.backward(given)
            grads.append(leaf.grad)
        assert torch.equal(grads[0].view(torch.int16), grads[1].view(torch.int16)), layer
        told.append([layer.__name__, *held])
    mine = w + (rank == 2)
    try:
        with Saving(group=dist.group.WORLD).of(mine):
            naive_dkm(mine.requires_grad_(), c, 1e-4)
    except BadInput as fault:
        told.append(["refused", str(fault)])
    open(f"{sys.argv[1]}-{rank}.json", "w").write(json.dumps(told))
    dist.destroy_process_group()

naive_dkm(torch.zeros(3).bfloat16(), torch.zeros(2), 1.0)
leaf = torch.zeros(3).bfloat16().requires_grad_()
with Saving(least=1).of(leaf):
    dkm(leaf, torch.zeros(2), 1.0)[0].sum().backward()  # compiled once for all
children = []
for rank in range(4):
    pid = os.fork()
    if pid == 0:
        learner(rank)
        os._exit(0)
    children.append(pid)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in children))
"""


def test_four_learners_hold_a_quarter_each(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path / "meet")], capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"meet-{rank}.json").read_text()) for rank in range(4)]
    for naive, fast, refused in told:
        for layer, whole, part in (naive, fast):
            assert whole >= 2 * 160 * 513 and part <= whole / 4 + 200, layer
        assert refused[0] == "refused"  # parts of different weights are not parts of one whole


def test_signs_of_zero_and_changes_in_between(real):
    w = torch.cat([real[0].reshape(-1)[:80_000], torch.tensor([0.0, -0.0]).repeat(50).bfloat16()])
    values, counts, _ = unique(w.view(torch.int16), w.dtype)
    assert int((values == 0).sum()) == 2 and int(counts[values == 0].sum()) >= 100
    for saving in (Saving(marshal=False), Saving()):
        leaf = w.clone().requires_grad_()
        with saving.of(leaf):
            rows = leaf.reshape(-1, 1) * torch.ones(4, dtype=w.dtype)
            out = rows.square()
        assert saving.held < 3 * w.numel()  # as a table
        found = bits(out.grad_fn._saved_self)
        assert torch.equal(found, bits(rows)) and int((found == -32768).sum()) >= 200
    leaf = w.clone().requires_grad_()
    with Saving().of(leaf):
        out = leaf.float().square()
    with torch.no_grad():
        leaf.add_(1)
    with pytest.raises(BadInput, match="changed between"):
        out.sum().backward()


def test_the_layers_gradient_is_the_true_one():
    """A detached would pass every test of shapes, and fail this."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(20, generator=draw, dtype=torch.double).requires_grad_()
    c = torch.tensor([-1.0, -0.2, 0.4, 1.2], dtype=torch.double)
    heft = Heft(*(np.random.default_rng(0).random(s).astype(np.float32) + 0.1 for s in (4, 5, (4, 3))), 2)
    for how in (None, heft):
        assert torch.autograd.gradcheck(lambda x, h=how: naive_dkm(x, c, 0.3, 3, -1.0, heft=h)[0], (w,))


@pytest.mark.parametrize("hard", [False, True])
def test_maps_of_different_values_alone_give_the_same(hard):
    draw, weigh = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for rows, columns, k, tau, rounds in (
        (1, 1, 2, 0.1, 3),
        (3, 63, 4, 0.01, 1),
        (300, 7, 8, 0.1, 3),
        (40, 30, 16, 0.5, 2),
    ):
        w = torch.randn(rows, columns, generator=draw).bfloat16().double()
        given = torch.randn(rows, columns, generator=draw, dtype=torch.double)
        c = torch.linspace(-2, 2, k, dtype=torch.double)
        shapes = ((rows,), (columns,), (rows, -(-columns // 5)))
        for heft in (None, Heft(*(weigh.random(s).astype(np.float32) + 0.1 for s in shapes), 5)):
            found = []
            for layer in (naive_dkm, dkm):
                leaf = w.clone().requires_grad_()
                hat, made = layer(leaf, c, tau, rounds, hard=hard, heft=heft)
                hat.backward(given)
                found.append((hat.detach(), made.detach(), leaf.grad))
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
            assert not hard or torch.isin(found[1][0], found[1][1]).all()


def test_sums_are_wide_and_tau_is_neither_hard_nor_flat(real):
    w = torch.tensor([1.0, 1.5, 2.0]).half().repeat(100_000)  # 16-bit sums of these overflow
    _, c = naive_dkm(w, torch.tensor([1.0, 2.0]), 0.01)
    assert torch.isfinite(c).all() and 1.0 < float(c[0]) < 1.4 < 1.6 < float(c[1]) < 2.0
    w, c = real[0][:100].double(), clustered(real[0][:100], 8).double()
    slopes = {}
    for share in (1e-6, 0.1, 100.0):
        hat, _ = dkm(w, c, share * gap(c) ** 2)
        near = c[torch.from_numpy(nearest(c.numpy(), w.numpy()))]
        slopes[share] = float(hat.std() / w.std()), float((hat - near).std() / w.std())
    assert slopes[1e-6][1] < 0.01 and slopes[100.0][0] < 0.2  # hard k-means; all weights at the mean
    assert slopes[0.1][0] > 0.9 and 0.01 < slopes[0.1][1] < 0.3
    assert Palette(real[0], 3).share == 0.1


def test_k_means_on_a_line_is_the_best_there_is():
    draw = np.random.default_rng(0)
    for _ in range(20):
        n = int(draw.integers(4, 11))
        k = int(draw.integers(1, min(5, n)))
        x, counts = np.sort(draw.normal(size=n) + 100), draw.integers(1, 9, n)
        best = min(
            sum(float((counts[a:b] * np.square(x[a:b] - np.average(x[a:b], weights=counts[a:b]))).sum())
                for a, b in itertools.pairwise((0, *cuts, n)))
            for cuts in itertools.combinations(range(1, n), k - 1)
        )  # fmt: skip
        errors = [float((counts * np.square(x - c[nearest(c, x)])).sum()) for c in
                  (exact(x, counts, k), plus_plus(x, counts, k, 0))]  # fmt: skip
        assert abs(errors[0] - best) < 1e-9 <= errors[1] + 1e-9
    assert exact(np.array([3.0]), np.array([5]), 4).tolist() == [3.0] * 4
    many, counts = np.sort(draw.normal(size=3000)), np.ones(3000)
    cost = [float(np.square(many - c[nearest(c, many)]).sum()) for c in
            (exact(many, counts, 8), plus_plus(many, counts, 8, 0), np.sort(draw.choice(many, 8)))]  # fmt: skip
    assert cost[0] <= cost[1] < 1.2 * cost[0] < cost[2]


def test_twins_part():
    assert repaired(torch.tensor([3.0, 0.0, 1.0, 1.0])).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert repaired(torch.tensor([0.0, 1.0, 3.0, 3.0])).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert repaired(torch.ones(4)).tolist() == [1.0] * 4


def test_fine_tuning_takes_off_most_of_what_k_means_costs(learned):
    recipe = EDKM(bits=2, table_bits=4, learn="always", steps=40, batch=4, windows=120, window=64, rate=2e-2)
    tokens = windows(learned, 16, 64, skip=7)
    before, excess = mean_loss(learned.build(), tokens), {}
    for name, how in {
        "k-means": recipe.but(learn="given"),
        "weighted": recipe.but(steps=0),
        "tuned": recipe,
    }.items():
        packed = how.encode(learned)
        excess[name] = float(np.expm1(mean_loss(how.decode(packed).build(), tokens) - before))
        assert {c.bits for c in read(packed)[1].values()} == {2, 4}
    assert min(excess["k-means"], excess["weighted"]) > 0.1
    assert excess["tuned"] < 0.5 * min(excess["k-means"], excess["weighted"])


def test_without_text_it_is_k_means_alone(corner):
    packed = EDKM().encode(corner)
    assert packed.to_bytes() == EDKM().encode(corner).to_bytes()
    for name, coded in read(packed)[1].items():
        width = 3 if name in corner.linears() else 8
        alone = Palette(corner.state[name], width, group=0).coded(corner.state[name])
        np.testing.assert_array_equal(coded.dense(), alone.dense())
    assert QUICK.but(steps=0).encode(corner).to_bytes() != packed.to_bytes()


def test_three_bits_are_three_bits(real):
    w = real[0].float()
    packed = EDKM(bits=3, group=None).encode(Model({"w": w}))
    coded = read(Packed.from_bytes(packed.to_bytes()))[1]["w"]
    (band,) = coded.bands
    fixed = coded.sections("w", coded=False)["w"].nbytes
    assert 3.0 < 8 * fixed / w.numel() < 3.002 and 8 * packed.arrays["w/0"].nbytes / w.numel() < 3.0
    assert band.table.dtype == np.float16 and len(band.table) == 8
    back = EDKM().decode(packed).state["w"]
    assert len(back.unique()) == 8
    assert torch.equal(back, torch.from_numpy(band.table[band.codes()].astype(np.float32)))
    palette = Palette(w, 3).eval()
    assert torch.equal(palette(w), back)  # what evaluation computes is what is stored
    scaled = EDKM(bits=3).encode(Model({"w": w}))
    assert 8 * scaled.arrays["w/0"].nbytes / w.numel() < 3.02
    assert float((EDKM().decode(scaled).state["w"] - w).norm()) < float((back - w).norm())


@pytest.mark.parametrize(("rows", "group"), [(0, 0), (100, 50), (64, None)])
def test_the_packed_model_runs_and_says_what_was_decoded(corner, rows, group):
    packed = QUICK.but(rows=rows, group=group, bits=3, table_bits=5).encode(corner)
    ids = torch.arange(9)[None]
    coded = read(packed)[1]
    assert all(len(c.bands) == (-(-c.shape[0] // rows) if rows else 1) for c in coded.values())
    with torch.no_grad():
        stored, opened = (
            EDKM().decode(packed).build()(input_ids=ids).logits,
            open(packed)(input_ids=ids).logits,
        )
    assert float((opened - stored).norm() / stored.norm()) < 1e-3


def test_a_budget_is_used_up_and_training_stays_within_it(corner):
    for budget, method in (
        ("3bit", EDKM()),
        ("3.5bit", QUICK),
        ("4bit", EDKM(rows=100)),
    ):
        limit = method.allowed(corner, budget)
        run = Run(method, corner, limit)
        assert 0.9 * limit < run.packed().nbytes <= limit
    with pytest.raises(BudgetError) as told:
        EDKM().encode(corner, "1bit")
    assert EDKM().encode(corner, int(told.value.least)).nbytes <= told.value.least
    tight = Run(EDKM(), corner, EDKM().encode(corner).nbytes - 20_000)
    tight.widths, tight.felt = dict.fromkeys(corner.linears(), 3) | dict.fromkeys(corner.embeddings(), 8), {}
    made = {n: tight.clustered(n, corner.state[n], b) for n, b in tight.widths.items()}
    assert tight._within(made).nbytes <= tight.limit  # should training have made it larger than planned


def test_palettes_in_a_loop_of_ones_own(real):
    torch.manual_seed(0)
    hidden, head = torch.nn.Linear(300, 240), torch.nn.Linear(240, 3)
    net = torch.nn.Sequential(torch.nn.Embedding(50, 300), hidden, torch.nn.Sequential(torch.nn.ReLU(), head))
    ids = torch.randint(50, (200,))
    wanted = ids % 3
    before = dict(net.named_parameters())
    palettize_(net, {"1.weight": 2, "2.1.weight": 3}, fast=False)
    assert {n: p.bits for n, (p, _) in palettes(net).items()} == {"1.weight": 2, "2.1.weight": 3}
    kept = {id(p) for p in net.parameters()}
    assert all(id(p) in kept for p in before.values())  # an optimiser made before still learns
    adam, losses = torch.optim.AdamW(net.parameters(), 1e-2), []
    for at in range(15):
        cool_(net, 0.1 * 0.1 ** (at / 15))
        with Saving() as saving:
            loss = torch.nn.functional.cross_entropy(net(ids), wanted)
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and 2 * 240 * 300 < saving.peak < 10 * 240 * 300 and saving.held < 1e5
    net.eval()
    with torch.no_grad():
        out, coded = net(ids), coded_weights(net)
        assert len(np.unique(coded["1.weight"].dense())) == 4
        again = freeze_(net)(ids)
    assert type(net[1]).__name__ == "PackedLinear" and net[1].held.coded.bits == 2
    torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput):
        palettize_(torch.nn.ReLU())
    with pytest.raises(BadInput):
        palettize_(torch.nn.Linear(3, 3), bits=7)


def test_shared_tables_stay_shared_and_passes_repeat(corner):
    module = palettize_(corner.build(), 3, table_bits=4).train()
    assert len(palettes(module)) == len(corner.linears()) + 1
    table = palettes(module)["model.embed_tokens.weight"][0]
    assert table.bits == 4 and module.lm_head.parametrizations.weight[0] is table
    w = corner.state["model.embed_tokens.weight"].clone()
    first, twice = table(w), table(w)
    assert torch.equal(first, twice)  # as where activations are computed again
    before = table.centroids.clone()
    w.mul_(1.1)
    table(w)
    assert not torch.equal(table.centroids, before)  # the next step begins where this one ended


def test_what_cannot_be_is_refused(corner):
    for wrong in (
        {"bits": 7},
        {"start": "x"},
        {"attention": "x"},
        {"learn": "x"},
        {"tau": 0.0},
        {"group": -1},
        {"window": 1},
    ):
        with pytest.raises(BadInput):
            EDKM(**wrong)
    broken = {n: t.clone() for n, t in corner.state.items()}
    broken[corner.linears()[3]][2, 2] = torch.nan
    with pytest.raises(BadInput, match="NaN"):
        EDKM().encode(Model(broken, corner.files))
