"""Sparse rows times pixels: every kernel beside its slow truth, and whole nets beside torch."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from holdall.errors import BadInput
from holdall.parts.rows import by_rows
from holdall.weights import compile_sparse, sparsify
from holdall.weights.chw_choice import Choice, rows_at_once
from holdall.weights.chw_kernels import CURVES, naive_conv, naive_curve, naive_full, naive_mean, naive_mixed
from holdall.weights.conv_graph import folded
from holdall.weights.sparse_rows import SparseRows, pieces
from holdall.weights.spmm import Multiply
from holdall.weights.spmm_cost import Machine, best, machine
from holdall.weights.spmm_kernels import LINE, naive_spmm, planes, stride_of
from holdall.weights.spmm_lanes import LANES, VECTORS, vectors


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sparse_matrix(o, i, kept, nr=1, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((-(-o // nr), i)) < kept, nr, 0)[:o]
    return (rng.normal(size=(o, i)) * mask).astype(np.float32), rng.normal(size=o).astype(np.float32)


@pytest.mark.parametrize("nr", [1, 2, 4])
def test_the_product_is_that_of_the_matrix_for_all_tails_and_strips(nr):
    weight, bias = sparse_matrix(11, 23, 0.25, nr)  # 11 rows: some are left beside groups of 2 and 4
    weight[:5] = 0  # empty rows, whole groups of them, still have a bias
    weight[10] = 0
    parts = pieces(weight, bias, nr)
    x = np.random.default_rng(1).normal(size=(23, 300)).astype(np.float32)
    truth = np.clip(weight.astype(np.float64) @ x + bias[:, None], -1, 2)
    for pixels in (*range(1, 2 * LINE + 2), 49, 100, 127, 128, 143, 196, 255, 300):
        there = planes(x[:, :pixels])
        assert np.allclose(
            np.concatenate([naive_spmm(there[:, :pixels], p, -1, 2) for p in parts]), truth[:, :pixels]
        )
        for many in VECTORS:
            out = planes(np.zeros((11, pixels)))
            out[:] = 77
            Multiply(parts, there.shape[1], many)(there, out, pixels, -1, 2)
            assert np.abs(out[:, :pixels] - truth[:, :pixels]).max() <= 1e-5, (pixels, many)
            assert (out[:, pixels:] == 77).all(), "wrote beyond the last pixel"


def test_without_a_clamp_nothing_is_cut():
    weight, bias = sparse_matrix(8, 16, 0.3)
    x = planes(np.random.default_rng(1).normal(size=(16, 40)).astype(np.float32) * 100)
    out = planes(np.zeros((8, 40)))
    Multiply([SparseRows.of(weight, bias)], x.shape[1])(x, out, 40)
    truth = weight.astype(np.float64) @ x[:, :40] + bias[:, None]
    assert np.abs(out[:, :40] - truth).max() <= 1e-4 * np.abs(truth).max() and np.abs(truth).max() > 100


@pytest.mark.parametrize("nr", [1, 2, 4])
@pytest.mark.parametrize("kept", [0.0, 0.002, 0.1, 1.0])
def test_steps_lead_back_and_matrices_come_back(nr, kept):
    weight, bias = sparse_matrix(8, 700, kept, nr)
    rows = SparseRows.of(weight, bias, nr)
    assert int(rows.steps(80).sum(dtype=np.int64)) == 0  # each strip begins where the one before did
    stored = SparseRows.stored(rows.shape, nr, rows.stream, rows.gaps(), rows.counts)
    for form in (rows, stored):
        assert all((a == b).all() for a, b in zip(form.dense(), (weight, bias), strict=True))
    assert len(rows.stream) == nr * (8 // nr + len(rows.columns))  # a bias a row, even of empty ones


def test_denormal_weights_are_no_weights():
    weight, bias = sparse_matrix(4, 8, 1.0)
    weight[0, 0] = weight[3, 7] = 1e-39
    assert SparseRows.of(weight, bias).counts.tolist() == [7, 8, 8, 7]
    small = torch.full((1, 3, 8, 8), 1e-39)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)).eval()
    assert not compile_sparse(net)(small).any()


def test_channels_do_not_lie_a_power_of_two_apart():
    for pixels in (1, 16, 49, 64, 256, 1024, 3136):
        assert stride_of(pixels) >= pixels and stride_of(pixels) // LINE % 2 == 1
    assert planes(np.zeros((3, 49))).ctypes.data % 64 == 0


def test_threads_share_pixels_and_change_nothing(monkeypatch):
    monkeypatch.setattr("holdall.weights.spmm._ENOUGH", 1)
    shared = []
    monkeypatch.setattr("holdall.weights.spmm.by_rows", lambda *a: (shared.append(a[1]), by_rows(*a)))
    weight, bias = sparse_matrix(64, 64, 0.5)
    x, outs = planes(np.random.default_rng(1).normal(size=(64, 777)).astype(np.float32)), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outs.append(planes(np.zeros((64, 777))))
        Multiply([SparseRows.of(weight, bias)], x.shape[1])(x, outs[-1], 777)
    assert (outs[0] == outs[1]).all() and (outs[0] == outs[2]).all() and shared == [1, 2, 3]


def test_a_tenth_of_the_weights_takes_far_less_than_dense_time():
    weight, bias = sparse_matrix(256, 128, 0.1)
    x, out = torch.randn(128, 784), planes(np.zeros((256, 784)))
    there, multiply = planes(x.numpy()), Multiply([SparseRows.of(weight, bias)], stride_of(784))
    dense, image = torch.from_numpy(weight)[:, :, None, None], x.reshape(1, 128, 28, 28)
    ratios = []
    with torch.inference_mode():
        for _ in range(3):
            slow = best(lambda: nn.functional.conv2d(image, dense))
            ratios.append(slow / best(lambda: multiply(there, out, 784)))
    assert max(ratios) >= 1.5, ratios


def close(net, x):
    """The compiled net beside torch; both are evaluated."""
    net = net.eval()
    with torch.inference_mode():
        truth, given = net(x), compile_sparse(net)(x)
    assert truth.shape == given.shape
    assert float((truth - given).abs().max() / truth.abs().max()) <= 1e-4


def test_each_kernel_beside_its_slow_truth():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 9, 13)
    plane = x[0].numpy()

    def given(net):
        return compile_sparse(net.eval())(x)[0].numpy()

    for out, k, stride, groups in (
        (8, 3, 1, 1),
        (5, 3, 2, 1),
        (6, 5, 2, 6),
        (6, 3, 1, 6),
        (12, 3, 2, 6),
        (4, 2, 3, 2),
    ):
        conv = nn.Conv2d(6, out, k, stride, 1, groups=groups)
        told = (conv.weight.detach().numpy(), conv.bias.detach().numpy(), (stride,) * 2, (1,) * 4, groups)
        assert np.allclose(given(nn.Sequential(conv)), naive_conv(plane, *told), atol=1e-5), (
            out,
            k,
            stride,
            groups,
        )
    pool, full = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(6, 7)
    mean = naive_mean(plane.reshape(6, -1))
    assert np.allclose(given(pool), mean, atol=1e-6)
    told = (full.weight.detach().numpy(), full.bias.detach().numpy())
    assert np.allclose(given(nn.Sequential(pool, full)), naive_full(mean, *told), atol=1e-5)
    for module in (nn.SiLU(), nn.Sigmoid(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-0.5, 0.25)):
        mode = CURVES.index(type(module).__name__.lower()) if type(module) is not nn.Hardtanh else 5
        truth = naive_curve(plane, mode).clip(*((-0.5, 0.25) if mode == 5 else (-9, 9)))
        assert np.allclose(given(nn.Sequential(module)), truth, atol=1e-5), module

    class Both(nn.Module):
        def forward(self, x):
            return (x + torch.sigmoid(x)) * x.mean((2, 3), keepdim=True)

    flat = plane.reshape(6, -1)
    mixed = naive_mixed(naive_mixed(flat, naive_curve(flat, 2), False), mean, True)
    assert np.allclose(given(Both()).reshape(6, -1), mixed, atol=1e-5)


class Block(nn.Module):
    """An inverted residual with squeeze-excite, in the style of torchvision."""

    def __init__(self, width, out, stride, k, act):
        super().__init__()
        wide = 3 * width
        self.grow = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), act(inplace=True)
        )
        self.deep = nn.Sequential(
            nn.Conv2d(wide, wide, k, stride, k // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            act(inplace=True),
        )
        self.fc1, self.fc2 = nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)
        self.last = nn.Sequential(nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out))
        self.skip = stride == 1 and width == out

    def forward(self, x):
        y = self.deep(self.grow(x))
        y = y * torch.sigmoid(self.fc2(nn.functional.relu(self.fc1(nn.functional.adaptive_avg_pool2d(y, 1)))))
        y = self.last(y)
        return x + y if self.skip else y


class Padded(nn.Conv2d):
    """A convolution that pads on one side more than on the other, as TensorFlow's nets do."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.around = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return nn.functional.conv2d(self.around(x), self.weight, self.bias, self.stride, 0, 1, self.groups)


def net(act=nn.ReLU6, k=3):
    torch.manual_seed(0)
    made = nn.Sequential(
        Padded(3, 20, 3, 2, bias=False), nn.BatchNorm2d(20), act(), nn.Dropout(0.1),
        Block(20, 20, 1, k, act), Block(20, 26, 2, k, act), nn.Conv2d(26, 18, 1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 10),
    )  # fmt: skip
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    return made


class Shared(nn.Module):
    """Padding of what others read, too; a kernel that is no square; flattening by sizes."""

    def __init__(self):
        super().__init__()
        self.around, self.conv = nn.ZeroPad2d(1), nn.Conv2d(6, 6, 3)
        self.deep = nn.Conv2d(6, 6, (3, 5), padding=(1, 2), groups=6)

    def forward(self, x):
        y = self.conv(self.around(x)) + x
        y = nn.functional.adaptive_avg_pool2d(nn.functional.relu(self.deep(y)) + y, 1)
        return y.view(x.size(0), -1)


def test_padding_is_seen_by_the_convolution_alone():
    torch.manual_seed(0)
    close(Shared(), torch.randn(2, 6, 9, 11))


@pytest.mark.parametrize(("act", "k", "block"), [(nn.ReLU6, 3, 1), (nn.SiLU, 5, 2), (nn.Hardswish, 3, 4)])
def test_a_whole_net_gives_what_torch_gives(act, k, block):
    made = net(act, k)
    sparsify(made, 0.8, block=block)
    for size in ((32, 32), (33, 19), (7, 50)):
        close(made, torch.randn(2, 3, *size))
    close(made, torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last))


def test_threads_and_the_cost_model_give_the_same(monkeypatch):
    monkeypatch.setattr("holdall.weights.chw._ENOUGH", 1)
    made = net().eval()
    sparsify(made, 0.9)
    x = torch.randn(3, 3, 48, 48)
    truth = made(x).detach()
    for threads, choose in ((2, "timing"), (1, "model"), (2, "model")):
        torch.set_num_threads(threads)
        for images in (x, x[:1], x[:0]):
            given = compile_sparse(made, choose=choose)(images)
            assert torch.allclose(given, truth[: len(images)], rtol=1e-4, atol=1e-4)


def test_normalisations_are_folded_where_nothing_else_reads_between():
    made, x = net().eval(), torch.randn(2, 3, 32, 32)
    lean = folded(made)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in lean.modules())
    assert torch.allclose(lean(x), made(x), atol=1e-5)

    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.norm.running_var.fill_(4.0)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y)

    read = Read().eval()
    assert torch.equal(folded(read)(x), read(x)) and isinstance(folded(read).norm, nn.BatchNorm2d)
    with pytest.raises(BadInput, match="norm"):
        compile_sparse(read)(x)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 3, dilation=2)], [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")], [nn.MaxPool2d(2)],
        [nn.Flatten(), nn.Linear(3 * 64, 4)], [nn.Conv2d(3, 4, 1), nn.Linear(8, 4)], [nn.ZeroPad2d(1), nn.ReLU()],
    ],
)  # fmt: skip
def test_what_no_kernel_does_is_named(layers):
    with pytest.raises(BadInput):
        compile_sparse(nn.Sequential(*layers))(torch.randn(1, 3, 8, 8))


def test_images_of_other_kinds_are_refused():
    made = compile_sparse(nn.Sequential(nn.Conv2d(3, 4, 1)))
    for wrong in (torch.randn(3, 8, 8), torch.randn(1, 3, 8, 8).double(), torch.randn(1, 5, 8, 8)):
        with pytest.raises(BadInput):
            made(wrong)
    with pytest.raises(BadInput):
        compile_sparse(nn.Sequential(nn.Conv2d(3, 4, 1)), choose="luck")


def test_rows_are_taken_together_only_where_they_share_their_non_zeros():
    assert rows_at_once(sparse_matrix(16, 64, 1.0)[0]) == [1, 2, 4]
    assert rows_at_once(sparse_matrix(16, 64, 0.1, 4)[0]) == [1, 2, 4]
    assert rows_at_once(sparse_matrix(16, 64, 0.1)[0]) == [1]


def test_what_takes_least_is_chosen(monkeypatch):
    """By the model: rows at once where loads are dear, and strips that fit. By timing: whatever was fastest."""
    weight, _ = sparse_matrix(16, 64, 0.5, 4)
    made = nn.Sequential(nn.Conv2d(64, 16, 1), nn.Conv2d(16, 8, 3)).eval()
    made[0].weight.data = torch.from_numpy(weight)[:, :, None, None]
    for load, cache, choice in (
        (1.0, 1 << 20, Choice(4, vectors(4)[0])),
        (0.0, 64 * LANES * 4, Choice(1, 1)),
    ):
        told = Machine(row=0.0, load=load, fma=1e-3, gemm=1.0, cache=cache)
        monkeypatch.setattr("holdall.weights.chw_choice.machine", lambda told=told: told)
        assert compile_sparse(made, choose="model").compiled((64, 8, 8)).choices == [choice]

    def taken(op, rows, many, arena):
        return abs(rows.nr - 2) + abs(many - 2)

    monkeypatch.setattr("holdall.weights.chw_choice._seconds", taken)
    assert compile_sparse(made).compiled((64, 8, 8)).choices == [Choice(2, 2)]


def test_deep_nets_take_no_more_room_than_shallow_ones():
    """What nothing reads any more is given to what comes next."""
    ends = []
    for deep in (3, 12):
        made = nn.Sequential(*(m for _ in range(deep) for m in (nn.Conv2d(4, 4, 1), nn.SiLU())))
        ends.append(compile_sparse(made, choose="model").compiled((4, 8, 8)).plan.room.end)
    assert ends[0] == ends[1] == 2 * 4 * stride_of(64)


def test_the_cost_model_halves_strips_and_finds_where_dense_is_met():
    told = Machine(row=2e-9, load=1e-10, fma=1e-10, gemm=3e11, cache=48 << 10)
    assert told.strip(64) == max(v for v in VECTORS if 64 * v * LANES * 4 <= 48 << 10)
    assert told.strip(4096) == 1 < told.strip(256) < told.strip(32) and told.strip(1, 4) == vectors(4)[0]
    for nr in (1, 4):
        at = told.crossover((512, 256), 784, nr)
        assert 0.1 < at < 0.9
        weight, bias = sparse_matrix(512, 256, 1 - at, nr)
        rows = SparseRows.of(weight, bias, nr)
        many = told.strip(256, nr)
        assert told.seconds(rows, 784, many) == pytest.approx(told.dense((512, 256), 784), rel=0.03)
    assert told.crossover((512, 256), 784, 4) < told.crossover((512, 256), 784, 1)


def test_the_cost_model_knows_this_machine():
    start = time.thread_time()
    told = machine()
    assert time.thread_time() - start < 5 and told.gemm > 1e9 and told.row + told.load + told.fma > 0
    taken = {}
    for kept in (0.05, 0.2):
        rows = SparseRows.of(*sparse_matrix(256, 64, kept))
        x, out = planes(np.ones((64, 512), np.float32)), planes(np.zeros((256, 512)))
        multiply = Multiply([rows], x.shape[1], 4)
        taken[kept] = (told.seconds(rows, 512, 4), best(lambda m=multiply, a=x, b=out: m(a, b, 512)))
    predicted, measured = (taken[0.2][i] / taken[0.05][i] for i in (0, 1))
    assert predicted == pytest.approx(measured, rel=0.5), taken
