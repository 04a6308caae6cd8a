"""ByteCheckpoint: saved under one layout, loaded under another, bit for bit; each byte written and read once."""

import copy
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from deadly import DEADLY

from holdall.checkpoints import bytecheckpoint_save, planning
from holdall.checkpoints.bytecheckpoint import ByteCheckpoint
from holdall.checkpoints.bytecheckpoint_hall import Hall
from holdall.checkpoints.bytecheckpoint_parts import Piece
from holdall.checkpoints.bytecheckpoint_ranks import RankLost
from holdall.checkpoints.layouts import Layout
from holdall.checkpoints.loaders import PackingLoader
from holdall.errors import BadInput, BudgetError, CorruptArtefact, HoldallError

SHAPES = {
    "embed_tokens.weight": (49, 12),
    **{
        f"layers.{i}.{n}.weight": s
        for i in range(4)
        for n, s in {"q_proj": (12, 12), "down_proj": (12, 31), "conv": (3, 5, 7), "norm": (12,)}.items()
    },
    "norm.weight": (12,),
    "lm_head.weight": (49, 12),
}
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def full():
    """The state of a run, unsplit: a model in bfloat16 and float32, its moments in float32."""
    rng = torch.Generator().manual_seed(1)
    model = {n: torch.randn(s, generator=rng) for n, s in SHAPES.items()}
    model = {n: t.bfloat16() if "conv" in n else t for n, t in model.items()}
    state = {
        n: {m: torch.randn(s, generator=rng) for m in MOMENTS} | {"step": torch.tensor(9.0)}
        for n, s in SHAPES.items()
    }
    return {
        "model": model,
        "optimizer": {"state": state, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]},
        "step": 9,
    }


def nbytes(state):
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    return (
        sum(map(nbytes, state.values() if isinstance(state, dict) else state))
        if isinstance(state, dict | list)
        else 0
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bytes(raw(a)) == bytes(raw(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def raw(t):
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def split(full, layout, rank, blank=False):
    """What a rank of a layout holds of the full state; `blank`: the same parts, full of ones."""

    def part(held, tensor):
        found = Piece.of(held, tensor)
        if blank:
            found.data.fill_(1)
        return found

    held = layout.held(rank, SHAPES, "model"), layout.held(rank, SHAPES, "optim")
    model = {h.name: part(h, full["model"][h.name]) for h in held[0]}
    moments = {
        h.name: {m: part(h, full["optimizer"]["state"][h.name][m]) for m in MOMENTS}
        | {"step": torch.tensor(9.0)}
        for h in held[1]
    }
    groups = [{"lr": 0.1, "betas": (0.9, 0.95)}]
    return {
        "model": model,
        "optimizer": {"state": moments, "param_groups": groups},
        "step": 1 if blank else 9,
    }


def save(url, full, layout, step=9, recipe=None, hall=None):
    recipe = recipe or ByteCheckpoint(part=1 << 11)

    def work(ranks):
        with recipe.open(url, ranks=ranks) as kept:
            kept.save(step, split(full, layout, ranks.rank)).wait(30)

    (hall or Hall(layout.world, machine=2, fanout=2)).run(work)


def data_of(url):
    """Sizes of all boxes in the files, by the safetensors headers; and the sums by file."""
    import safetensors

    found = {}
    for file in sorted(Path(url).glob("*.data/*")):
        with safetensors.safe_open(file, "pt") as f:
            found[file.name] = sum(nbytes(f.get_tensor(k)) for k in f.keys() if k != "tree.json")  # noqa: SIM118
    return found


PAIRS = [
    (Layout(), Layout(dp=4, zero=3)),
    (Layout(dp=4), Layout()),
    (Layout(dp=4, zero=1), Layout(dp=2, zero=1)),
    (Layout(dp=3, zero=3), Layout(dp=4, zero=3)),
    (Layout(dp=4, zero=3), Layout(dp=3)),
    (Layout(tp=2), Layout(tp=3)),
    (Layout(tp=2, dp=2, zero=3), Layout(dp=4, zero=2)),
    (Layout(pp=2, dp=2, zero=2), Layout(tp=2, pp=2)),
    (Layout(pp=2, dp=3, zero=3, tied=("lm_head.weight", "embed_tokens.weight")), Layout(pp=4)),
    (Layout(tp=2, pp=2, dp=2, zero=3), Layout(tp=4, dp=2, zero=1)),
    (Layout(tp=3, pp=2), Layout(tp=2, pp=2, dp=2, zero=3)),
    (Layout(pp=4), Layout(tp=2, dp=3, zero=1)),
]


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=lambda p: f"tp{p.tp}pp{p.pp}dp{p.dp}z{p.zero}")
def test_any_layout_loads_what_another_saved(old, new, full, tmp_path):
    save(str(tmp_path), full, old)
    assert sum(data_of(tmp_path).values()) == nbytes(full), "each byte is written once"

    def work(ranks):
        like = split(full, new, ranks.rank, blank=True)
        with ByteCheckpoint().open(str(tmp_path), ranks=ranks) as kept:
            assert kept.load(like=like) is like
        return like

    for rank, got in enumerate(Hall(new.world, machine=2, fanout=2).run(work)):
        wanted = split(full, new, rank)
        assert got["step"] == 9 and got["model"].keys() == wanted["model"].keys()
        for name, piece in wanted["model"].items():
            assert same(got["model"][name].data, piece.data), name
        for name, state in wanted["optimizer"]["state"].items():
            assert all(same(got["optimizer"]["state"][name][m].data, state[m].data) for m in MOMENTS), name
    with ByteCheckpoint().open(str(tmp_path)) as kept:  # and one process sees all of it, unsplit
        again = kept.load()
    assert again["model"].keys() == full["model"].keys() and same(again, {**full, "model": again["model"]})
    assert all(same(again["model"][n], t) for n, t in full["model"].items())


def test_replicas_are_written_evenly_and_read_once(full, tmp_path):
    layout = Layout(dp=4)
    save(str(tmp_path), full, layout)
    loads = [0] * 4
    for name, n in data_of(tmp_path).items():
        loads[int(name.split("_")[1].split(".")[0])] += n
    assert max(loads) * 4 / sum(loads) <= 1.1
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        kept.load(like=split(full, Layout(), 0, blank=True))
        alone = kept.traffic()["read_bytes"]
    read = {}
    for once in (True, False):

        def work(ranks, once=once):
            with ByteCheckpoint(once=once).open(str(tmp_path), ranks=ranks) as kept:
                got = kept.load(like=split(full, layout, ranks.rank, blank=True))
                assert same(got["model"]["lm_head.weight"].data, full["model"]["lm_head.weight"])
                return kept.traffic()["read_bytes"]

        read[once] = sum(Hall(4).run(work)) - alone
    assert read[True] == 0 and read[False] == 3 * nbytes(full)


def test_what_is_saved_is_as_it_was_when_save_returned(full, tmp_path, monkeypatch):
    go = threading.Event()
    slow = bytecheckpoint_save._chunks
    monkeypatch.setattr(bytecheckpoint_save, "_chunks", lambda f, data: (go.wait(10), slow(f, data)))
    state = {"model": {n: t.clone() for n, t in full["model"].items()}}
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        receipt = kept.save(1, state)
        assert not receipt.done and kept.steps() == []
        for t in state["model"].values():
            t.zero_()
        go.set()
        receipt.wait(10)
        assert receipt.done and same(kept.load(), {"model": full["model"]})


def test_memory_that_is_given_is_all_that_is_held(tmp_path):
    from holdall.meter import Meter

    state = {"model": {f"w{i}": torch.full((256, 1024), float(i)) for i in range(24)}}  # 25 MB
    with ByteCheckpoint().open(str(tmp_path), "2MB") as kept:
        kept.save(0, {"model": {"w": torch.ones(9)}}, wait=True)
        with Meter() as m:
            kept.save(1, state, wait=True)
        assert m.peak_bytes < 7e6, m.peak_bytes
        assert same(kept.load(), state)
    with pytest.raises(BudgetError) as caught:
        ByteCheckpoint().open(str(tmp_path), "1kB")
    ByteCheckpoint().open(str(tmp_path), caught.value.least).close()


def test_saves_that_follow_each_other_at_once_and_grow(tmp_path):
    states = [{"model": {"w": torch.full((700 * (1 + 3 * step), 1000), float(step))}} for step in range(4)]
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        for step, state in enumerate(states):
            kept.save(step, state)
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        assert kept.steps() == [0, 1, 2, 3]
        assert all(same(kept.load(step), state) for step, state in enumerate(states))


def test_plans_are_made_once_for_a_layout(full, tmp_path, monkeypatch):
    made = []
    real = planning.deal
    monkeypatch.setattr(planning, "deal", lambda plans: made.append(1) or real(plans))

    def work(ranks):
        with ByteCheckpoint(keep=1).open(str(tmp_path), ranks=ranks) as kept:
            for step in range(4):
                zero = 3 if step == 3 else 0
                kept.save(step, split(full, Layout(dp=2, zero=zero), ranks.rank)).wait(10)
                if step == 2:
                    assert len(made) == 1 and kept.steps() == [2]
            return kept.traffic()

    told = Hall(2).run(work)
    assert len(made) == 2 and all(t["plans_reused"] == 2 for t in told)
    assert len(list(tmp_path.glob("*.data"))) == 1


def test_tied_weights_odd_strides_scalars_and_what_ranks_have_of_their_own(tmp_path):
    w = torch.randn(30, 20)

    def state(rank):
        return {
            "model": {"a": w, "b": w, "t": torch.arange(12.0).reshape(3, 4).t(), "none": torch.empty(0, 3)},
            "rng": torch.full((5,), rank, dtype=torch.uint8),
            "extra": {"rank": rank, "text": "ü", "list": [1, None, (2.5, True)]},
        }

    def work(ranks):
        with ByteCheckpoint().open(str(tmp_path), ranks=ranks) as kept:
            kept.save(1, state(ranks.rank)).wait(10)
            return kept.load()

    for rank, got in enumerate(Hall(3).run(work)):
        assert same(got, state(rank)) and got["model"]["a"] is got["model"]["b"]
        assert got["model"]["t"].stride() == (1, 4)
    assert data_of(tmp_path) and sum(data_of(tmp_path).values()) == nbytes(state(0)["model"]) - nbytes(w) + 15
    assert Hall(5).run(lambda r: ByteCheckpoint().open(str(tmp_path), ranks=r).load()["extra"]["rank"]) == [
        0,
        1,
        2,
        0,
        0,
    ]


def test_names_that_only_one_side_has(full, tmp_path):
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        kept.save(1, full, wait=True)
        fewer = {"model": {n: torch.zeros_like(t) for n, t in list(full["model"].items())[:3]}}
        with pytest.raises(BadInput, match="no tensor model"):
            kept.load(like=fewer)
        kept.load(like=fewer, missing="partial")
        assert all(same(t, full["model"][n]) for n, t in fewer["model"].items())
        fresh = {
            "model": {n: torch.zeros_like(t) for n, t in full["model"].items()},
            "optimizer": {"mine": torch.ones(3)},
        }
        with pytest.raises(BadInput, match=r"optimizer\.mine"):
            kept.load(like=fresh)
        assert not any(t.any() for t in fresh["model"].values()), "nothing is changed where it does not fit"
        kept.load(like=fresh, missing="model")
        assert same(fresh["model"], full["model"]) and same(fresh["optimizer"]["mine"], torch.ones(3))


def test_an_optimizer_that_did_not_step_yet_takes_what_was_saved(tmp_path):
    def made():
        model = torch.nn.Linear(5, 3)
        return model, torch.optim.AdamW(model.parameters())

    def state(model, optimizer):
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "extra": {"at": 4}}

    (model, optimizer), (other, fresh) = made(), made()
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        kept.save(1, state(model, optimizer), wait=True)
        found = kept.load(like=state(other, fresh))
        assert same(found, state(model, optimizer)) and not fresh.state
        fresh.load_state_dict(found["optimizer"])
        assert same(fresh.state_dict(), optimizer.state_dict())
        half = {"w": torch.zeros(2, 5)}
        split = {"model": {"weight": Piece(half["w"], (3, 5), (0, 0))}, "optimizer": {"state": {}}}
        with pytest.raises(
            HoldallError, match="no tensor"
        ):  # nobody knows here how its states would be split
            kept.load(like=split)
        assert not split["optimizer"]["state"] and not half["w"].any()


def test_states_that_do_not_fit_are_told_in_one_line(full, tmp_path):
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        with pytest.raises(BadInput, match="no checkpoint"):
            kept.load()
        kept.save(1, full, wait=True)
        for wrong, said in (
            (torch.zeros(48, 12), "shape of model.embed"),
            (torch.zeros(49, 12).double(), "type of model.embed"),
        ):
            like = {**full, "model": {**full["model"], "embed_tokens.weight": wrong}}
            with pytest.raises(BadInput, match=said) as caught:
                kept.load(like=like)
            assert "\n" not in str(caught.value)
        for bad in ({"x": object()}, {"x": {1.5: 2}}, {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}):
            with pytest.raises(BadInput):
                kept.save(2, bad)
        with pytest.raises(BadInput, match="step"):
            kept.load(77)
        assert kept.steps() == [1] and same(kept.load(), full)


def test_damage_is_found(full, tmp_path):
    with ByteCheckpoint(part=1 << 11).open(str(tmp_path)) as kept:
        kept.save(1, full, wait=True)
        file = next(tmp_path.glob("*.data/optim_0"))
        whole = file.read_bytes()
        for wrong, said in (
            (whole[:-50], "cut short"),
            (whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:], "checksum"),
            (None, "missing"),
        ):
            file.unlink() if wrong is None else file.write_bytes(wrong)
            for like in (None, copy.deepcopy(full)):
                with pytest.raises(CorruptArtefact, match=said):
                    kept.load(like=like)
        with pytest.raises(BadInput, match="missing"):
            ByteCheckpoint(missing="nonsense")
        contents = tmp_path / "1.checkpoint"
        told = contents.read_bytes()
        for at in (5, len(told) // 2, len(told) - 3):
            contents.write_bytes(told[:at] + bytes([told[at] ^ 1]) + told[at + 1 :])
            with pytest.raises(CorruptArtefact):
                kept.load()


def test_what_was_loaded_may_change_and_the_file_does_not(full, tmp_path):
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        kept.save(1, full, wait=True)
        for t in kept.load()["model"].values():
            t.zero_()
        again = kept.load()
        kept.save(1, {"model": {}}, wait=True)  # the file goes, what is mapped from it stays
        assert same(again, full)


def test_contents_that_lie_are_refused(full, tmp_path):
    from holdall.checkpoints.publish import seal

    with ByteCheckpoint().open(str(tmp_path)) as kept:
        kept.save(1, full, wait=True)
        first, rest = (tmp_path / "1.checkpoint").read_bytes().split(b"\n", 1)
        for change in (
            lambda t: t["files"][0].__setitem__(0, "../../etc/passwd"),
            lambda t: t["tensors"]["model.norm.weight"][1][0].__setitem__(4, 1 << 50),
            lambda t: t["tensors"]["model.norm.weight"][1][0].__setitem__(0, [5]),
            lambda t: t["tensors"]["model.norm.weight"][1].clear(),
            lambda t: t.pop("trees"),
        ):
            told = json.loads(rest)
            change(told)
            raw = json.dumps(told).encode()
            head = json.loads(first)
            head["xxh3"] = seal(head, raw)
            (tmp_path / "1.checkpoint").write_bytes(json.dumps(head).encode() + b"\n" + raw)
            with pytest.raises(CorruptArtefact):
                kept.load()


def test_a_write_that_fails_leaves_the_old_checkpoint(full, tmp_path, monkeypatch):
    from holdall.files import atomic_write

    save(str(tmp_path), full, Layout(dp=2), step=1)
    real = atomic_write.publish

    def full_disk(self):
        if "optim_1" in self.url:
            raise OSError(28, "No space left on device")
        real(self)

    monkeypatch.setattr(atomic_write, "publish", full_disk)

    def work(ranks):
        with ByteCheckpoint().open(str(tmp_path), ranks=ranks) as kept:
            receipt = kept.save(1, split(full, Layout(dp=2), ranks.rank))
            with pytest.raises((HoldallError, OSError), match="No space left"):
                receipt.wait(10)
            assert kept.steps() == [1]
            kept.save(2, split(full, Layout(dp=2), ranks.rank)).ended.wait(10)
            with pytest.raises((HoldallError, OSError), match="No space left"):
                kept.save(
                    3, split(full, Layout(dp=2), ranks.rank)
                )  # as a loop that waits for no receipt learns it
            monkeypatch.undo()
            kept.save(2, split(full, Layout(dp=2), ranks.rank)).wait(10)
            return kept.steps()

    assert Hall(2).run(work) == [[1, 2]] * 2
    assert len(list(tmp_path.glob("*.data"))) == 2 and not list(tmp_path.rglob("*.tmp"))
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        assert same(kept.load(1)["optimizer"], full["optimizer"])


def test_a_rank_that_hangs_is_named(full, tmp_path):
    hall = Hall(5, machine=2, fanout=2, patience=0.2)

    def work(ranks):
        if ranks.rank == 3:
            return None
        with ByteCheckpoint().open(str(tmp_path), ranks=ranks) as kept:
            try:
                kept.save(1, split(full, Layout(dp=5), ranks.rank)).wait(10)
            except HoldallError as fault:
                return type(fault), str(fault)

    told = hall.run(work)
    assert told[0][0] is RankLost and all("rank 3 has said nothing" in t[1] for t in told if t is not None)


def test_the_data_loader_goes_on_with_half_the_ranks(tmp_path):
    docs = [
        torch.arange(n, dtype=torch.int64).numpy() for n in (3, 17, 1, 40, 8, 9, 25, 31, 2, 11, 13, 7, 19, 23)
    ]

    def work(ranks):
        loader = PackingLoader(docs, 6, 1, ranks.rank, 4, seed=3)
        parts = [p for _ in range(3) for p in next(loader).parts]
        with ByteCheckpoint().open(str(tmp_path), ranks=ranks) as kept:
            kept.save(3, {"model": {}, "loader": loader.state()}).wait(10)
        return parts

    given = [p for parts in Hall(4).run(work) for p in parts]
    loaders = [PackingLoader(docs, 6, 1, r, 2, seed=3) for r in range(2)]
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        states = kept.loaders()
    assert len(states) == 4
    for loader in loaders:
        loader.restore(states)
        while any(s.epoch == 0 for s in loader._workers[0].spans) or any(
            c.epoch == 0 for c in loader._workers[0].chunks
        ):
            given += next(loader).parts
    found = dict.fromkeys(range(len(docs)), 0)
    for epoch, document, n in given:
        found[document] += n if epoch == 0 else 0
    assert found == {i: len(d) for i, d in enumerate(docs)}


def test_the_report_tells_phases_and_who_is_late(full, tmp_path):
    save(str(tmp_path), full, Layout(dp=3))
    with ByteCheckpoint().open(str(tmp_path)) as kept:
        report = kept.report()
        kept.load()
        assert kept.report("load").nbytes("read") == nbytes(full)
    assert len(report.ranks) == 3 and {"plan", "copy", "write", "upload"} <= set(report.phases())
    assert report.nbytes("write") == report.nbytes("copy") == nbytes(full)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["ranks"] == 3 and len(str(report).splitlines()) >= 2 + len(report.phases())
    slow = [{"write": {"seconds": s, "bytes": 10}} for s in (0.1, 0.1, 0.9, 0.1)]
    late = type(report)("save", 1, slow)
    assert (
        late.stragglers()[0][:2] == (2, "write")
        and "rank 2" in str(late)
        and late.bandwidth("write") == 40 / 0.9
    )


def test_urls_of_memory(full):
    url = "memory://bytecheckpoint/run"
    save(url, full, Layout(dp=2, zero=3), step=1)
    save(url, full, Layout(dp=2), step=2, recipe=ByteCheckpoint(keep=1))
    with ByteCheckpoint().open(url) as kept:
        assert kept.steps() == [2] and same(kept.load()["model"], full["model"])
    import fsspec

    assert len(fsspec.filesystem("memory").ls("/bytecheckpoint/run")) == 2  # contents, and one folder of data


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Four real processes over gloo, once: what each of them told, and where they kept things."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parents[1] / "checkpoint_ranks.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    told = subprocess.run(
        [sys.executable, script, "4", folder],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert json.loads(told.stdout.splitlines()[-1]) == [0, 0, -9, 0], told.stderr
    return folder, [json.loads((folder / f"{r}.json").read_text()) for r in (0, 1, 3)]


def test_real_ranks_save_and_load_dtensors(real):
    _, told = real
    assert all(t["fsdp"]["equal"] and t["grid"] and t["dcp"] for t in told)


def test_real_ranks_share_what_they_read(real):
    _, told = real
    whole = 6 * 50 * 40 * 4
    assert sum(t["read"][0] for t in told) < whole and {t["read"][1] for t in told} == {whole}
    assert all(t["read"][0] <= 1.1 * whole / 4 for t in told)


def test_one_process_loads_what_four_saved(real):
    import checkpoint_ranks as ranks

    folder, _ = real
    model, optimizer = ranks.trained()
    wanted = ranks.state_of(model, optimizer)
    for kept in ("fsdp", "dcp"):
        with ByteCheckpoint().open(str(folder / kept)) as keeper:
            got = keeper.load()
            like = ranks.state_of(*ranks.trained(steps=1))
            keeper.load(like=like)
        for a in (got, like):
            assert a["model"].keys() == wanted["model"].keys()
            assert all(torch.allclose(t, wanted["model"][n], atol=1e-6) for n, t in a["model"].items())
        assert same(got["model"], dict(like["model"])) and same(
            got["optimizer"]["state"], like["optimizer"]["state"]
        )


def test_a_killed_rank_is_named_and_the_old_checkpoint_stands(real):
    folder, told = real
    assert all("rank 2 is gone" in t["killed"] for t in told)
    with ByteCheckpoint().open(str(folder / "killed")) as kept:
        assert kept.steps() == [1] and all((t == 7).all() for t in kept.load()["model"].values())
        kept.save(2, {"model": {}}, wait=True)
    assert (
        not list(Path(folder, "killed").rglob("*.tmp"))
        and len(list(Path(folder, "killed").glob("*.data"))) == 2
    )


KILLED = """
import json, sys, torch
from pathlib import Path
from holdall import files
from holdall.checkpoints.bytecheckpoint import ByteCheckpoint
folder = sys.argv[1]
def state(fill):
    model = {f"w{i}": torch.full((50, 9), fill + i) for i in range(4)}
    return {"model": model, "optimizer": {"m": torch.full((9,), fill)}}
def opened():
    return ByteCheckpoint(part=1 << 10, keep=2).open(folder)
with opened() as kept:
    kept.save(1, state(1.0), wait=True)
files.os.fsync, files.atomic_write.write = deadly(os.fsync), deadly(files.atomic_write.write)
files.Path.replace, files.Path.unlink = deadly(Path.replace), deadly(Path.unlink)
os.rmdir = deadly(os.rmdir)
found = []
for last in range(1, 1000):
    calls[0], n = 0, last
    pid = os.fork()
    if not pid:
        with opened() as kept:
            kept.save(1, state(2.0), wait=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    n = None
    with opened() as kept:
        fill = kept.load()["optimizer"]["m"][0].item()
        assert kept.steps() == [1] and fill in (1.0, 2.0), fill
        like, got = state(fill), kept.load()
        assert all(torch.equal(got["model"][k], t) for k, t in like["model"].items())
        kept.save(1, state(1.0), wait=True)
    left = [str(p) for p in Path(folder).rglob("*") if p.name.endswith(".tmp")]
    assert not left and len(list(Path(folder).glob("*.data"))) == 1, left
    found.append(fill)
    if code == 0:
        break
print(json.dumps([found.count(1.0), found.count(2.0)]))
"""


def test_killed_at_any_moment_it_is_the_old_or_the_new_one(tmp_path):
    told = subprocess.run(
        [sys.executable, "-c", DEADLY + KILLED, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    old, new = json.loads(told.stdout)
    assert old > 20 and new >= 2  # killed before and after the renaming


def test_an_s3_server(full, bucket):
    import s3fs

    with ByteCheckpoint(keep=1, split=1 << 16).open(f"s3://{bucket}/run") as kept:
        for step in (1, 2):
            kept.save(step, full, wait=True)
        assert kept.steps() == [2] and same(kept.load(), full)
        assert len(s3fs.S3FileSystem().ls(f"{bucket}/run", refresh=True)) == 2
