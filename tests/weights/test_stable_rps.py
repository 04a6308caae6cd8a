"""A network within a budget: what is stored, what comes back, and what it is worth beside a small network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.weights import StableRPS
from holdall.weights.sharing import NAME, plain, share, shareable, sharing_of
from holdall.weights.training import accuracy, digits, fingerprint, learn

GOLDEN = Path(__file__).parents[1] / "golden"


def words():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(50, 8, padding_idx=0),
        nn.Conv1d(3, 6, 3),
        nn.BatchNorm1d(6),
        nn.Flatten(),
        nn.Linear(36, 2),
    )


def net(wide=96):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(),
        nn.Linear(wide, 10),
    )  # fmt: skip


def test_the_file_is_the_array_and_a_header():
    """Four bytes a parameter (two in half precision) and the same rest, whatever the number of weights."""
    data = digits(128)[0][:1]
    for half, each in ((False, 4), (True, 2)):
        made = [
            StableRPS(epochs=1, half=half, compression=c).fit(net(), data).packed for c in (1.0, 10.0, 100.0)
        ]
        assert [p.arrays["psi"].nbytes for p in made] == [each * m for m in (16320, 1632, 163)]
        rest = [p.nbytes - p.arrays["psi"].nbytes for p in made]
        assert (
            max(rest) - min(rest) < 128 and max(rest) < 4500
        )  # a section more where the next one has to be aligned
        stored = {n for p in made for n in p.arrays}
        assert {n for n in stored if not n.startswith("kept/")} == {"psi", "scales"}


def test_what_comes_back_is_what_was_trained():
    data, held = digits(128)
    trained = StableRPS(epochs=16).fit(net(), data, "10%", seed=3)
    assert trained.report.rows["packed"]["loss"] < 0.7 * trained.report.rows["given"]["loss"]
    x = held[0][0]
    back = StableRPS().load(Packed.from_bytes(trained.packed.to_bytes()), net())
    assert torch.equal(back(x), trained.model(x)) and not back.training
    assert fingerprint(back) == fingerprint(trained.model)
    assert torch.allclose(plain(back)(x), back(x), atol=1e-5)
    assert accuracy(back, held) > 0.9
    numbers = sum(p.numel() for p in back.parameters())
    assert (
        numbers == trained.report.rows["packed"]["numbers"] < 0.1 * sum(p.numel() for p in net().parameters())
    )
    assert trained.report.rows["packed"]["state_bytes"] < 8.5 * numbers


def test_a_trained_like_serves_as_well():
    """Lambdas are in the file: they do not come from the module that is loaded into."""
    data, held = digits(128)
    trained = StableRPS(epochs=2).fit(net(), data)
    other = net()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(3)
    assert torch.equal(StableRPS().load(trained.packed, other)(held[0][0]), trained.model(held[0][0]))
    with pytest.raises(BadInput, match="same names and shapes"):
        StableRPS().load(trained.packed, net(wide=95))


def test_budgets_buy_parameters():
    data = digits(128)[0][:1]
    method, whole = StableRPS(epochs=1), sum(p.nbytes for p in net().parameters())
    for budget in (8_000, 16_001, "50%"):
        packed = method.fit(net(), data, budget).packed
        allowed = budget if isinstance(budget, int) else whole // 2
        assert allowed - 16 <= packed.nbytes <= allowed
    full = method.fit(net(), data, 10**6)
    total = sum(t.numel() for t in shareable(net(), False).values())
    assert full.packed.arrays["psi"].size == total == sharing_of(full.model).map.params
    twice = method.but(half=True).fit(net(), data, 8_000).packed.arrays["psi"].size
    assert twice > 1.9 * method.fit(net(), data, 8_000).packed.arrays["psi"].size
    with pytest.raises(BudgetError) as fault:
        method.fit(net(), data, 500)
    assert method.fit(net(), data, fault.value.least).packed.nbytes <= fault.value.least
    local = StableRPS(epochs=1, map="local").fit(net(), data, fault.value.least + 40)
    assert local.packed.arrays["psi"].size >= 3


def test_embeddings_and_padding_come_back():
    table, ids = words(), torch.randint(0, 50, (64, 3), generator=torch.Generator().manual_seed(1))
    trained = StableRPS(epochs=4, compression=4.0).fit(table, [(ids, (ids[:, 0] > 24).long())])
    back = StableRPS().load(Packed.from_bytes(trained.packed.to_bytes()), table)
    assert torch.equal(back(ids), trained.model(ids))
    assert not bool(back[0](torch.tensor([0])).any()) and not bool(plain(back)[0].weight[0].any())
    assert bool(plain(back)[0].weight[1:].any(1).all())


@pytest.mark.parametrize("name", ["shift", "permute-half"])
def test_files_of_version_one_give_the_recorded_outputs(name):
    """Another hash, another order of tensors or of what is kept would give other numbers."""
    told = np.load(GOLDEN / f"weights-stable_rps-{name}-v1.npz")
    with Packed.open(str(GOLDEN / f"weights-stable_rps-{name}-v1.hold")) as packed:
        module = StableRPS().load(packed, words())
    with torch.no_grad():
        np.testing.assert_allclose(
            module(torch.from_numpy(told["ids"])).numpy(), told["y"], rtol=1e-4, atol=1e-5
        )


def test_a_language_model_with_tied_embeddings():
    """Batches of named arguments; with as many parameters as weights the logits are the same bits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(
        LlamaConfig(
            **size, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0
        )
    ).eval()
    ids = torch.randint(1, 100, (4, 16), generator=torch.Generator().manual_seed(1))
    total = sum(t.numel() for t in shareable(model, False).values())
    with torch.no_grad():
        assert torch.equal(share(model, total)(ids).logits, model(ids).logits)
    trained = StableRPS(epochs=8, compression=4.0).fit(model, [{"input_ids": ids, "labels": ids}] * 8)
    assert trained.report.rows["packed"]["loss"] < 0.9 * trained.report.rows["given"]["loss"]
    whole = plain(trained.model)
    assert whole.lm_head.weight is whole.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, trained.model(ids).logits, atol=1e-5)


def test_at_a_fortieth_it_beats_pruning_and_a_small_network():
    """At equal stored numbers; random pruning needs no indices, since a seed tells them."""
    data, held = digits(128)
    total = sum(t.numel() for t in shareable(net(), False).values())
    m, found = total // 40, {"shared": [], "pruned": [], "narrow": []}
    for seed in range(2):
        made = StableRPS(epochs=16, compression=40.0).fit(net(), data, seed=seed)
        found["shared"].append(accuracy(made.model, held))
        sparse, draw = net(), torch.Generator().manual_seed(seed)
        masks = {
            n: torch.rand(p.shape, generator=draw) < m / total for n, p in shareable(sparse, False).items()
        }
        for n, p in shareable(sparse, False).items():
            p.data *= masks[n]
            p.register_hook(lambda g, mask=masks[n]: g * mask)
        torch.manual_seed(seed)
        narrow = net(wide=6)
        assert sum(t.numel() for t in shareable(narrow, False).values()) >= m
        for name, module in (("pruned", sparse), ("narrow", narrow)):
            learn(module, data, torch.optim.AdamW(module.parameters(), 3e-3, weight_decay=0.0), 16)
            found[name].append(accuracy(module, held))
    mean = {name: float(np.mean(v)) for name, v in found.items()}
    assert mean["shared"] > 0.9 and mean["shared"] > max(mean["pruned"], mean["narrow"]) + 0.03, mean


def test_a_loop_of_ones_own():
    """What the docstring promises: share, train, and one more parameter in the state dict than is unshared."""
    shared = share(net(), params=400, seed=1)
    optimizer = torch.optim.SGD(shared.parameters(), 0.1, momentum=0.9)
    learn(shared, digits(64)[0], optimizer, 15)
    assert accuracy(shared, digits(64)[1]) > 0.8
    assert shared.state_dict()[NAME].shape == (400,)
    assert not {"1.weight", "4.weight", "6.weight"} & set(shared.state_dict())


def test_forged_headers_are_refused():
    packed = StableRPS(epochs=1).fit(net(), digits(128)[0][:1]).packed
    spoilt = (
        {"map": "x"}, {"chunk": 0}, {"seed": None}, {"seed": 1e9}, {"half": True},
        {"blank": {"1.weight": 96}}, {"blank": {"1.weight": True}}, {"blank": []},
    )  # fmt: skip
    for change in spoilt:
        with pytest.raises(CorruptArtefact):
            StableRPS().load(Packed(packed.arrays, {**packed.meta, **change}), net())
    for change in ({"biases": True}, {"shapes": 3}):  # of another module, for all that the file says
        with pytest.raises(BadInput, match="same names and shapes"):
            StableRPS().load(Packed(packed.arrays, {**packed.meta, **change}), net())
    ones = np.ones(20_000, np.float32)
    wrong = (
        ({}, "psi", np.full(5, np.nan, np.float32)), ({}, "psi", ones[:0]), ({}, "psi", ones),
        ({"map": "local"}, "psi", ones[:2]), ({}, "scales", 0 * ones[:3]), ({}, "scales", ones[:2]),
    )  # fmt: skip
    for change, name, array in wrong:
        with pytest.raises(CorruptArtefact):
            StableRPS().load(Packed({**packed.arrays, name: array}, {**packed.meta, **change}), net())
    biased = StableRPS(epochs=1, biases=True).fit(net(), digits(128)[0][:1]).packed
    with pytest.raises(CorruptArtefact, match="blank"):
        StableRPS().load(Packed(biased.arrays, {**biased.meta, "blank": {"1.bias": 0}}), net())


def test_training_that_diverges_is_named():
    wild = StableRPS(optimiser="sgd", rate=0.5, scaling="none", sigma=1e-4)
    with pytest.raises(BadInput, match="smaller rate"):
        wild.fit(net(), digits(64)[0])
