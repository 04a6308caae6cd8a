"""COAT's optimizer states: what the card asks, the kernel beside its truth, and what training makes of them."""

from pydoc_data.topics import topics

import pytest
import small_gpt
import torch

from holdall import BadInput
from holdall.meter import Meter
from holdall.training.coat import COATAdamW
from holdall.training.coat_states import Moments, Rule, advance, decode, encode, naive_advance

TEXT = "\n".join(topics[name] for name in sorted(topics))


def codes(m):
    return m.codes.view(torch.uint8).view(-1)


def group(octaves, n=128, seed=0):
    """Positive numbers over so many octaves, both ends included."""
    made = torch.Generator().manual_seed(seed)
    x = torch.exp2(-octaves * torch.rand(n, generator=made, dtype=torch.float64))
    x[3], x[7] = 1.0, 2.0**-octaves
    return x * 3e-5


@pytest.mark.parametrize("octaves", [1.2, 3.0, 6.0, 12.0, 30.0])
def test_codes_span_the_whole_range_of_e4m3_whatever_a_group_spans(octaves):
    x = group(octaves)
    made = encode(x, 128)
    k = (made.powers.item() + 1) / 16
    assert (
        codes(made).max() == 0x7E and 2.0**-9 <= made.codes.float().min() <= 448 / 2.0 ** (k * octaves) * 1.1
    )
    far = ((decode(made, 128, torch.float64) - x) / x).abs()
    usual = made.codes.float() >= 2.0**-6  # subnormal codes have fewer bits
    assert far[usual].max() <= 2.0**-4 / k * 1.1, "the error is divided by k"
    assert k == pytest.approx(16.615 / octaves, abs=0.07)


def test_a_stored_group_is_the_papers_scale_exponent_and_centre():
    x = group(4.0) * torch.where(torch.arange(128) % 3 == 0, -1, 1)
    made = encode(x, 128)
    most, least = x.abs().max(), x.abs().min()
    centre, k = (most * least).sqrt(), (made.powers.item() + 1) / 16
    assert k == torch.floor(torch.log2(torch.tensor(448.0 * 448 / 2)) / torch.log2(most / least) * 16) / 16
    y = x.sign() * (x.abs() / centre) ** k
    scale = y.abs().max() / 448
    q = (y / scale).float().clamp(-448, 448).to(torch.float8_e4m3fn)
    assert q.view(torch.uint8).equal(codes(made))
    theirs = q.double().sign() * (q.double().abs() * scale) ** (1 / k) * centre
    assert decode(made, 128, torch.float64).allclose(theirs, rtol=1e-6)


def test_expansion_lowers_the_error_of_moments_and_of_their_direction():
    made = torch.Generator().manual_seed(0)
    m = v = torch.zeros(128 * 200)
    scale = torch.randn(200, 1, generator=made).exp().expand(200, 128).reshape(-1)
    for _ in range(300):
        g = torch.randn(len(m), generator=made) * scale
        m, v = m.lerp(g, 0.1), v.lerp(g * g, 0.001)

    def errors(expand):
        one, two = (decode(encode(x, 128, expand), 128) for x in (m, v))
        wanted, got = m / v.sqrt(), one / two.sqrt()
        return [((a - b).square() / b.square().mean()).mean() for a, b in ((one, m), (two, v), (got, wanted))]

    plain, wide = errors(False), errors(True)
    assert plain[1] > 10 * wide[1] and plain[2] > 1.3 * wide[2], (plain, wide)


def test_zeros_stay_zeros_and_nothing_else_becomes_one():
    x = torch.zeros(512)
    x[1], x[2], x[3] = 1e17, -1e-17, 1e-20
    x[128:256] = 0.25
    x[400], x[401], x[402] = torch.nan, torch.inf, 2.0
    made = encode(x, 128)
    back = decode(made, 128)
    assert back[[0, 4, 300]].eq(0).all() and back[1:4].ne(0).all() and back[2] < 0 < back[3]
    assert back[1] == 1e17 and back[128:256].eq(0.25).all() and made.powers.tolist() == [1, 255, 15, 255]
    assert back[400:402].isnan().all() and back[402] == 2.0


def test_codes_made_again_at_the_same_exponent_are_the_same():
    made = torch.Generator().manual_seed(3)
    x = torch.randn(128 * 100, generator=made) * torch.randn(128 * 100, generator=made).exp()
    once = encode(x, 128)
    again = encode(decode(once, 128), 128)
    same = (once.powers == again.powers).repeat_interleave(128)
    assert same.float().mean() > 0.1 and codes(once)[same].equal(codes(again)[same])


@pytest.mark.parametrize("n", [1, 3, 16, 63, 128, 129, 300, 5000])
@pytest.mark.parametrize(("expand", "steady"), [(True, False), (False, False), (True, True), (False, True)])
def test_the_kernel_is_its_truth(n, expand, steady):
    made = torch.Generator().manual_seed(n)
    p = torch.randn(n, generator=made)
    q, fast = p.double(), p.clone()
    truth, quick = ([Moments.zeros(p, 64) for _ in range(2)] for _ in range(2))
    plain = torch.optim.AdamW([torch.nn.Parameter(p.clone())], lr=1e-3, weight_decay=0.1)
    for t in range(1, 6):
        g = torch.randn(n, generator=made) * torch.randn(n, generator=made).exp()
        g[::7] = 0
        rule = Rule.at(t, 1e-3, (0.9, 0.999), 1e-8, 0.1, False, steady)
        naive_advance(q, g, *truth, rule, 64, expand)
        advance(fast, g, *quick, rule, 64, expand)
        plain.param_groups[0]["params"][0].grad = g
        plain.step()
        if t == 1:
            assert fast.allclose(plain.param_groups[0]["params"][0].detach(), atol=1e-7), (
                "the first step is exact"
            )
    far = (q - fast).abs()
    assert far.max() < 5e-4 and (far > 1e-5).float().mean() < 2e-3, "ties may fall elsewhere"
    for a, b in zip(truth, quick, strict=True):
        near = (codes(a).int() - codes(b).int()).abs()
        assert (
            near.max() <= 1
            and near.float().mean() < 2e-3
            and (a.powers.int() - b.powers.int()).abs().max() <= 1
        )
        assert a.tops.allclose(b.tops, rtol=1e-5)


def test_second_moments_follow_changes_that_are_less_than_a_code():
    """A thousandth a step, where codes are several hundredths apart: by chance, right on the average."""
    made = torch.Generator().manual_seed(0)
    scale = torch.randn(128 * 32, generator=made).mul(0.7).exp()
    exact, kept = torch.zeros(128 * 32), {}
    for steady in (True, False):
        kept[steady] = [torch.zeros(128 * 32), *(Moments.zeros(scale, 128) for _ in range(2))]
    for t in range(1, 601):
        flip = scale if t < 200 else 0.3 / scale  # what was large becomes small
        g = torch.randn(len(scale), generator=made) * flip
        exact = exact * 0.999 + g * g * 0.001
        for steady, (p, m, v) in kept.items():
            advance(p, g, m, v, Rule.at(t, 0.0, (0.9, 0.999), 1e-8, 0.0, False, steady), 128, True)
    off = {steady: (decode(v, 128) / exact).log2() for steady, (_, _, v) in kept.items()}
    assert off[True].mean().abs() < 0.03 and off[True].std() < 0.3
    assert off[True].square().mean() < 0.6 * off[False].square().mean(), {k: x.std() for k, x in off.items()}


def test_tiles_threads_and_narrow_types_make_no_difference():
    made = torch.Generator().manual_seed(1)
    start, g = (torch.randn(700_003, generator=made) for _ in range(2))
    rule = Rule.at(1, 1e-3, (0.9, 0.999), 1e-8, 0.1, False, True)

    def after(kind, act, threads=1):
        torch.set_num_threads(threads)
        p, m, v = start.clone().to(kind), Moments.zeros(start, 128), Moments.zeros(start, 128)
        for _ in range(2):
            act(p, g.to(kind), m, v, rule, 128, True)
        return torch.cat([p.double(), codes(m), codes(v), m.tops, v.powers])

    threads = torch.get_num_threads()
    try:
        assert after(torch.float32, advance).equal(after(torch.float32, advance, threads=2))
    finally:
        torch.set_num_threads(threads)
    assert after(torch.float64, advance).equal(after(torch.float64, naive_advance))
    far = (after(torch.bfloat16, advance) - after(torch.bfloat16, naive_advance))[: len(start)].abs()
    assert far.max() <= 2.0**-6 and (far > 0).float().mean() < 1e-3


def test_a_step_holds_no_copy_of_anything():
    p = torch.nn.Parameter(torch.randn(2000, 3000))
    optimizer = COATAdamW([p])
    p.grad = torch.randn(2000, 3000)
    optimizer.step()
    with Meter() as m:
        optimizer.step()
    assert m.peak_bytes < 1 << 20, f"{m.peak_bytes} bytes beside {p.nbytes} of weights"


def losses(make, steps=120, seed=0):
    torch.manual_seed(seed)
    model = small_gpt.GPT()
    optimizer = make(model.parameters())
    found = []
    for ids, wanted in small_gpt.windows(TEXT, steps, 4, 48):
        loss = model(ids, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return model, optimizer, found


@pytest.fixture(scope="module")
def adamw():
    return losses(lambda ps: torch.optim.AdamW(ps, lr=3e-3))


def test_training_ends_where_adamw_ends(adamw):
    plain, (_, optimizer, coat) = adamw[2], losses(lambda ps: COATAdamW(ps, lr=3e-3))
    last = [sum(x[-20:]) / 20 for x in (plain, coat)]
    assert plain[-1] < 0.6 * plain[0] and abs(last[1] / last[0] - 1) < 0.01, last
    held = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    many = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    assert held / many <= 2.2


def test_adamws_own_state_goes_on(adamw):
    model, plain, _ = adamw
    optimizer = COATAdamW(model.parameters(), lr=3e-3)
    optimizer.load_state_dict(plain.state_dict())
    for p in list(model.parameters())[1:5]:
        state = plain.state[p]
        assert optimizer.state[p]["step"] == state["step"]
        for got, wanted in zip(optimizer.moments(p), (state["exp_avg"], state["exp_avg_sq"]), strict=True):
            assert torch.cosine_similarity(got.flatten(), wanted.flatten(), 0) > 0.998


def test_settings_that_it_cannot_have_are_refused():
    p = torch.nn.Parameter(torch.ones(3))
    for named in ({"amsgrad": True}, {"group": 100}, {"betas": (1.0, 0.9)}, {"differentiable": True}):
        with pytest.raises(BadInput):
            COATAdamW([p], **named)
