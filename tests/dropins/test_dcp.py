"""torch.distributed.checkpoint through Holdall's writer and reader, and ByteCheckpoint on the other side."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.planner import SavePlan

from holdall.checkpoints.bytecheckpoint import ByteCheckpoint
from holdall.dropins.dcp import LoadPlanner, Reader, SavePlanner, Writer


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        yield


def state(fill=None):
    def tensor(*shape):
        return torch.randn(shape) if fill is None else torch.full(shape, fill)

    model = {"layers.0.weight": tensor(30, 20), "half": tensor(7).bfloat16(), "none": torch.empty(0, 4)}
    moments = {"layers.0.weight": {"step": torch.tensor(3.0), "exp_avg": tensor(30, 20)}}
    groups = [{"lr": 0.1, "betas": (0.9, 0.95), "params": ["layers.0.weight"], "amsgrad": False}]
    return {"model": model, "optimizer": {"state": moments, "param_groups": groups}, "step": 12, "note": "ü"}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("url", ["folder", "memory://dropins-dcp/run"])
@pytest.mark.parametrize("planners", [(None, None), (SavePlanner, LoadPlanner)])
def test_torch_saves_and_loads_through_it(url, planners, tmp_path):
    url = str(tmp_path / url) if url == "folder" else url
    kept, like = state(), state(0.0)
    like["optimizer"]["param_groups"][0]["lr"], like["step"] = 7.0, 0
    save, load = (p() if p is not None else None for p in planners)
    dcp.save(kept, storage_writer=Writer(url, step=12, part=500), planner=save, no_dist=True)
    dcp.load(like, storage_reader=Reader(url), planner=load, no_dist=True)
    assert same(like, kept)
    with ByteCheckpoint().open(url) as keeper:  # and this project's own reads it
        assert keeper.steps() == [12] and same(keeper.load(), kept)


def test_torch_loads_what_bytecheckpoint_saved(tmp_path):
    kept = {**state(), "rng": torch.get_rng_state()}
    with ByteCheckpoint(part=1 << 10).open(str(tmp_path)) as keeper:
        keeper.save(3, kept, wait=True)
    like = {**state(0.0), "rng": torch.zeros_like(kept["rng"]), "step": 0}
    dcp.load(like, storage_reader=Reader(str(tmp_path)), planner=LoadPlanner(), no_dist=True)
    assert same(like, kept)
    part = {"model": {"layers.0.weight": torch.zeros(30, 20)}}
    dcp.load(part, storage_reader=Reader(str(tmp_path)), no_dist=True)
    assert same(part["model"]["layers.0.weight"], kept["model"]["layers.0.weight"])


def test_bytecheckpoint_loads_what_a_rank_had_of_its_own_from_torch(tmp_path):
    dcp.save({"rng": torch.arange(5)}, storage_writer=Writer(str(tmp_path)), no_dist=True)
    with ByteCheckpoint().open(str(tmp_path)) as keeper:
        assert same(keeper.load(like={"rng": torch.zeros(5, dtype=torch.int64)}), {"rng": torch.arange(5)})


def test_steps_stay_apart_and_old_ones_go(tmp_path):
    url = str(tmp_path)
    for step in range(4):
        dcp.save(
            {"model": {"w": torch.full((9,), float(step))}},
            storage_writer=Writer(url, step=step, keep=2),
            no_dist=True,
        )
    like = {"model": {"w": torch.zeros(9)}}
    dcp.load(like, storage_reader=Reader(url, step=2), no_dist=True)
    assert like["model"]["w"][0] == 2 and len(list(tmp_path.glob("*.data"))) == 2
    with pytest.raises(BaseException, match="one of the steps"):
        dcp.load(like, storage_reader=Reader(url, step=0), no_dist=True)


def test_what_is_neither_tensor_nor_plain_is_refused_and_the_old_one_stays(tmp_path):
    dcp.save({"x": 1}, storage_writer=Writer(str(tmp_path)), no_dist=True)
    with pytest.raises(BaseException, match="tensors, numbers, text"):
        dcp.save({"x": Writer}, storage_writer=Writer(str(tmp_path)), no_dist=True)
    like = {"x": 0}
    dcp.load(like, storage_reader=Reader(str(tmp_path)), no_dist=True)
    assert like == {"x": 1}


def test_damage_is_found(tmp_path):
    dcp.save(state(), storage_writer=Writer(str(tmp_path)), no_dist=True)
    file = next(tmp_path.glob("*.data/model_0"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BaseException, match="does not match its checksum"):
        dcp.load(state(0.0), storage_reader=Reader(str(tmp_path)), no_dist=True)


def test_replicas_are_dealt_evenly():
    from torch.distributed.checkpoint.default_planner import create_default_local_save_plan

    tensors = {f"w{i}": torch.zeros(n) for i, n in enumerate((90, 10, 50, 40, 60, 30, 20, 80))} | {"step": 3}
    plans = [create_default_local_save_plan(tensors, rank == 0) for rank in range(4)]
    given = SavePlanner()._dedup_save_plans(plans)
    assert sorted(i.index.fqn for p in given for i in p.items) == sorted(tensors)
    loads = [sum(i.tensor_storage_size() or 0 for i in p.items) for p in given]
    assert max(loads) * 4 / sum(loads) <= 1.1 and all(isinstance(p, SavePlan) for p in given)


def test_places_that_are_not_given_are_asked_for(tmp_path):
    with pytest.raises(BaseException, match="URL of a folder"):
        dcp.save({"x": 1}, storage_writer=Writer(), no_dist=True)
    dcp.save({"x": 1}, storage_writer=Writer(), checkpoint_id=tmp_path / "new", no_dist=True)
    assert (tmp_path / "new" / "0.checkpoint").is_file()
