"""PyTorch-Direct: irregular rows straight into the batch, reads joined by page, and tensors that know their place."""

import gc
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.training import PyTorchDirect, pytorch_direct_kernels, unified
from holdall.training.pytorch_direct_crew import Crew
from holdall.training.pytorch_direct_kernels import naive_gather
from holdall.training.pytorch_direct_lines import lines, naive_lines, shift_of


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "t.npy"
    np.save(path, np.random.default_rng(0).normal(size=(5003, 37)).astype("f4"))
    return str(path), np.load(path)


def pages_of(rows, start, width):
    """Pages that a set of rows lies on."""
    return {
        p for r in rows for p in range((start + r * width) // 4096, (start + (r + 1) * width - 1) // 4096 + 1)
    }


def test_rows_come_straight_from_the_file_and_no_page_is_read_twice(table):
    """The mechanism: each page that has a wanted row is read once, whatever the order and however often it is wanted;
    one read a row in the order asked, the slow truth, reads many of them again and again."""
    path, x = table
    draw = np.random.default_rng(1)
    wanted = np.minimum(draw.zipf(1.2, 4000) * 7919 % 5003, 5002)
    recipe = PyTorchDirect(window=1 << 20)
    with (
        recipe.open(path) as rows,
        recipe.but(sort=False).open(path) as plain,
        recipe.but(gap=0).open(path) as tight,
    ):
        truth = naive_gather(rows.fileno(), wanted, 148, rows.table.start)
        for session in (rows, plain, tight):
            assert session.step(wanted).numpy().tobytes() == x[wanted].tobytes() == truth.tobytes()
        least = len(pages_of(set(wanted.tolist()), rows.table.start, 148))
        one, other = rows.traffic(), plain.traffic()
        assert one["pages"] == least
        assert other["pages"] >= 4000 > 5 * one["pages"]
        assert one["reads"] < least and tight.traffic()["read_bytes"] == len(set(wanted.tolist())) * 148
        assert one["asked_bytes"] == other["asked_bytes"] == 4000 * 148


@pytest.mark.parametrize("knobs", [{}, {"gap": 0}, {"window": 300}, {"threads": 1}, {"sort": False}])
@pytest.mark.parametrize("count", [0, 1, 3, 63, 1000])
def test_odd_sizes_and_every_row_at_once(table, knobs, count):
    path, x = table
    with PyTorchDirect(**knobs).open(path) as rows:
        wanted = np.random.default_rng(count).integers(-5003, 5003, count)
        assert np.array_equal(rows.step(wanted).numpy(), x[wanted])
        assert np.array_equal(rows.step(torch.arange(5003)).numpy(), x)
        shaped = rows.step(torch.tensor([[0, 5002, 0], [-1, 1, 2]]))
        assert torch.equal(shaped, torch.from_numpy(x)[torch.tensor([[0, 5002, 0], [-1, 1, 2]])])


def test_a_batch_is_made_in_place_without_a_copy_of_its_size(table):
    path, x = table
    with PyTorchDirect().open(path) as rows:
        mine = torch.full((3, 37), torch.nan)
        assert rows.into([5, 5, 1], mine) is mine and np.array_equal(mine.numpy(), x[[5, 5, 1]])
        first = rows.step([1, 2])
        place, view = first.data_ptr(), first[1]
        assert rows.step([3, 4]).data_ptr() != place  # it is still with somebody
        del first
        gc.collect()
        assert rows.step([5, 6]).data_ptr() != place and np.array_equal(view, x[2])  # a part of it is
        del view
        gc.collect()
        kept = rows.step([7, 8])
        again = rows.step([9, 10])  # what was used again is with somebody, too
        assert kept.data_ptr() != again.data_ptr() and np.array_equal(kept, x[[7, 8]])


def test_a_row_larger_than_the_window_is_still_read_once(table):
    path, x = table
    with PyTorchDirect(window=1).open(path) as rows:
        assert np.array_equal(rows.step([9, 9, 4, 9, 5]), x[[9, 9, 4, 9, 5]])
        assert rows.traffic()["reads"] == 3


def test_memory_is_used_again_only_when_autograd_is_done_with_it(table):
    path, x = table
    weight = torch.ones(37, requires_grad=True)
    with PyTorchDirect().open(path) as rows:
        loss = (rows.step([1, 2]) * weight).sum()
        rows.step([3, 4])
        loss.backward()
        assert np.allclose(weight.grad, x[[1, 2]].sum(0))
        places = {rows.step([i, i + 1]).data_ptr() for i in range(5)}
        assert len(places) <= 2  # one buffer goes round


def test_tables_of_every_form(tmp_path):
    from safetensors.torch import save_file

    x = torch.randn(100, 3, 5)
    save_file({"a": x.bfloat16(), "b": x.int()}, tmp_path / "t.safetensors")
    np.save(tmp_path / "t.npy", x.numpy())
    mapped = np.load(tmp_path / "t.npy", mmap_mode="r")
    wanted = torch.tensor([99, 0, 7])
    for given, truth in (
        (f"{tmp_path}/t.safetensors:a", x.bfloat16()),
        (f"{tmp_path}/t.safetensors:b", x.int()),
        (tmp_path / "t.npy", x),
        (mapped, x),
    ):
        with PyTorchDirect().open(given) as rows:
            assert torch.equal(rows.step(wanted), truth[wanted])
    with (tmp_path / "t.npy").open("rb") as f, PyTorchDirect().open(f) as rows:
        assert torch.equal(rows.step(wanted), x[wanted])


def test_what_is_wrong_is_told_in_one_line(table, tmp_path):
    path, x = table
    np.save(tmp_path / "columns.npy", np.asfortranarray(x))
    np.save(tmp_path / "short.npy", x)
    os.truncate(tmp_path / "short.npy", 5000)
    (tmp_path / "not.npy").write_bytes(b"hello")
    (tmp_path / "x.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0hello")
    for given, fault, match in (
        (tmp_path / "columns.npy", BadInput, "rows one after the other"),
        (tmp_path / "short.npy", CorruptArtefact, "are needed"),
        (tmp_path / "not.npy", CorruptArtefact, "no .npy header"),
        (tmp_path / "x.safetensors", CorruptArtefact, "no safetensors header"),
        (tmp_path / "missing.npy", BadInput, "exists"),
        (np.load(path, mmap_mode="r")[5:], BadInput, "whole memmap"),
        (3, BadInput, "memmap"),
    ):
        with pytest.raises(fault, match=match):
            PyTorchDirect().open(given)
    with PyTorchDirect().open(path) as rows:
        for wanted, match in (
            ([5003], "rows of a table"),
            ([-5004], "rows of a table"),
            ([0.5], "whole numbers"),
        ):
            with pytest.raises(BadInput, match=match):
                rows.step(wanted)
        with pytest.raises(BadInput, match="contiguous"):
            rows.into([1, 2], torch.empty(2, 36))


def test_a_file_that_is_cut_while_it_is_read_raises_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, np.zeros((3000, 64), "f4"))
    with PyTorchDirect().open(path) as rows:
        os.truncate(path, 128 + 1500 * 256)
        with pytest.raises(CorruptArtefact, match="cut short"):
            rows.step(np.arange(0, 3000, 7))
        assert rows.step([0, 1499]).sum() == 0


def test_fewer_threads_do_the_same_work_and_none_is_at_work_when_a_call_ends(table, monkeypatch):
    path, x = table
    wanted = np.random.default_rng(5).integers(0, 5003, 3000)
    real, started = threading.Thread.start, []
    for most in (0, 2):

        def start(self, most=most):
            if len(started) >= most:
                raise RuntimeError("can't start new thread")
            started.append(self)
            real(self)

        started.clear()
        monkeypatch.setattr(threading.Thread, "start", start)
        monkeypatch.setattr(
            pytorch_direct_kernels, "NOWAIT", None
        )  # as where nobody knows what is in the cache
        with PyTorchDirect(gap=0, threads=8).open(path) as rows:
            assert np.array_equal(rows.step(wanted).numpy(), x[wanted]) and len(rows._crew) == most
        monkeypatch.undo()
        assert not any(t.is_alive() for t in started)
    crew, ended = Crew(2), []

    def act(i):
        if i == 0:
            raise OSError("first")
        time.sleep(0.02)
        ended.append(i)

    with pytest.raises(OSError, match="first"):
        crew.do(act, [(i,) for i in range(5)])
    assert sorted(ended) == [1, 2, 3, 4]
    crew.close()


def test_a_budget_counts_batches_that_are_still_held(table):
    path, _ = table
    with PyTorchDirect(threads=2).open(path, "800KB") as rows:
        held = [rows.step(np.arange(2000))]
        with pytest.raises(BudgetError, match="still held"):
            held.append(rows.step(np.arange(2000)))
        held.clear()
        gc.collect()
        assert rows.step(np.arange(2000)).shape == (2000, 37)
        with pytest.raises(BudgetError) as caught:
            rows.step(np.arange(5003))
        assert caught.value.least == rows.least(5003)


def test_the_shift_halves_the_lines_that_a_device_asks_for():
    """The simulator counts line by line; a row that begins off a line costs nearly twice as many requests unshifted."""
    for size in (1, 2, 4, 8):
        for width in (1, 3, 31, 32, 33, 63, 64, 129, 1000):
            starts = np.arange(0, 40) * width * size + 8 * size
            for shifted in (True, False):
                told = lines(starts, width, size, shifted)
                each = [
                    naive_lines(s, width, size, shift_of(s, width, size) if shifted else 0) for s in starts
                ]
                assert told.tolist() == each, (size, width, shifted)
    starts = np.arange(1000) * 1028  # rows of 257 float32, as the paper's worst
    plain, shifted = lines(starts, 257, 4, False).sum(), lines(starts, 257, 4).sum()
    aligned = lines(np.arange(1000) * 1024, 256, 4, False).sum()
    assert plain > 1.85 * aligned * 257 / 256 and shifted < 1.35 * aligned


def test_the_kernel_for_devices_reads_shifted_and_writes_to_the_true_place():
    """In numba's simulator: no device has run it."""
    code = """
import numpy as np, sys
from holdall.training.pytorch_direct_cuda import shifted_rows
for n, width, base in ((7, 33, 0), (5, 1, 4), (4, 70, 124)):
    table = np.random.default_rng(0).normal(size=(n, width)).astype("f4")
    rows, out = np.array([n - 1, 0, n - 1, 2]), np.zeros((4, width), "f4")
    shifted_rows[4, 32](table, rows, out, base, 4)
    assert (out == table[rows]).all()
assert "torch" not in sys.modules
print("equal")
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
    )
    assert told.stdout.strip() == "equal", told.stderr


def test_only_pinned_memory_is_shown_to_a_device():
    from holdall.training.pytorch_direct_device import alias

    with pytest.raises(BadInput, match="pinned"):
        alias(torch.zeros(3, 2), "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_reads_pinned_rows_itself():
    x = torch.randn(1000, 257)
    table = unified(x)
    got = table[torch.tensor([5, 5, 999]).cuda()]
    assert got.device.type == "cuda" and torch.equal(got.cpu(), x[[5, 5, 999]])
    assert torch.equal(table[[-1, 0]].cpu(), x[[-1, 0]])


def test_one_changed_line_and_the_users_loop_goes_on(table):
    path, x = table
    features = unified(path)  # was: torch.from_numpy(np.load(path))
    loader = DataLoader(features, sampler=BatchSampler(RandomSampler(x), 64, False), batch_size=None)
    assert sum(len(batch) for batch in loader) == 5003 and features.traffic()["steps"] == 79
    wanted = torch.tensor([3, 5002, 3])
    truth = torch.from_numpy(x)
    for got in (
        features[wanted],
        features[wanted.tolist()],
        features[wanted.numpy()],
        features.index_select(0, wanted),
        torch.index_select(features, 0, wanted),
        F.embedding(wanted, features),
    ):
        assert torch.equal(got, truth[wanted]) and type(got) is torch.Tensor
    assert features.traffic()["steps"] == 85 and torch.equal(features[-1], truth[-1])
    assert features.shape == (5003, 37) and features.dtype == torch.float32 and len(features) == 5003
    assert torch.equal(features[10:20, :3] + 0, truth[10:20, :3])  # not rows: as any tensor
    with pytest.raises(BadInput, match="reading only"):
        features.add_(1)
    with pytest.raises(BadInput, match="reading only"):
        features[0] = 1
    features.close()


def test_rows_come_in_the_workers_of_a_loader_too(table):
    path, x = table
    features = unified(path)
    features[[0, 1]]
    sampler = BatchSampler(range(500), 250, False)
    got = list(DataLoader(features, sampler=sampler, batch_size=None, num_workers=1))
    assert np.array_equal(torch.cat(got).numpy(), x[:500])


def test_where_results_are(table):
    """The placement rules, with the device "meta", which says where a result is without having one."""
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    kind = type(unified(a, "cpu"))
    away = torch.empty(4, 3, device="meta")
    for propagate in (False, True):
        one, two = unified(a, "meta", propagate), unified(b, "meta", propagate)
        assert (one + away).device.type == (away * one).device.type == "meta"
        beside = one + torch.ones(4, 3)
        assert beside.device.type == "cpu" and type(beside) is torch.Tensor
        among, scaled = one + two, one * 2
        if propagate:
            assert among.device.type == scaled.device.type == "meta" and type(among) is torch.Tensor
        else:
            assert type(among) is kind and torch.equal(among.as_subclass(torch.Tensor), a + b)
            assert type(scaled) is kind and type(one * torch.tensor(2.0)) is kind
            assert (among + away).device.type == "meta"
        assert one[torch.tensor([1, 1])].device.type == "meta"
    assert type(unified(a, "cpu", propagate=True) * 2) is torch.Tensor  # the device is the host here
    one = one.propagated(False)
    assert type(one + two.propagated(False)) is kind and isinstance(one.sum().item(), float)
    assert type(one.split(2)[0]) is kind and one.max(1).values.shape == (4,)


def test_gradients_flow_through_unified_tensors():
    a = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(3, 2, requires_grad=True)
    (unified(a.detach(), "cpu") @ weight).square().sum().backward()
    assert torch.allclose(weight.grad, 2 * a.detach().T @ a.detach() @ weight.detach(), atol=1e-5)
