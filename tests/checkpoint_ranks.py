"""Several real processes that keep checkpoints together: python checkpoint_ranks.py RANKS FOLDER."""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from holdall.checkpoints.bytecheckpoint import ByteCheckpoint
from holdall.dropins.dcp import LoadPlanner, Reader, SavePlanner, Writer
from holdall.errors import HoldallError
from holdall.files import atomic_write


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 7), torch.nn.ReLU(), torch.nn.Linear(7, 5))


def trained(mesh=None, steps=2):
    """A network after some steps of AdamW on the same batches, sharded over a mesh or not."""
    model = network()
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(steps):
        x = torch.randn(6, 12, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state_of(model, optimizer):
    params, moments = get_state_dict(model, optimizer)
    return {"model": params, "optimizer": moments}


def fsdp(folder, mesh):
    """Save a sharded run; give what comes back into another one that is sharded in the same way."""
    model, optimizer = trained(mesh)
    with ByteCheckpoint(part=64).open(f"{folder}/fsdp") as kept:
        written = kept.save(2, state_of(model, optimizer)).wait(60)
        other, fresh = trained(mesh, steps=1)
        like = state_of(other, fresh)
        kept.load(like=like)
        set_state_dict(other, fresh, model_state_dict=like["model"], optim_state_dict=like["optimizer"])
    equal = all(
        torch.equal(a.to_local(), b.to_local())
        for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    return {"equal": equal, "written": written}


def grid(folder):
    """Tensors on a 2 x 2 mesh: rows and columns, rows twice, rows on one axis only."""
    mesh = init_device_mesh("cpu", (2, 2))
    full = torch.arange(7 * 6.0).reshape(7, 6)
    ways = {
        "rows, columns": (Shard(0), Shard(1)),
        "rows": (Shard(0), Shard(0)),
        "half": (Replicate(), Shard(1)),
    }
    state = {
        "model": {name: distribute_tensor(full + i, mesh, p) for i, (name, p) in enumerate(ways.items())}
    }
    with ByteCheckpoint().open(f"{folder}/grid") as kept:
        kept.save(1, state).wait(60)
        like = {"model": {n: distribute_tensor(torch.zeros(7, 6), mesh, (Shard(1), Shard(0))) for n in ways}}
        kept.load(like=like)
    return all(torch.equal(t.full_tensor(), full + i) for i, t in enumerate(like["model"].values()))


def replicas(folder):
    """What each rank read of a state that all want, with and without sharing."""
    state = {
        "model": {f"w{i}": torch.randn(50, 40, generator=torch.Generator().manual_seed(i)) for i in range(6)}
    }
    read = []
    with ByteCheckpoint().open(f"{folder}/replicas") as kept:
        kept.save(1, state).wait(60)
    for once in (True, False):
        with ByteCheckpoint(once=once).open(f"{folder}/replicas") as kept:
            like = {"model": {n: torch.zeros_like(t) for n, t in state["model"].items()}}
            kept.load(like=like)
            assert all(torch.equal(t, state["model"][n]) for n, t in like["model"].items())
            read.append(kept.report("load").ranks[dist.get_rank()].get("read", {"bytes": 0})["bytes"])
    return read


def dropin(folder, mesh):
    """The same run through torch's own calls, at once and in the background."""
    model, optimizer = trained(mesh)
    dcp.save(
        state_of(model, optimizer), storage_writer=Writer(f"{folder}/dcp", step=1), planner=SavePlanner()
    )
    state = state_of(model, optimizer)
    dcp.async_save(state, storage_writer=Writer(f"{folder}/dcp", step=2)).result()
    other, fresh = trained(mesh, steps=1)
    like = state_of(other, fresh)
    dcp.load(like, storage_reader=Reader(f"{folder}/dcp"), planner=LoadPlanner())
    return all(torch.equal(t.to_local(), state["model"][n].to_local()) for n, t in like["model"].items())


def killed(folder, rank):
    """Rank 2 is killed while it writes: the others hear of it, and the old checkpoint stands."""
    state = {"model": {f"w{i}": torch.full((40, 40), 7.0) for i in range(8)}}
    kept = ByteCheckpoint(patience=20).open(f"{folder}/killed")
    kept.save(1, state).wait(60)
    for t in state["model"].values():
        t.fill_(8.0)
    dist.barrier()
    if rank == 2:
        atomic_write.publish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
    try:
        kept.save(1, state).wait(60)
    except HoldallError as fault:
        return str(fault)
    return "saved"


def main(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    told = {"fsdp": fsdp(folder, mesh), "grid": grid(folder), "read": replicas(folder)}
    told["dcp"] = dropin(folder, mesh)
    assert isinstance(next(iter(state_of(*trained(mesh))["model"].values())), DTensor)
    told["killed"] = killed(folder, rank)
    Path(folder, f"{rank}.json").write_text(json.dumps(told))


def forked(rank, world, folder):
    """A rank in a process of its own, which has all imports already."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        main(rank, world, folder)
        code = 0
    except BaseException:  # noqa: BLE001 (it is told to the parent by the exit code)
        traceback.print_exc()
    finally:
        os._exit(code)  # a rank is gone: leaving the group would wait for it


if __name__ == "__main__":
    count, place = int(sys.argv[1]), sys.argv[2]
    pids = [forked(r, count, place) for r in range(count)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]))
