"""DataStates: what is saved is as it was at the save although training goes on, and training hardly waits."""

import errno
import json
import multiprocessing.shared_memory
import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_gpt import GPT, windows

from holdall.checkpoints import datastates_commit, datastates_stream
from holdall.checkpoints.bytecheckpoint_hall import Hall
from holdall.checkpoints.bytecheckpoint_ranks import RankLost
from holdall.checkpoints.datastates import DataStates
from holdall.checkpoints.datastates_cost import predict
from holdall.errors import BadInput, BudgetError, CorruptArtefact, HoldallError
from holdall.meter import Meter

HOWS = ("ring", "fork")


def copied(x):
    if isinstance(x, torch.Tensor):
        return x.detach().clone()
    if isinstance(x, dict):
        return {k: copied(v) for k, v in x.items()}
    return type(x)(map(copied, x)) if isinstance(x, list | tuple) else x


def raw(t):
    return bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape) and raw(a) == raw(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


class Training:
    """A small GPT on the text of its own source, step by step; the same again from any of its states."""

    def __init__(self, d=64):
        torch.manual_seed(0)
        self.model = GPT(d=d, layers=2, heads=4, context=32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        text = Path(__file__).read_text()
        self.batches = list(windows(text, 60, 2, 16))
        self.at, self.losses = 0, []

    def forward(self):
        loss = self.model(*self.batches[self.at])
        loss.backward()
        self.losses.append(loss.item())

    def update(self):
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.at += 1

    def state(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "at": self.at}

    def resume(self, kept, step=None):
        state = kept.load(step, like=self.state())
        self.optimizer.load_state_dict(state["optimizer"])
        self.at = state["at"]


@pytest.fixture(scope="module")
def trained():
    run = Training()
    for _ in range(2):
        run.forward()
        run.update()
    return run


class Gate:
    """The disk stands still until it is opened: without it a copy might be done before anybody looks."""

    def __init__(self, monkeypatch):
        self.open, real = threading.Event(), datastates_stream.Sink.write

        def write(sink, chunk, at):
            assert self.open.wait(30)
            real(sink, chunk, at)

        monkeypatch.setattr(datastates_stream.Sink, "write", write)


def soon(act, seconds=0.05):
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


@pytest.mark.parametrize("how", HOWS)
def test_each_of_fifty_versions_is_as_it_was_when_it_was_asked_for(how, tmp_path):
    """While training goes on; the ring holds two thirds of the state."""
    run, wanted, most = Training(), {}, 50 if how == "ring" else 9
    with DataStates(how=how, keep=0, chunk=1 << 16).open(str(tmp_path), 1 << 20) as kept:
        kept.attach(run.optimizer)
        for step in range(most):
            run.forward()
            run.update()
            wanted[step] = copied(run.state())
            kept.save(step, run.state())
        kept.load()
        assert kept.steps() == list(range(most))
        for step, state in wanted.items():
            assert same(kept.load(step), state), step
        told = kept.traffic()
        assert told["forks"] == (0 if how == "ring" else most)
        assert told["ring_most_bytes"] <= 1 << 20
        if how == "ring":
            assert told["ring_waits"] > 50 and told["copied_bytes"] > 50 * 1e6


@pytest.mark.parametrize("careful", [True, False], ids=["with ready", "without"])
def test_without_ready_the_step_spoils_what_is_saved(careful, tmp_path, monkeypatch):
    """The hazard is real: the same run with the one call left out fails."""
    run, gate = Training(), Gate(monkeypatch)
    with DataStates(chunk=1 << 16).open(str(tmp_path), 1 << 20) as kept:
        for _ in range(2):
            run.forward()
            run.update()
        wanted = copied(run.state())
        receipt = kept.save(7, run.state())
        run.forward()
        if careful:
            soon(gate.open.set)
            assert kept.ready() > 0.02 and receipt.blocked > 0.02
        run.update()
        gate.open.set()
        receipt.wait(30)
        assert same(kept.load(7), wanted) == careful


def test_the_optimizer_itself_waits_where_it_is_attached(trained, tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with DataStates(chunk=1 << 16).open(str(tmp_path), 1 << 20) as kept:
        assert kept.attach(trained.optimizer) is trained.optimizer
        wanted = copied(trained.state())
        kept.save(1, trained.state())
        trained.forward()
        soon(gate.open.set)
        trained.update()
        assert kept.traffic()["ready_seconds"] > 0.02
        assert same(kept.load(), wanted)
        with pytest.raises(BadInput, match="optimizer"):
            kept.attach(object())
    trained.forward()
    trained.update()  # a closed one is not asked any more


def test_ready_waits_for_copies_and_not_for_the_disk(trained, tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with DataStates().open(str(tmp_path), "8MB") as kept:
        wanted, receipt = copied(trained.state()), kept.save(1, trained.state())
        kept.ready()
        assert not receipt.done and kept.steps() == []
        with pytest.raises(HoldallError, match="not durable"):
            receipt.wait(0.01)
        trained.forward()
        trained.update()
        second = kept.save(2, trained.state())  # two under way in one ring
        kept.ready()
        assert not second.done
        gate.open.set()
        assert second.wait(30) == receipt.wait(30) and kept.steps() == [1, 2]
        assert same(kept.load(1), wanted) and same(kept.load(2), trained.state())


def test_memory_stays_in_the_window(tmp_path):
    state = {"model": {f"w{i}": torch.full((512, 1024), float(i)) for i in range(20)}}  # 42 MB
    state["model"]["turned"] = torch.arange(1 << 20).float().reshape(1024, 1024).t()
    with Meter() as m, DataStates(chunk=1 << 20).open(str(tmp_path), "8MB") as kept:
        kept.save(1, state).wait(30)
        kept.ready()
    assert 7.9e6 < m.peak_bytes < 1.05 * 8e6 + (1 << 20), m.peak_bytes
    with DataStates().open(str(tmp_path)) as kept:
        assert same(kept.load(), state)
    with pytest.raises(BudgetError) as caught:
        DataStates().open(str(tmp_path), "1kB")
    DataStates().open(str(tmp_path), caught.value.least).close()


def test_what_forward_changes_is_copied_at_once(tmp_path, monkeypatch):
    gate, x = Gate(monkeypatch), torch.randn(16, 8)
    first = torch.nn.Linear(8, 1 << 15)  # as large as the ring
    model = torch.nn.Sequential(first, torch.nn.BatchNorm1d(1 << 15))
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for way in ("attached", "by name", "neither"):
        gate.open.clear()
        state, wanted = model.state_dict(), copied(model.state_dict())
        recipe = DataStates(early="" if way == "attached" else "*running*" if way == "by name" else "no such")
        with recipe.but(chunk=1 << 16).open(str(tmp_path / way), 1 << 20) as kept:
            if way == "attached":
                kept.attach(optimizer)
            receipt = kept.save(0, state)
            model(x + 1)
            gate.open.set()
            kept.ready()
            receipt.wait(30)
            assert same(kept.load(), wanted) == (way != "neither")
            assert receipt.early == (8 if way == "neither" else 8 + 2 * 4 * (1 << 15))


def test_a_step_inside_backward_leaves_nothing_for_later(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    gate.open.set()
    model = torch.nn.Linear(600, 600)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def update(p):
        p.data.sub_(p.grad)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(update)
    with DataStates(chunk=1 << 16).open(str(tmp_path), 1 << 20) as kept:
        kept.attach(optimizer)
        wanted, receipt = copied(model.state_dict()), kept.save(0, model.state_dict())
        model(torch.ones(1, 600)).sum().backward()
        receipt.wait(30)
        assert receipt.early == sum(p.nbytes for p in model.parameters()) and same(kept.load(), wanted)


def test_a_fork_needs_no_ready_where_memory_is_given_for_it(trained, tmp_path):
    torch.set_num_threads(2)  # a pool of threads that the child does not have
    try:
        torch.randn(512, 512) @ torch.randn(512, 512)
        with DataStates(how="fork").open(str(tmp_path), "16MB") as kept:
            wanted, receipt = copied(trained.state()), kept.save(1, trained.state())
            trained.forward()
            trained.update()
            assert receipt.wait(30) > 1e6 and kept.ready() == 0 and same(kept.load(), wanted)
            assert not same(trained.state(), wanted)
    finally:
        torch.set_num_threads(1)


def test_a_fork_is_refused_where_it_is_no_snapshot(tmp_path):
    shared = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 16)
    try:
        theirs = torch.frombuffer(shared.buf, dtype=torch.uint8)
        ours = torch.randn(300, 200).t()
        with DataStates(how="fork", chunk=1 << 16).open(str(tmp_path), "1MB") as kept:
            with pytest.raises(BadInput, match="shared"):
                kept.save(1, {"w": theirs})
            with pytest.raises(BadInput, match="contiguous"):
                kept.save(1, {"w": ours})
        with DataStates(how="auto").open(str(tmp_path), "4MB") as kept:
            for n, (state, forks) in enumerate(
                (({"w": theirs}, 0), ({"w": ours}, 1), ({"w": torch.ones(1 << 21)}, 1))
            ):
                kept.save(n, state, wait=True)
                assert kept.traffic()["forks"] == forks and same(kept.load(), state)
        del theirs, state
    finally:
        shared.close()
        shared.unlink()


def test_files_are_safetensors_with_aligned_tensors_and_one_copy_of_what_is_shared(tmp_path):
    import safetensors.torch

    w, flat = torch.randn(70, 50), torch.arange(1000.0)
    state = {
        "w": w, "tied": w, "part": flat[100:300].view(20, 10), "flat": flat, "x": torch.ones(3).bfloat16(),
        "e": torch.empty(0, 2), "eight": torch.ones(5).to(torch.float8_e5m2), "turned": w.t(), "n": np.arange(3),
        "p": torch.nn.Parameter(torch.ones(2)), ("a", 1): (1, float("nan"), b"\xff", torch.bfloat16, np.float32(2)),
    }  # fmt: skip
    with DataStates().open(str(tmp_path)) as kept:
        kept.save(4, state, wait=True)
        found = kept.load()
    file = next(tmp_path.glob("4-*.data/0.hold"))
    told = safetensors.torch.load_file(file)
    assert torch.equal(told["w"], w) and torch.equal(told["flat"], flat) and told["x"].dtype == torch.bfloat16
    assert "tied" not in told and "part" not in told and torch.equal(told["turned"], w.t())
    head = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    places = [v["data_offsets"][0] for k, v in head.items() if k[0] not in "_~"]
    assert all(p % 64 == 0 for p in places) and file.stat().st_size % 4096 == 0
    assert found["tied"].data_ptr() == found["w"].data_ptr() and same(found["part"], state["part"])
    assert found["flat"].data_ptr() + 400 == found["part"].data_ptr()
    assert found["turned"].stride() == w.t().stride() and found["p"].requires_grad
    assert (found["n"] == state["n"]).all() and same(found["a", 1][:4], state["a", 1][:4])
    found["flat"].zero_()  # what is mapped is one's own
    with DataStates().open(str(tmp_path)) as kept:
        assert same(kept.load()["flat"], flat)


def test_a_run_goes_on_where_it_was(tmp_path):
    whole = Training()
    with DataStates().open(str(tmp_path)) as kept:
        kept.attach(whole.optimizer)
        for step in range(6):
            whole.forward()
            whole.update()
            if step == 2:
                kept.save(step, whole.state())
        again = Training()  # its optimizer has no states yet
        again.resume(kept)
    while again.at < 6:
        again.forward()
        again.update()
    assert again.losses == whole.losses[3:] and same(again.state(), whole.state())


def test_states_that_do_not_go_together_are_told_in_one_line_and_nothing_changes(trained, tmp_path):
    with DataStates().open(str(tmp_path)) as kept:
        kept.save(1, trained.state(), wait=True)
        name = "blocks.1.up.weight"
        for change, said in (
            (lambda m: m.update({name: torch.zeros(3, 4)}), rf"shape of model\.{name}: got \(3, 4\)"),
            (lambda m: m.update({name: m[name].double()}), f"type of model.{name}"),
            (lambda m: m.pop(name), "keys of model"),
            (lambda m: m.update(more=torch.ones(1)), "keys of model: got more"),
            (lambda m: m.update({name: 3}), f"model.{name}"),
        ):
            like = copied(trained.state())
            like["model"]["wte.weight"].zero_()
            change(like["model"])
            with pytest.raises(BadInput, match=said) as caught:
                kept.load(like=like)
            assert "\n" not in str(caught.value) and not like["model"]["wte.weight"].any()
        with pytest.raises(BadInput, match="no step 9"):
            kept.load(9)
        for bad in ({"x": object()}, {"x": {1j: 2}}, {"x": torch.ones(2, 2).to_sparse()}):
            with pytest.raises(BadInput, match="x"):
                kept.save(2, bad)
        assert same(kept.load(), trained.state())


def test_ranks_write_shards_of_their_own_and_commit_together(tmp_path):
    def state(rank, step):
        return {"w": torch.full((9, rank + 1), float(step)), "rank": rank}

    def work(ranks):
        with DataStates(keep=1).open(str(tmp_path), "1MB", ranks=ranks) as kept:
            for step in (1, 2):
                kept.save(step, state(ranks.rank, step), wait=True)
            like = state(ranks.rank, 0)
            kept.load(like=like)
            return kept.steps(), like, kept.load()

    for rank, (steps, like, found) in enumerate(Hall(3, machine=2).run(work)):
        assert steps == [2] and same(like, state(rank, 2)) and same(found, state(rank, 2))
    assert sorted(p.name for p in tmp_path.glob("*.data/*")) == ["0.hold", "1.hold", "2.hold"]
    with (
        DataStates().open(str(tmp_path)) as kept,
        pytest.raises(BadInput, match=r"ranks: got 1; wanted 3.*bytecheck"),
    ):
        kept.load()

    def fails(ranks):
        with DataStates().open(str(tmp_path), "1MB", ranks=ranks) as kept:
            receipt = kept.save(3, state(ranks.rank, 3))
            with pytest.raises(
                HoldallError, match=r"step 3 is not saved: rank 1: No space left.*whole"
            ) as caught:
                receipt.wait(10)
            return kept.steps(), str(caught.value)

    real = datastates_stream._reserve
    with pytest.MonkeyPatch.context() as patch:

        def full(fd, n):
            if Path(f"/proc/self/fd/{fd}").readlink().name == "1.hold":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(fd, n)

        patch.setattr(datastates_stream, "_reserve", full)
        assert all(steps == [2] and "\n" not in said for steps, said in Hall(3).run(fails))
    assert len(list(tmp_path.glob("*.data"))) == 1


def test_a_rank_that_hangs_is_named_in_time(tmp_path):
    def work(ranks):
        with DataStates().open(str(tmp_path), "1MB", ranks=ranks) as kept:
            if ranks.rank == 1:
                time.sleep(1.5)
                return None
            began, receipt = time.monotonic(), kept.save(1, {"w": torch.ones(9)})
            with pytest.raises(HoldallError) as caught:
                receipt.wait(10)
            return type(caught.value), str(caught.value), time.monotonic() - began

    kind, said, took = Hall(2, patience=0.3).run(work)[0]
    assert kind is RankLost and "rank 1 has said nothing for 0.3 s" in said and took < 1.4


@pytest.mark.parametrize("at", [9, -4000])
def test_one_ranks_torn_local_file_holds_up_no_other(at, tmp_path):
    """Found while it is opened, and only when all its bytes were read: after the ranks agreed to be filled."""

    def work(ranks):
        with DataStates(tier=str(tmp_path / "near")).open(str(tmp_path / "far"), "1MB", ranks=ranks) as kept:
            kept.save(1, {"w": torch.full((9, 9), 1.0 + ranks.rank)}, wait=True)
            if ranks.rank:
                file = next((tmp_path / "near").glob("1-*.data/1.hold"))
                raw = bytearray(file.read_bytes())
                raw[at] ^= 255
                file.write_bytes(raw)
            ranks.together(None, lambda said: said)
            like = {"w": torch.zeros(9, 9)}
            kept.load(like=like)
            return like["w"][0, 0].item()

    assert Hall(2, patience=3).run(work) == [1.0, 2.0]


def test_the_local_tier_comes_first_and_stands_in_for_the_far_one(trained, tmp_path, monkeypatch):
    url, real, gate = "memory://datastates/run", datastates_commit.Folder.send, threading.Event()

    def send(*args):
        assert gate.wait(10)
        real(*args)

    monkeypatch.setattr(datastates_commit.Folder, "send", send)
    recipe = DataStates(tier=str(tmp_path), keep=1)
    with recipe.open(url) as kept:
        wanted, receipt = copied(trained.state()), kept.save(3, trained.state())
        kept.ready()
        end = time.monotonic() + 10
        while not receipt.near and time.monotonic() < end:
            time.sleep(0.005)
        assert receipt.near and not receipt.done and kept.near.steps() == [3] and kept.far.steps() == []
        gate.set()
        receipt.wait(10)
        kept.save(4, trained.state(), wait=True)
        assert kept.near.steps() == kept.far.steps() == [4] and kept.traffic()["sent_bytes"] > 2e6
        file = next(tmp_path.glob("4-*.data/0.hold"))
        whole = file.read_bytes()
        file.write_bytes(whole[:-100])
        assert same(kept.load(), wanted)  # the far one, since this one is torn
        file.unlink()
        assert same(kept.load(), wanted)
    with DataStates().open(url, "4MB") as kept:  # another machine
        assert kept.steps() == [4] and same(kept.load(like=copied(wanted)), wanted)
        where = kept.near.url
    assert not Path(where).exists()
    import fsspec

    assert len(fsspec.filesystem("memory").ls("/datastates/run")) == 2


def test_an_s3_server_gets_whole_checkpoints(trained, bucket):
    import s3fs

    with DataStates(keep=1).open(f"s3://{bucket}/a", "4MB") as kept:
        for step in (1, 2):
            kept.save(step, trained.state(), wait=True)
    with DataStates().open(f"s3://{bucket}/a", "4MB") as kept:  # another machine: its local tier is empty
        like = copied(trained.state())
        like["model"]["wte.weight"].zero_()
        assert kept.steps() == [2] and same(kept.load(like=like), trained.state())
    assert len(s3fs.S3FileSystem().ls(f"{bucket}/a", refresh=True)) == 2


def test_two_jobs_do_not_save_into_one_folder_at_once(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with DataStates().open(str(tmp_path)) as one, DataStates().open(str(tmp_path)) as other:
        first = one.save(1, {"w": torch.ones(3)})
        end = time.monotonic() + 10
        while not list(tmp_path.glob("*.data")) and time.monotonic() < end:
            time.sleep(0.005)
        with pytest.raises(HoldallError, match="somebody else is saving"):
            other.save(2, {"w": torch.ones(3)}, wait=True)
        gate.open.set()
        first.wait(10)
        assert one.steps() == [1]
        other.save(3, {"w": torch.ones(3)}, wait=True)
        assert one.steps() == [1, 3]


CALLS = ("pwrite", "fsync", "replace", "posix_fallocate", "open", "unlink", "mkdir", "rmdir")


def died(act, n, whose="parent"):
    """In a child process: do it, and be killed at the n-th call that changes the disk. Whether it was.

    whose: calls of that process, or of a child that it forks.
    """
    pid = os.fork()
    if pid == 0:
        count, here = [0], os.getpid()

        def deadly(real):
            def call(*args, **named):
                count[0] += (os.getpid() == here) == (whose == "parent")
                if count[0] == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **named)

            return call

        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        try:
            act()
        except BaseException:  # noqa: BLE001
            os._exit(3)  # a child of this one was
        os._exit(0)
    return os.waitpid(pid, 0)[1] != 0


@pytest.mark.parametrize(("how", "whose"), [("ring", "parent"), ("fork", "parent"), ("fork", "child")])
def test_killed_anywhere_in_a_save_it_is_the_old_state_or_the_new_one(how, whose, tmp_path):
    """Half of the saves overwrite the newest step."""
    old = {"model": {"a": torch.randn(300, 300), "b": torch.randn(50000)}, "step": 1}
    new = {"model": {"a": torch.randn(300, 300), "b": torch.randn(50000)}, "step": 2}
    recipe, seen = DataStates(how=how, chunk=1 << 18), {1: 0, 2: 0}
    with recipe.open(str(tmp_path / "0"), 1 << 20) as kept:
        kept.save(1, old, wait=True)
    for n in range(1, 60):
        folder, step = tmp_path / str(n), 1 + n % 2
        shutil.copytree(tmp_path / "0", folder)

        def save(folder=folder, step=step):
            with recipe.open(str(folder), 1 << 20) as kept:
                kept.save(step, new, wait=True)

        killed = died(save, n, whose)
        with recipe.open(str(folder), 1 << 20) as kept:
            found = kept.load()
            seen[found["step"]] += killed
            assert same(found, old if found["step"] == 1 else new), n
            assert killed or found["step"] == 2
            kept.save(3, new, wait=True)
            files = sorted(p.name for p in folder.rglob("*") if p.is_file())
            steps = kept.steps()
            assert files == sorted([*(f"{s}.checkpoint" for s in steps), *["0.hold"] * len(steps)]), files
        if not killed:
            break
    assert n > 5 and seen[1] > 3 and (seen[2] > 1 or whose == "child"), (n, seen)


def test_a_full_disk_is_one_line_and_the_old_checkpoint_stands(trained, tmp_path):
    """A limit on the size of files stands for the disk; the kernel refuses what is more."""
    with DataStates().open(str(tmp_path)) as kept:
        kept.save(1, {"w": torch.ones(3)}, wait=True)

    said = tmp_path / "said"

    def save():
        with DataStates().open(str(tmp_path)) as kept:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            try:
                kept.save(2, trained.state(), wait=True)
            except HoldallError as fault:
                said.write_text(f"{fault} {kept.steps()}")

    died(save, -1)
    assert said.read_text() == "step 2 is not saved: File too large; the last whole checkpoint stands [1]"
    said.unlink()
    assert {p.suffix for p in tmp_path.iterdir()} == {".checkpoint", ".data"} and len(
        list(tmp_path.iterdir())
    ) == 2
    with DataStates().open(str(tmp_path)) as kept:
        kept.save(2, trained.state(), wait=True)
        assert kept.steps() == [1, 2]


@pytest.mark.parametrize("how", HOWS)
def test_writes_that_fail_anywhere_leave_the_old_checkpoint_and_the_keeper_useful(how, tmp_path, monkeypatch):
    state = {"w": torch.randn(400_000)}
    for n in range(4):
        with DataStates(how=how, chunk=1 << 18).open(str(tmp_path / str(n)), 1 << 20) as kept:
            kept.save(1, {"w": torch.ones(3)}, wait=True)
            real, left = os.pwrite, [n]

            def write(fd, data, at, real=real, left=left):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(fd, data, at)

            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", write)
                receipt = kept.save(2, state)
                receipt.ended.wait(10)
            with pytest.raises(HoldallError, match="step 2 is not saved: No space left on device"):
                kept.save(3, state)  # as a loop that waits for no receipt learns it
            assert kept.steps() == [1] and len(list((tmp_path / str(n)).iterdir())) == 2
            kept.save(3, state, wait=True)
            assert same(kept.load(), state) and kept.traffic()["ring_most_bytes"] <= 1 << 20


def test_closing_tells_what_nobody_was_told(tmp_path, monkeypatch):
    def full(fd, n):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(datastates_stream, "_reserve", full)
    kept = DataStates().open(str(tmp_path))
    kept.save(1, {"w": torch.ones(3)})
    with pytest.raises(HoldallError, match="step 1 is not saved: No space left"):
        kept.close()
    kept.close()
    kept = DataStates().open(str(tmp_path))
    with pytest.raises(HoldallError, match="No space left"):
        kept.save(1, {"w": torch.ones(3)}, wait=True)
    kept.close()  # it was told already


def test_damage_is_found_and_names_what_is_left(tmp_path):
    state = {"w": torch.randn(5000), "x": torch.randn(300, 30).t(), "step": 1}
    with DataStates().open(str(tmp_path)) as kept:
        for step in (1, 2):
            kept.save(step, state, wait=True)
        file = next(tmp_path.glob("2-*.data/0.hold"))
        whole = file.read_bytes()
        for at in (3, 50, 900, 5000, 12_000, len(whole) - 5):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
            for like in (None, copied(state)):
                with pytest.raises(CorruptArtefact):
                    kept.load(like=like)
        for bad in (whole[:-4096], whole[:100], b"", whole + b"\0" * 4096):
            file.write_bytes(bad)
            with pytest.raises(CorruptArtefact):
                kept.load()
        file.write_bytes(next(tmp_path.glob("1-*.data/0.hold")).read_bytes())  # whole, and not the one
        with pytest.raises(CorruptArtefact, match="manifest names"):
            kept.load()
        file.unlink()
        with pytest.raises(CorruptArtefact, match="missing"):
            kept.load()
        manifest = tmp_path / "2.checkpoint"
        manifest.write_bytes(manifest.read_bytes()[:-7])
        with pytest.raises(CorruptArtefact, match=r"steps \[1\] are there, too"):
            kept.load()
        assert same(kept.load(1), state)


def naive_predict(state, ring, copy_rate, disk_rate, grain=1e5):
    """The pipeline, grain by grain: a copy needs room, and room comes back when the disk has written the oldest."""
    copied = wrote = 0.0
    n, written = int(state / grain), []
    for i in range(n):
        room_at = written[i - int(ring / grain)] if i >= int(ring / grain) else 0.0
        copied = max(copied, room_at) + grain / copy_rate
        wrote = max(wrote, copied) + grain / disk_rate
        written.append(wrote)
    return copied, wrote


@pytest.mark.parametrize("ring", [16e6, 64e6, 300e6, 600e6])
@pytest.mark.parametrize(("copy", "disk"), [(4e9, 1e9), (2e9, 1.9e9), (1e9, 3e9)])
def test_the_prediction_is_what_the_pipeline_would_take(ring, copy, disk):
    told = predict(500e6, ring, copy, disk, step=0.1)
    copied_at, written_at = naive_predict(500e6, ring, copy, disk)
    assert told.copied == pytest.approx(copied_at, rel=0.02) and told.durable == pytest.approx(
        written_at, rel=0.02
    )
    assert told.stall == pytest.approx(max(0, copied_at - 0.1), abs=0.01)
    assert predict(500e6, ring, copy, disk, step=10).stall == 0


def test_the_period_loses_least():
    """Against all others that the disk allows: stalls, and half a period for each failure."""
    for ring, mtbf in ((64e6, 3600), (64e6, 60), (600e6, 3600)):
        told = predict(500e6, ring, 2e9, 1e9, step=0.05, between_failures=mtbf)

        def lost(period, told=told, mtbf=mtbf):
            return told.stall / period + period / 2 / mtbf

        others = [told.shortest * 1.05**i for i in range(200)]
        assert lost(told.period) <= min(map(lost, others)) * 1.001 and told.lost == pytest.approx(
            lost(told.period)
        )
    with pytest.raises(BadInput):
        predict(0, 1, 1, 1, 1)


def test_a_rate_is_kept_and_bad_knobs_are_refused(tmp_path):
    with DataStates(rate=2e7, chunk=1 << 16).open(str(tmp_path), 1 << 20) as kept:
        began = time.monotonic()
        kept.save(1, {"w": torch.ones(1 << 20)}, wait=True)
        assert time.monotonic() - began > 0.19 and kept.traffic()["throttle_waits"] > 10
    for bad in ({"how": "no"}, {"chunk": 0}, {"keep": -1}, {"rate": -1.0}, {"patience": 0.0}):
        with pytest.raises(BadInput):
            DataStates(**bad)
    with DataStates().open(str(tmp_path)) as kept:
        for bad in (-1, True, 1.5, "1"):
            with pytest.raises(BadInput, match="step"):
                kept.save(bad, {})
    for use in (kept.load, kept.ready, kept.steps, kept.traffic, lambda: kept.save(1, {})):
        with pytest.raises(BadInput, match="closed"):
            use()
    kept.close()
