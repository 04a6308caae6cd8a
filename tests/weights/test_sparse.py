"""weights.sparse: what pruning leaves, when weights may come back, and what is stored of it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.parts.losses import default_loss
from holdall.weights import Sparse, compile_sparse, sparsify
from holdall.weights.pruning import masked, matrix, prunable, scheduled
from holdall.weights.sparse_file import slack
from holdall.weights.training import accuracy, digits, learn, outputs, parameter_bytes


def net(width=48):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    for a, b in ((16, width), (width, width), (width, 2 * width)):
        layers += [nn.Conv2d(a, a, 3, 1, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU6()]
        layers += [nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def test_the_schedule_is_cubic():
    at = [scheduled(step, 0.9, 100, 400) for step in (0, 99, 100, 200, 300, 500, 900)]
    assert at == pytest.approx([0, 0, 0, 0.9 - 0.9 * 0.75**3, 0.9 - 0.9 / 8, 0.9, 0.9])
    assert scheduled(5, 0.8, 5, 0) == 0.8


def test_a_tenth_of_the_weights_keeps_the_accuracy_of_all():
    """The card's: gradual pruning to 90 % is within 1.5 points of dense; the compiled net says the same."""
    train, held = digits()
    dense = net()
    learn(dense, train, torch.optim.Adam(dense.parameters(), 4e-3), 8)
    trained = Sparse(epochs=16).fit(net(), train)
    whole, left = accuracy(dense, held), accuracy(trained.model, held)
    assert whole > 0.95 and left >= whole - 0.015, (whole, left)
    for owner in prunable(trained.model).values():
        assert 0.895 < float((owner.weight == 0).float().mean()) < 0.905
    assert trained.report["sparsity"] == pytest.approx(0.9, abs=5e-3)
    fast, images = compile_sparse(trained.model), held[0][0]
    with torch.no_grad():
        assert torch.allclose(fast(images), trained.model(images), rtol=1e-4, atol=1e-4)


def test_depthwise_first_and_last_layers_stay_dense():
    made = net()
    sparsify(made, 0.9)
    pruned = prunable(made)
    for path, owner in made.named_modules():
        if isinstance(owner, nn.Conv2d | nn.Linear):
            zeros = float((owner.weight == 0).float().mean())
            assert zeros == pytest.approx(0.9 if path in pruned else 0, abs=5e-3), path
    assert len(pruned) == 3 and all(owner.kernel_size == (1, 1) for owner in pruned.values())


def test_pruning_depthwise_layers_too_would_hurt():
    """Why they are left dense: a tenth of them alone costs more than a tenth of everything else."""
    train, held = digits()
    made = net()
    learn(made, train, torch.optim.Adam(made.parameters(), 4e-3), 4)
    pointwise, depthwise = copy.deepcopy(made), copy.deepcopy(made)
    sparsify(pointwise, 0.5)
    for owner in depthwise.modules():
        if isinstance(owner, nn.Conv2d) and owner.groups > 1:
            matrix(owner).mul_(masked(matrix(owner).abs(), 0.5, 1))
    few = sum(m.weight.numel() for m in made.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    assert few < 0.15 * sum(p.numel() for p in made.parameters())
    assert accuracy(depthwise, held) < accuracy(pointwise, held) - 0.1


@pytest.mark.parametrize("block", [1, 2, 4])
def test_blocks_are_ranked_by_their_sums(block):
    size = torch.rand(10, 33, generator=torch.manual_seed(0))
    stays = masked(size, 0.8, block)
    whole = 10 // block * block
    groups = stays[:whole].reshape(-1, block, 33)
    assert (groups.all(1) == groups.any(1)).all()
    sums = size[:whole].reshape(-1, block, 33).sum(1)
    kept = groups[:, 0]
    assert sums[kept].min() > sums[~kept].max()
    assert int(kept.sum()) == round(0.2 * kept.numel()) and bool(stays[whole:].any()) == (whole < 10)


def test_weights_come_back_only_with_new_masks():
    made = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    weight = made[1].weight.data
    weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    pruner = sparsify(made, 0.3, start=0, steps=6, every=3)
    for _ in range(3):
        pruner.step()
    assert weight.tolist() == [[0, 2], [3, 4]]  # 1 of 4: 0.3 - 0.3 / 8 is 0.26
    weight.copy_(torch.tensor([[9.0, 0.5], [3.0, 4.0]]))  # an optimiser moves all of them
    pruner.step()
    assert weight.tolist() == [[0, 0.5], [3, 4]]
    weight[1, 0] = 0.25
    for _ in range(2):
        pruner.step()
    assert weight.tolist() == [[1, 0.5], [0, 4]]  # as it was when it went, not as the optimiser had it
    weight[1, 0] = 7.0
    for _ in range(9):
        pruner.step()  # masks are frozen from here on
    pruner.finish()
    assert weight.tolist() == [[1, 0.5], [0, 4]]


def test_your_own_loop():
    made, (train, _) = net(), digits()
    optimizer = torch.optim.SGD(made.parameters(), 0.1, momentum=0.9)
    pruner, seen = sparsify(made, 0.85, block=2, start=4, steps=12, every=4), []
    for images, targets in train[:20]:
        optimizer.zero_grad()
        default_loss(made, (images, targets)).backward()
        optimizer.step()
        pruner.step()
        seen.append(round(pruner.sparsity, 2))
    pruner.finish()
    told = [round(scheduled(4 * k, 0.85, 4, 12), 2) for k in (1, 2, 3, 4)]
    assert seen[:3] == [0, 0, 0] and [seen[i] for i in (3, 7, 11, 15)] == pytest.approx(told, abs=0.011)
    packed = Sparse(sparsity=0.85, block=2).pack(made)
    back = Sparse().load(Packed.from_bytes(packed.to_bytes()), made)
    images = train[0][0]
    with torch.no_grad():
        assert torch.allclose(back(images), made.eval()(images), atol=0.02)  # half precision


def test_what_is_stored_is_three_bytes_a_non_zero():
    made = net()
    sparsify(made, 0.9)
    packed = Sparse().pack(made)
    kept = sum(int((owner.weight != 0).sum()) for owner in prunable(made).values())
    rows = sum(len(owner.weight) for owner in prunable(made).values())
    arrays = packed.arrays
    assert (arrays["stream"].dtype, arrays["stream"].size) == (np.float16, kept + rows)
    assert (arrays["gaps"].dtype, arrays["gaps"].size) == (np.uint8, kept)
    assert (arrays["counts"].dtype, arrays["counts"].size) == (np.uint16, rows)
    assert Sparse(half=False).pack(made).arrays["stream"].dtype == np.float32
    assert packed.nbytes < 0.5 * parameter_bytes(made)
    wide = nn.Sequential(nn.Linear(4, 900), nn.Linear(900, 8), nn.Linear(8, 4))
    sparsify(wide, 0.99)
    back = Sparse().load(Sparse(half=False).pack(wide), wide)  # gaps of more than 255
    assert torch.equal(back[1].weight, wide[1].weight)


def test_places_take_at_most_a_byte_and_the_slack():
    """Wherever the non-zeros of a layer come to stand: a budget is kept before anything is trained."""
    wide = nn.Sequential(nn.Linear(4, 900), nn.Linear(900, 8), nn.Linear(8, 4))
    taken = []
    for column in (0, 899):
        wide[1].weight.data.zero_()[:, column] = 1
        taken.append(Sparse().pack(wide).arrays["gaps"].size)
    assert taken == [8, 8 + slack(wide, 1)] and slack(wide, 1) == 8 * 3 == 4 * slack(wide, 4)


def test_a_budget_empties_layers_before_anything_is_trained():
    made, (train, held) = net(64), digits()
    loose = Sparse(epochs=1, sparsity=0.5).fit(made, train[:2], "60%")
    tight = Sparse(epochs=1, sparsity=0.5).fit(made, train[:2], loose.packed.nbytes - 6000)
    assert loose.report["sparsity"] == pytest.approx(0.5, abs=5e-3) and tight.report["sparsity"] > 0.6
    assert loose.packed.nbytes - 7000 < tight.packed.nbytes <= loose.packed.nbytes - 6000
    with pytest.raises(BudgetError) as caught:
        Sparse(epochs=10**9).fit(made, train, 2000)
    assert int(caught.value.least) > 2000
    assert torch.equal(outputs(loose.model, held), outputs(Sparse().load(loose.packed, made), held))


def test_mistakes_are_named():
    with pytest.raises(BadInput, match="between first and last"):
        sparsify(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 4)))
    for wrong in ({"sparsity": 1.0}, {"block": 3}, {"every": 0}, {"start": -1}):
        with pytest.raises(BadInput):
            sparsify(net(), **wrong)
    for wrong in ({"warm": 0.6, "ramp": 0.6}, {"block": 8}, {"sparsity": 0.999}, {"epochs": 0}):
        with pytest.raises(BadInput):
            Sparse(**wrong)
    big = net()
    with torch.no_grad():
        big[6].weight[0, 0] = 1e6
        big[6].weight[1, 0] = 0.0
    with pytest.raises(BadInput, match="half"):
        Sparse().pack(big)
    with torch.no_grad():
        big[6].weight[0, 0] = np.nan
    for half in (False, True):
        with pytest.raises(BadInput, match="finite"):
            Sparse(half=half).pack(big)
    bare = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for act in (Sparse().pack, lambda m: Sparse().load(Sparse().pack(net()), m)):
        with pytest.raises(BadInput, match="between first and last"):
            act(bare)


def test_forged_files_are_refused():
    """Whose checksums are right: sections that contradict the header, the module or each other."""
    made = net()
    sparsify(made, 0.9)
    packed = Sparse().pack(made)

    def load(**changed):
        arrays = {k: v for k, v in changed.items() if k in packed.arrays}
        head = {k: v for k, v in changed.items() if k not in arrays}
        return Sparse().load(Packed({**packed.arrays, **arrays}, {**packed.meta, **head}), made)

    stream, gaps, counts = (packed.arrays[n] for n in ("stream", "gaps", "counts"))
    more = counts.copy()
    more[0] = 65535
    spoilt = (
        {"block": 2}, {"block": True}, {"block": [1]}, {"block": None}, {"half": False}, {"half": 1},
        {"counts": more}, {"counts": counts[:-1]}, {"counts": counts.astype(np.int32)}, {"counts": counts[None]},
        {"gaps": gaps[:-1]}, {"gaps": np.append(gaps, gaps[:1])}, {"gaps": np.full_like(gaps, 254)},
        {"gaps": np.full_like(gaps, 255)}, {"stream": stream[:-1]}, {"stream": np.append(stream, stream[:1])},
        {"stream": stream * np.float16(np.nan)},
    )  # fmt: skip
    for changed in spoilt:
        with pytest.raises(CorruptArtefact):
            load(**changed)
    assert torch.equal(load()[6].weight, Sparse().load(packed, made)[6].weight)
