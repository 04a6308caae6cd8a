"""SGD-SaI: ratios as the card has them, the identity with torch's SGD, and states that come back."""

import math
from pydoc_data.topics import topics

import pytest
import small_gpt
import torch

from holdall import BadInput
from holdall.meter import Meter
from holdall.training.sgd_sai import SGDSaI
from holdall.training.sgd_states import advance, gsnr, naive_advance, naive_sums, sums

TEXT = "\n".join(topics[name] for name in sorted(topics))


def gradients(seed, model=None):
    torch.manual_seed(0)
    model = model or small_gpt.GPT()
    for ids, wanted in small_gpt.windows(TEXT, 1, 4, 48, seed):
        model.zero_grad()
        model(ids, wanted).backward()
    return model


def ratios(optimizer):
    return torch.cat([optimizer.state[p]["ratio"] for g in optimizer.param_groups for p in g["params"]])


def parameter(values):
    p = torch.nn.Parameter(torch.ones_like(values))
    p.grad = values.clone()
    return p


def test_ratios_are_norms_over_deviations_by_the_largest():
    model = gradients(0)
    optimizer = SGDSaI(model.parameters())
    optimizer.step()
    raw = torch.stack([p.grad.norm() / (p.grad.std() + 1e-8) for p in model.parameters()])
    assert ratios(optimizer).allclose(raw / raw.max(), rtol=1e-5)
    closed = []
    for p in model.parameters():
        n, g = p.numel(), p.grad.double()
        closed.append(math.sqrt((n - 1) / (1 - n * g.mean() ** 2 / g.square().sum())))
    assert ratios(optimizer).allclose((torch.tensor(closed) / max(closed)).float(), rtol=1e-4)
    for row, p, r in zip(optimizer.report(), model.parameters(), ratios(optimizer), strict=True):
        assert row["ratio"] == pytest.approx(row["size"] * row["sign"]) and row["ratio"] == r
        assert row["size"] == pytest.approx(math.sqrt(p.numel() / (256 * 48)))


def test_ratios_hardly_depend_on_the_batch_and_never_change():
    first, second = (SGDSaI(gradients(seed).parameters()) for seed in (1, 2))
    first.step(), second.step()
    a, b = ratios(first), ratios(second)
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.95 and not a.equal(b)
    for p in first.param_groups[0]["params"]:
        p.grad = p.grad * torch.randn_like(p) * 5
    first.step()
    assert ratios(first).equal(a)


@pytest.mark.parametrize("maximize", [False, True])
def test_with_ratios_of_one_it_is_torchs_sgd(maximize):
    made = torch.Generator().manual_seed(0)
    start = torch.randn(7, 37, generator=made)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = SGDSaI([ours], lr=0.1, momentum=0.9, weight_decay=0.01, maximize=maximize)
    plain = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, dampening=0.9, maximize=maximize)
    for _ in range(5):
        ours.grad = torch.randn(7, 37, generator=made)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        assert optimizer.state[ours]["ratio"] == 1
        with torch.no_grad():
            theirs.mul_(1 - 0.1 * 0.01)
        plain.step()
        assert (ours - theirs).abs().max() < 5e-7
        assert (
            optimizer.state[ours]["momentum_buffer"]
            .abs()
            .allclose(plain.state[theirs]["momentum_buffer"].abs())
        )


def test_state_is_half_of_adamws():
    model = gradients(0, small_gpt.GPT(d=96))
    held = []
    for make in (SGDSaI, torch.optim.AdamW):
        optimizer = make(model.parameters())
        optimizer.step()
        held.append(sum(t.nbytes for s in optimizer.state.values() for t in s.values()))
    assert 0.5 <= held[0] / held[1] < 0.5 * 1.001


def test_shards_give_the_ratios_of_whole_tensors():
    made = torch.Generator().manual_seed(0)
    g = torch.randn(12, 33, generator=made) + 0.4
    whole = gsnr(sums(g), eps=0.0)
    assert whole.item() == pytest.approx((g.double().norm() / g.double().std()).item(), rel=1e-9)
    assert gsnr(sums(g[:5]) + sums(g[5:]), eps=0.0).allclose(whole, rtol=1e-12)
    left, right = parameter(g[:5]), parameter(g[5:])
    other = parameter(torch.randn(50, generator=made))
    shared = [torch.cat([sums(g[5:]), torch.zeros(1, 3)]), torch.cat([sums(g[:5]), torch.zeros(1, 3)])]
    found = []
    for p, more in zip((left, right), shared, strict=True):
        optimizer = SGDSaI([p, other], reduce=lambda counted, more=more: counted + more)
        optimizer.step()
        found.append(ratios(optimizer))
    assert found[0].equal(found[1]) and found[0][0] == 1


def test_blocks_have_ratios_of_their_own():
    made = torch.Generator().manual_seed(0)
    g = torch.randn(6, 40, generator=made)
    g[2:4] += 3.0
    heads, rows = (SGDSaI([parameter(g)], blocks=n, lr=1.0, weight_decay=0.0) for n in (3, 0))
    heads.step(), rows.step()
    assert len(ratios(heads)) == 3 and len(ratios(rows)) == 6
    assert ratios(heads).argmax() == 1 and ratios(heads)[1] == 1
    p = heads.param_groups[0]["params"][0]
    assert (1 - p).allclose(g * ratios(heads).repeat_interleave(2)[:, None], atol=1e-6)
    with pytest.raises(BadInput, match="divides 6"):
        SGDSaI([parameter(g)], blocks=4).step()


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_kernel_is_its_truth(blocks):
    made = torch.Generator().manual_seed(0)
    for n in (3, 63, 129, 3000):
        n *= blocks
        p, g, m = (torch.randn(n, 1, generator=made) for _ in range(3))
        q, k = p.clone(), m.clone()
        rates = torch.rand(blocks, generator=made)
        advance(p, g, m, rates, 0.9, -0.1, 0.99)
        naive_advance(q, g, k, rates, 0.9, -0.1, 0.99)
        assert p.allclose(q, atol=1e-6) and m.allclose(k, atol=1e-6)
        truth = torch.zeros(blocks, 2, dtype=torch.float64)
        naive_sums(g.view(blocks, -1), truth)
        assert sums(g, blocks)[:, 1:].allclose(truth, rtol=1e-12) and sums(g.bfloat16()).isfinite().all()


def test_what_has_no_deviation_or_no_gradient_yet():
    made = torch.Generator().manual_seed(0)
    g = torch.randn(30, 30, generator=made)
    one, flat, late, twin = (
        parameter(torch.tensor([2.0])),
        parameter(torch.ones(9)),
        parameter(g * 0),
        parameter(g),
    )
    optimizer = SGDSaI([one, flat, late, twin])
    optimizer.step()
    r = ratios(optimizer)
    assert r[3] == 1 and r[2] == 0 and r[:2].allclose(torch.tensor([1.0, 3.0]) / gsnr(sums(g)).float())
    late.grad = torch.randn(30, 30, generator=made) + 5
    optimizer.step()
    assert optimizer.state[late]["ratio"] == 1, "that of a tensor of its shape"


def test_new_parameters_use_the_stored_largest_also_after_loading():
    made = torch.Generator().manual_seed(0)
    g, more = torch.randn(50, 50, generator=made), torch.randn(10, 5, generator=made)
    first = SGDSaI([parameter(g)])
    first.step()
    told = first.state_dict()
    again = SGDSaI([parameter(torch.randn(50, 50, generator=made) + 9)])  # its own ratio would be another
    again.load_state_dict(told)
    again.step()
    assert ratios(again).equal(ratios(first)) and told["param_groups"][0]["largest"] == gsnr(sums(g)).item()
    new = parameter(more)
    again.add_param_group({"params": [new]})
    again.step()
    assert again.state[new]["ratio"] == (gsnr(sums(more)) / gsnr(sums(g))).float()


def test_a_first_gradient_that_is_not_finite_is_refused():
    p = parameter(torch.tensor([1.0, torch.nan]))
    with pytest.raises(BadInput, match="first gradient"):
        SGDSaI([p]).step()
    assert p.eq(1).all()


def test_a_step_holds_no_copy_of_anything():
    p = parameter(torch.randn(2000, 3000))
    optimizer = SGDSaI([p])
    optimizer.step()
    with Meter() as m:
        optimizer.step()
    assert m.peak_bytes < 1 << 20
    fresh = SGDSaI([p])
    with Meter() as m:
        fresh.step()
    assert m.peak_bytes < p.nbytes + (8 << 20)


def test_it_trains_where_plain_momentum_does_not():
    """At the rate that suits its largest tensors; plain SGD gives all tensors that rate, and diverges or lags."""
    ends = []
    for make in (
        lambda ps: SGDSaI(ps, lr=3.0),
        lambda ps: torch.optim.SGD(ps, lr=3.0, momentum=0.9, dampening=0.9),
    ):
        torch.manual_seed(0)
        model = small_gpt.GPT()
        optimizer = make(model.parameters())
        last = []
        for ids, wanted in small_gpt.windows(TEXT, 120, 4, 48):
            loss = model(ids, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last.append(loss.item())
        ends.append(sum(last[-20:]) / 20)
    assert ends[0] < ends[1] - 0.05 or math.isnan(ends[1]), ends
